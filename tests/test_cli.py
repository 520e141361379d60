"""The command line: its table, what it imports, how it ends. What a command does is tested in its room."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import kir
from contract.errors import ConversionError, InputError, Interrupted, PoolExhausted, VerificationFailed

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "tensorflow",
    "tf_keras",
    "onnx",
    "onnxruntime",
    "onnx2tf",
    "faiss",
    "pyarrow",
    "safetensors",
    "rich",
    "matplotlib",
)
Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """room(name, run): puts a fake room behind a command, with one flag --size and `run` as its function."""

    def place(name: str, run: Run) -> None:
        module = ModuleType(kir.COMMANDS[name].module)
        setattr(module, f"add_{name}_arguments", lambda parser: parser.add_argument("--size", type=int, default=3))
        setattr(module, f"run_{name}", run)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return place


def raising(error: BaseException) -> Run:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


class TestTable:
    def test_every_job_has_its_command(self) -> None:
        assert list(kir.COMMANDS) == (
            [
                "simulate",
                "annotate",
                "train",
                "evaluate",
                "describe",
                "convert",
                "publish",
                "verify",
                "inspect",
                "serve",
                "retrieve",
                "swipe",
                "replay",
                "bench",
                "device",
                "demo",
            ]
        )

    @pytest.mark.parametrize("name", kir.COMMANDS)
    def test_a_command_names_a_room_an_extra_and_one_line(self, name: str) -> None:
        command = kir.COMMANDS[name]
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert command.module.partition(".")[0] in kir.ROOMS
        assert command.module.endswith(".cli")
        assert command.extra in {"", *extras}
        assert 10 < len(command.help) < 100
        assert not command.help.endswith(".")

    @pytest.mark.parametrize("name", kir.COMMANDS)
    def test_its_room_brings_both_functions(self, name: str) -> None:
        module = importlib.import_module(kir.COMMANDS[name].module)
        assert callable(getattr(module, f"add_{name}_arguments"))
        assert callable(getattr(module, f"run_{name}"))


class TestHelp:
    def test_help_lists_every_command_and_imports_no_room(self) -> None:
        code = """
            import sys, kir
            try:
                kir.main(["--help"])
            except SystemExit as leaving:
                loaded = {name.partition(".")[0] for name in sys.modules}
                assert loaded & kir.ROOMS == {"contract"}, loaded & kir.ROOMS
                assert not loaded & {"numpy", "torch", "tensorflow", "grpc"}
                sys.exit(leaving.code)
        """
        result = run_python(code)
        assert result.returncode == 0, result.stderr
        words = result.stdout.split()
        assert [name for name in kir.COMMANDS if name not in words] == []

    @pytest.mark.parametrize("module", sorted({command.module for command in kir.COMMANDS.values()}))
    def test_help_of_a_rooms_commands_needs_no_heavy_package(self, module: str) -> None:
        names = [name for name, command in kir.COMMANDS.items() if command.module == module]
        code = f"""
            import sys, kir
            sys.modules.update(dict.fromkeys({HEAVY!r}))
            for name in {names!r}:
                try:
                    code = kir.main([name, "--help"])
                except SystemExit as leaving:
                    code = leaving.code
                assert code == 0, (name, code)
        """
        result = run_python(code)
        assert result.returncode == 0, result.stderr
        for name in names:
            assert f"usage: kir {name}" in result.stdout

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as leaving:
            kir.main(["--version"])
        assert leaving.value.code == 0
        assert capsys.readouterr().out == f"kir {kir.__version__}\n"

    def test_python_dash_m(self) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "kir", "--version"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert (result.returncode, result.stdout) == (0, f"kir {kir.__version__}\n")

    @pytest.mark.parametrize("words", [[], ["frobnicate"], ["--debug"], ["--nonsense"]])
    def test_what_is_no_command_ends_with_2_and_the_usage(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as leaving:
            kir.main(words)
        assert leaving.value.code == 2
        assert "usage: kir" in capsys.readouterr().err


class TestRunning:
    def test_flags_reach_the_room(self, room: Callable[..., None]) -> None:
        seen: list[argparse.Namespace] = []
        room("train", lambda args: seen.append(args) or 0)
        assert kir.main(["train", "--size", "7"]) == 0
        assert (seen[0].command, seen[0].size) == ("train", 7)

    @pytest.mark.parametrize(("returned", "status"), [(0, 0), (None, 0), (1, 1), (5, 5)])
    def test_what_the_room_returns_is_the_status(
        self, room: Callable[..., None], returned: int | None, status: int
    ) -> None:
        room("bench", lambda args: returned)
        assert kir.main(["bench"]) == status

    def test_an_unknown_flag_shows_the_commands_usage(
        self, room: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        room("train", lambda args: 0)
        with pytest.raises(SystemExit) as leaving:
            kir.main(["train", "--size", "many"])
        assert leaving.value.code == 2
        assert "usage: kir train" in capsys.readouterr().err

    def test_commands_within_a_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def add(parser: argparse.ArgumentParser) -> None:
            parser.add_subparsers(dest="part", required=True).add_parser("setup").add_argument(
                "--dry-run", action="store_true"
            )

        module = ModuleType("convert.cli")
        seen: list[argparse.Namespace] = []
        module.add_convert_arguments = add  # type: ignore[attr-defined]
        module.run_convert = seen.append  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "convert.cli", module)
        assert kir.main(["convert", "setup", "--dry-run", "--debug"]) == 0
        assert (seen[0].part, seen[0].dry_run) == ("setup", True)


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (InputError("must be positive", where="--size", got=-1, fix="give 1 or more"), 2),
            (PoolExhausted("nothing left"), 2),
            (ConversionError("no file"), 2),
            (VerificationFailed("tau too low", got=0.91, allowed=">= 0.95"), 1),
        ],
    )
    def test_an_error_on_purpose_is_one_line(
        self, room: Callable[..., None], capsys: pytest.CaptureFixture[str], error: Exception, status: int
    ) -> None:
        room("verify", raising(error))
        assert kir.main(["verify"]) == status
        assert capsys.readouterr().err == f"kir verify: {error}\n"

    @pytest.mark.parametrize("words", [["--debug", "verify"], ["verify", "--debug"]])
    def test_debug_shows_the_trace(
        self, room: Callable[..., None], capsys: pytest.CaptureFixture[str], words: list[str]
    ) -> None:
        room("verify", raising(InputError("no")))
        assert kir.main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("Traceback")
        assert err.endswith("kir verify: no\n")

    def test_a_bug_is_never_hidden(self, room: Callable[..., None]) -> None:
        room("verify", raising(ZeroDivisionError("a bug")))
        with pytest.raises(ZeroDivisionError):
            kir.main(["verify"])

    def test_interrupted(self, room: Callable[..., None]) -> None:
        room("serve", raising(KeyboardInterrupt()))
        assert kir.main(["serve"]) == 130

    def test_interrupted_and_saved(self, room: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
        room("train", raising(Interrupted("stopped by SIGTERM", fix="resume to go on")))
        assert kir.main(["train"]) == 130
        assert capsys.readouterr().err == "kir train: stopped by SIGTERM; resume to go on\n"


class TestMissingPackages:
    @pytest.mark.parametrize(
        ("name", "package", "line"),
        [
            (
                "train",
                "torch.nn",
                "this command needs the package 'torch'; install it with: pip install 'kir-edge[train]'",
            ),
            (
                "convert",
                "tensorflow",
                "needs the package 'tensorflow'; install it with: pip install 'kir-edge[convert]'",
            ),
            ("serve", "faiss", "needs the package 'faiss'; install it with: pip install 'kir-edge[server]'"),
            ("demo", "torch", "needs the package 'torch'; install it with: pip install 'kir-edge[all]'"),
            ("convert", "onnx2tf", "needs the package 'onnx2tf'; install it with: kir convert setup"),
            ("swipe", "urllib3", "needs the package 'urllib3'; install it with: pip install kir-edge\n"),
        ],
    )
    def test_one_sentence_with_the_line_to_type(
        self, room: Callable[..., None], capsys: pytest.CaptureFixture[str], name: str, package: str, line: str
    ) -> None:
        room(name, raising(ModuleNotFoundError(f"No module named {package!r}", name=package)))
        assert kir.main([name]) == 2
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1

    def test_a_room_that_needs_it_on_import(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def import_module(name: str) -> ModuleType:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

        monkeypatch.setattr(kir.importlib, "import_module", import_module)
        assert kir.main(["train", "--help"]) == 2
        assert "kir-edge[train]" in capsys.readouterr().err

    def test_a_module_of_ours_that_is_not_there_is_a_bug(self, room: Callable[..., None]) -> None:
        room("train", raising(ModuleNotFoundError("No module named 'training.gone'", name="training.gone")))
        with pytest.raises(ModuleNotFoundError):
            kir.main(["train"])


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_a_path_that_cannot_be_used_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "below"
    assert kir.main(["simulate", "--out", str(out), "--users", "5", "--items", "100", "--days", "1"]) == 2
    assert "check the path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "swipe", "--cdn", "x", "--repeats", "0"],
        ["convert", "model", "x", "--out", "y", "--windows", "0"],
        ["demo", "--data", "events:/no/such/folder"],
    ],
)
def test_numbers_and_data_that_make_no_sense_are_refused_first(words, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert kir.main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
