# One target per developer verb; .ci/run calls the same ones.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python that is 3.11 or newer.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
# mypy reads the rooms that are there.
ROOMS = $(patsubst %/__init__.py,%,$(wildcard contract/__init__.py training/__init__.py convert/__init__.py \
	edge/__init__.py server_stub/__init__.py benchmarks/__init__.py))
# Two workers, a file never split between them: module fixtures (a trained model, a server) are made once.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile -q
DEMO_OUT ?= demo-out

.PHONY: help venv install test test-slow device demo lint format proto clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(BIN)/python ## create .venv with Python 3.11 or newer

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one with: make install PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

install: $(STAMP) ## everything for development, once per change of pyproject.toml

# Plain pip: other installers skip the local CPU wheel of torch. onnx2tf and litert-torch stand in no extra: the first's
# metadata refuse Python 3.11 (pyproject.toml), the second's bring thirty packages that conversion never imports.
$(STAMP): pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[all]'
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --ignore-requires-python onnx2tf==2.6.9
	$(BIN)/kir convert setup --litert-torch
	@touch $@

test: $(STAMP) ## every test that is not slow
	$(PYTEST) -m "not slow"

# pytest's 5 = nothing collected, which is no failure here.
test-slow: $(STAMP) ## the slow tests
	$(PYTEST) -m slow || { code=$$?; test $$code -eq 5; }

device: $(STAMP) ## build the emulated arm64 device (once; kept in ~/.cache/kir-edge)
	$(BIN)/kir device build

demo: $(STAMP) ## the whole loop into demo-out; make demo DATA=kuairand:PATH takes real events
	$(BIN)/kir demo --out $(DEMO_OUT) $(if $(DATA),--data $(DATA))

lint: $(STAMP) ## ruff, mypy, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kir.py $(ROOMS)
	cd contract/proto && $(CURDIR)/$(BIN)/buf lint

format: $(STAMP) ## write ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(STAMP) ## regenerate contract/v1 from contract/proto
	$(BIN)/python contract/proto/generate.py

clean: ## remove what builds and tools leave; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
