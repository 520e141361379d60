"""The JDK's compiler and JVM, small and quick: one thread's worth of heap and no optimiser for two seconds of work."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

ANDROID = Path(__file__).resolve().parents[2] / "android"
CORE = ANDROID / "core" / "src"
LIGHT = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
# Java 8 is what D8 takes for minSdk 24 without help; a warning is an error, as in Gradle.
COMPILE = ("--release", "8", "-Werror", "-proc:none", "-encoding", "UTF-8")

needs_jdk = pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK: apt-get install default-jdk-headless")


def sources(*folders: str) -> list[Path]:
    """Java files of android/core's source sets ("main", "check"); at least one each."""
    found = []
    for folder in folders:
        files = sorted((CORE / folder / "java").rglob("*.java"))
        assert files, folder
        found += files
    return found


def compile_java(files: Iterable[Path], out: Path, classpath: Iterable[Path] = (), lint: str = "all,-options") -> None:
    """Fails the test with the compiler's words. lint: of -Xlint; "none" for code that a tool wrote."""
    path = ["-cp", ":".join(map(str, classpath))] if classpath else []
    command = [
        "javac",
        *(f"-J{flag}" for flag in LIGHT),
        *COMPILE,
        f"-Xlint:{lint}",
        *path,
        "-d",
        str(out),
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


def run_java(classpath: Iterable[Path], main: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["java", *LIGHT, "-cp", ":".join(map(str, classpath)), main, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
