"""Silence around converters: nothing reaches the terminal, and what was said comes with the error."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from contract.errors import ConversionError, InputError
from convert.quiet import quiet


def test_python_and_c_level_output_is_swallowed(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet("a test"):
        print("from python")
        os.write(1, b"from C, stdout\n")
        os.write(2, b"from C, stderr\n")
    print("afterwards")
    out, err = capfd.readouterr()
    assert out == "afterwards\n"
    assert err == ""


def test_an_exception_brings_the_last_words() -> None:
    def step() -> None:
        with quiet("the step"):
            os.write(2, b"the reason why\n")
            raise RuntimeError("it broke")

    with pytest.raises(ConversionError) as raised:
        step()
    assert "the step failed" in str(raised.value)
    assert "RuntimeError: it broke the reason why" in str(raised.value)


def test_leaving_by_sys_exit_is_a_failure_too() -> None:
    with pytest.raises(ConversionError, match="step failed"), quiet("step"):
        sys.exit(1)


def test_an_error_of_the_tree_passes_as_it_is() -> None:
    with pytest.raises(InputError, match="mend me"), quiet("step"):
        raise InputError("mend me")


def test_an_interruption_passes_as_it_is() -> None:
    with pytest.raises(KeyboardInterrupt), quiet("step"):
        raise KeyboardInterrupt


def test_descriptors_and_log_level_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd")), logging.getLogger("torch.onnx").level
    for _ in range(3):
        with quiet("step"):
            pass
        with pytest.raises(ConversionError), quiet("step"):
            raise ValueError
    assert (len(os.listdir("/proc/self/fd")), logging.getLogger("torch.onnx").level) == before


def test_only_known_warnings_are_silenced() -> None:
    def step() -> None:
        with quiet("step"):
            warnings.warn("You are using the legacy TorchScript-based ONNX export.", DeprecationWarning, stacklevel=1)
            warnings.warn("new trouble", UserWarning, stacklevel=1)

    with pytest.raises(ConversionError, match="new trouble"):  # warnings are errors here
        step()
