"""The fuzz run: kept cases stay mended, some thousand fresh inputs find nothing, the judge sees what it should.

`python -m tests.fuzz.run` is the long run; docs/experiments.md has what it found.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from contract.errors import PageError
from edge import EdgeSession, FakeClock, StateFile
from tests.fuzz import mutations, run
from tests.fuzz.judge import Judge, Target
from tests.fuzz.state_targets import MEMORY
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_stays_mended(name: str) -> None:
    """Every kept case of a target, and its seeds."""
    target = TARGETS[name]
    cases = [path.read_bytes() for path in KEPT if path.parent.name == name]
    with Judge(target) as judge:
        findings = [judge.judge(data) for data in [*target.seeds(), *cases]]
    assert [str(finding) for finding in findings if finding] == []


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str) -> None:
    """Or a run would only ever see the first check of a reader."""
    accepted = 0
    for data in TARGETS[name].seeds():
        try:
            TARGETS[name].run(data)
            accepted += 1
        except TARGETS[name].errors:  # a refusal of the server's, say: an error is its right end
            pass
    assert accepted >= 1


def test_every_kept_case_belongs_to_a_target() -> None:
    assert {path.parent.name for path in KEPT} <= set(TARGETS)
    assert set(run.NAMES) == set(TARGETS)
    assert all(path.stat().st_size <= 8_192 for path in KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("engine", run.ENGINES)
def test_fresh_inputs_find_nothing(engine: str, tmp_path: Path) -> None:
    """The command as a person calls it."""
    if engine == "atheris":
        pytest.importorskip("atheris")
    flags = ["--inputs", "3000", "--seed", str(random.randrange(10**6)), "--engine", engine, "--out", str(tmp_path)]
    command = [sys.executable, "-m", "tests.fuzz.run", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=run.REPOSITORY)
    assert done.returncode == 0, done.stdout
    assert "0 found" in done.stdout.splitlines()[-1]


def of(run: object) -> Target:
    return Target("made up", lambda: [b"x"], run, (PageError,))  # type: ignore[arg-type]


class TestJudge:
    """The judge must be able to find: each fault that it looks for, made on purpose."""

    def kind(self, run: object) -> str:
        with Judge(of(run)) as judge:
            finding = judge.judge(b"x")
        return "" if finding is None else finding.kind

    def test_what_may_be(self) -> None:
        assert self.kind(lambda data: None) == ""

    def test_a_documented_error(self) -> None:
        def refuse(data: bytes) -> None:
            raise PageError("no page", got=data)

        assert self.kind(refuse) == ""

    def test_another_error(self) -> None:
        assert self.kind(lambda data: [][1]) == "error"

    def test_an_error_without_end(self) -> None:
        class Talkative(PageError):
            def __str__(self) -> str:
                return "no page\n" * 300

        def refuse(data: bytes) -> None:
            raise Talkative("no page")

        assert self.kind(refuse) == "line"

    def test_a_warning(self) -> None:
        assert self.kind(lambda data: warnings.warn("careful", RuntimeWarning, stacklevel=1)) == "warning"

    def test_memory(self) -> None:
        assert self.kind(lambda data: bytes(64 * 2**20)) == "memory"

    def test_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.fuzz.judge.TIME_LIMIT_S", 0.0001)
        assert self.kind(lambda data: sum(range(20_000))) == "slow"

    def test_no_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An endless loop that survives every Exception is broken off all the same."""
        monkeypatch.setattr("tests.fuzz.judge.HANG_S", 0.05)

        def endless(data: bytes) -> None:
            while True:
                try:
                    sum(range(1_000))
                except Exception:
                    continue

        assert self.kind(endless) == "error"


class TestMutations:
    @pytest.mark.parametrize("name", TARGETS)
    def test_many_different_inputs_come_of_a_seed_and_the_same_for_the_same_number(self, name: str) -> None:
        target = TARGETS[name]
        seed = target.seeds()[0]
        first, again = ([mutations.mutate(target, seed, random.Random(n)) for n in range(20)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 8
        assert all(len(data) <= mutations.SIZE_MAX + 1_024 for data in first)

    def test_a_good_share_of_state_files_reaches_the_reader(self) -> None:
        """Past SQLite and past what a file says of itself: some are taken up, others refused for what they hold."""
        target, found = TARGETS["state"], []
        seed = target.seeds()[0]
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            for n in range(100):
                file = StateFile(Path(folder) / f"{n}.state")
                file.path.write_bytes(mutations.mutate(target, seed, random.Random(n)))
                EdgeSession(5, clock=FakeClock(), state=file)
                found.append(file.problem)
                file.close()
        refused = [problem for problem in found if "can't be read" in problem]
        assert found.count("") + len(refused) >= 45
        assert found.count("") >= 10
        assert len(refused) >= 10
        assert len(set(refused)) >= 5

    @pytest.mark.parametrize("name", ["page", "manifest", "pointer", "spec", "golden"])
    def test_some_get_past_the_parser(self, name: str) -> None:
        """What is refused is refused for many reasons: the checks behind the parser are reached."""
        target = TARGETS[name]
        seed, reasons = target.seeds()[0], set()
        parsers = ("JSON", "Expecting", "bytes are not")
        for n in range(60):
            try:
                target.run(mutations.mutate(target, seed, random.Random(n)))
            except target.errors as error:
                reasons.add(str(error))
        assert len([reason for reason in reasons if not any(word in reason for word in parsers)]) >= 3
