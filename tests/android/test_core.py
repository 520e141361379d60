"""android/core, the swipe in plain Java: equal to the Python edge, function by function and step by step of whole
sessions, and mistakes planted in it are found.
"""

from __future__ import annotations

import filecmp
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.jvm.__main__ import main, write_vectors
from contract.errors import InputError
from edge import InstalledModel
from tests.android import jvm

pytestmark = jvm.needs_jdk
MAIN = "kir.edge.core.VectorCheck"
SESSIONS = ("ageing", "beam", "gaps", "golden", "late-rows", "no-model", "preloaded", "topics")
PACKAGE = Path("kir/edge/core")


def lines_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Case -> "ok" or "DIFFERS"."""
    words = [line.split(" ") for line in done.stdout.splitlines()]
    assert not done.stderr, done.stderr
    return {word[1]: word[0] for word in words}


def test_the_core_agrees_with_python_in_every_function_and_session(classes: Path, vectors: Path) -> None:
    done = jvm.run_java([classes], MAIN, vectors)
    found = lines_of(done)
    assert set(found.values()) == {"ok"}, done.stdout
    expected = {f"rows/{encoding}" for encoding in ("int8", "float16", "float32")}
    expected |= {f"pool/{block}_rows" for block in ("user", "candidate", "watched")}
    expected |= {
        f"dense/{block}"
        for block in ("user_dense", "candidate_dense", "watched_dense", "swipe_dense", "candidate_swipe")
    }
    expected |= {f"beam/{number}" for number in range(12)} | {f"session-{name}" for name in SESSIONS}
    expected |= {"fused", "best/20"}
    assert {name for name in found if not name.startswith(("since", "behind", "refused"))} == expected
    assert {name.partition("/")[0] for name in found} >= {"since", "behind"}
    assert len([name for name in found if name.startswith("refused/")]) == 32
    assert done.returncode == 0


def test_the_sessions_try_what_they_say(vectors: Path) -> None:
    """A scenario that never reaches its subject would agree with anything."""
    text = {name: (vectors / f"session-{name}.txt").read_text() for name in SESSIONS}
    assert " place N" in text["beam"]
    assert " place N" in text["gaps"]
    told = "".join(text[name] for name in ("gaps", "topics", "preloaded"))
    relaxed = {word for line in told.splitlines() for word in line.split(" ")[4:5]}
    assert {"topic", "author", "topic,author"} <= relaxed
    assert any(word.endswith("preloaded") for word in relaxed)
    for outcome in ("APPENDED", "AMENDED", "LOGGED", "STALE", "UNKNOWN"):
        assert f"expect {outcome} " in text["gaps"] + text["beam"] + text["preloaded"], outcome
    assert "watch T3" in text["gaps"]  # rebuilt after an eviction
    for reason in ("version_mismatch", "spec_mismatch", "rows_status:no_live_version", "exhausted"):
        assert f"expect {reason}" in text["ageing"]
    assert "server_order no_model" in text["no-model"]


# What a port gets wrong: file, right, wrong. Each is found by another of the sessions or functions.
MISTAKES = {
    "a tie goes to the later candidate": ("Fusion", "values[i] > values[best]", "values[i] >= values[best]"),
    "eviction shifts the cache instead of rebuilding it": (
        "WatchedList",
        "new Change(1, half)",
        "new Change(length, half)",
    ),
    "a bound is inclusive": ("Buckets", "bounds[index] <= value", "bounds[index] < value"),
    "unknown feeds a weight": ("Features", "state == 0 ? -1 : state", "state"),
    "null is a zero": ("Features", "signal >= 0 ? 1.0f : 0.0f", "1.0f"),
    "the logit is not clipped": ("Features", "Math.min(Math.max(logit, -LOGIT_CLIP), LOGIT_CLIP)", "logit"),
    "the gap runs to now": ("WatchedList", "item.shownAtMs - before", "item.shownAtMs"),
    "the average counts empty places": ("Features", "out[at + d] /= count", "out[at + d] /= slots.width"),
    "no entry at all is a zero row": ("Features", "if (count == 0)", "if (count == 99)"),
    "the scale is of the wrong row": ("RowTable", "i / width * 2", "i % width * 2 % scales.length"),
    "subnormal halves are zero": ("RowTable", "fraction * (1.0f / (1 << 24))", "0 * fraction"),
    "a start token has no row": (
        "WatchedRows",
        "System.arraycopy(features.startRow",
        "System.arraycopy(new float[width]",
    ),
    "rows of the request are not taken": ("WatchedRows", "(row != null || first == 0)", "first == 0"),
    "rows do not move with an eviction": ("WatchedRows", "(1 + dropped) * width, rows", "width, rows"),
    "a stale cache is kept": ("WatchCache", "slot < fresh", "slot < fresh - 1"),
    "the mask is of other slots": (
        "WatchCache",
        "Arrays.fill(pastMask, first, end",
        "Arrays.fill(pastMask, first, first",
    ),
    "keys go to another plane": ("WatchCache", "(plane * slots + first)", "(plane * slots)"),
    "a shown video comes again": ("CandidatePool", "!seen.contains(page.videoId[i])", "i >= 0"),
    "TTLs in swipes do not count": ("CandidatePool", "held.swipes++", "held.swipes += 0"),
    "the hard TTL hides the last tier": ("CandidatePool", "fresh.isEmpty() ? pages : fresh", "fresh"),
    "the best go when there are too many": (
        "CandidatePool",
        "Float.compare(value, other.value)",
        "-Float.compare(value, other.value)",
    ),
    "soft TTL is never seen": (
        "PooledPage",
        "return expired(config.softTtlSwipes, page.softTtlMs",
        "return expired(0, 1L << 60",
    ),
    "the author gap looks too far": ("Limits", "age <= policy.authorGap", "age <= policy.authorGap + 1"),
    "author gives way first": ("Limits", "if (any(byAuthor))", "if (any(byTopic) && false)"),
    "a missing tag is shared": ("Limits", "tags.remove(Vocabulary.MISSING_KEY)", "tags.size()"),
    "preloading never gives way": ("Limits", 'relaxed.add("preloaded")', "relaxed.size()"),
    "the beam forgets survival": ("Beam", "survive[one.list] * next", "1.0 * next"),
    "the beam shows a video twice": ("Beam", "&& !holds(lists.get(list), item)", ""),
    "lists above the graph's beams are lost": ("Ahead", "lists.subList(at, Math", "lists.subList(0, Math"),
    "placed keys are of another slot": ("Ahead", "list * model.placed + slot", "list * model.placed"),
    "an older revision stands": ("Impression", "told <= (before == null ? -1 : before)", "told < 0"),
    "an amendment goes nowhere": ("SwipeSession", "reranker.changed(change);\n            refresh();", ""),
    "the position does not count": ("SwipeSession", "pendingNumber = position++", "pendingNumber = position"),
    "an id may come twice": ("Page", "&& ids.add(videoId[i])", ""),
    "numbers that are none are decoded": ("RowTable", "!(Math.abs(out[i]) <= ABS_MAX)", "Math.abs(out[i]) > ABS_MAX"),
    "a row past its table is read": ("Slots", "row >= tableRows", "row > tableRows"),
    "another model's page is scored": ("Model", "!page.denseVersion.equals(denseVersion)", "false"),
}


def plant(folder: Path, file: str, right: str, wrong: str) -> Path:
    """The file with the mistake, in a folder of its own."""
    source = (jvm.CORE / "main" / "java" / PACKAGE / f"{file}.java").read_text()
    assert right in source, "the planted mistake has nothing to replace"
    folder.mkdir()
    mutant = folder / f"{file}.java"
    mutant.write_text(source.replace(right, wrong, 1))
    return mutant


@pytest.mark.slow
def test_every_planted_mistake_is_found(classes: Path, vectors: Path, tmp_path: Path) -> None:
    """All in one JVM, which compiles them one by one."""
    mutants = [plant(tmp_path / str(number), *mistake) for number, mistake in enumerate(MISTAKES.values())]
    command = ["java", str(Path(__file__).with_name("Mutants.java")), str(classes), str(vectors), *map(str, mutants)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    states = dict(zip(MISTAKES, done.stdout.split(), strict=True))
    assert {name for name, state in states.items() if state != "found"} == set()


def test_the_check_itself_needs_the_recorded_numbers(classes: Path, vectors: Path, tmp_path: Path) -> None:
    """A last bit of an expected row, and of a graph's recorded input: both are seen."""
    for name in ("model.txt", "cases.txt", "session-golden.txt"):
        (tmp_path / name).write_bytes((vectors / name).read_bytes())
    for file, array, index in (("cases", "rows/int8/expected", 5), ("session-golden", "run0/in/watched_dense", 0)):
        with np.load(vectors / f"{file}.npz") as arrays:
            spoilt = dict(arrays)
        spoilt[array] = spoilt[array].copy()
        spoilt[array].flat[index] += 1e-5
        np.savez(tmp_path / f"{file}.npz", **spoilt)
    found = lines_of(jvm.run_java([classes], MAIN, tmp_path))
    assert {name for name, state in found.items() if state == "DIFFERS"} == {"rows/int8", "session-golden"}


@pytest.mark.slow
def test_the_same_model_gives_the_same_vectors(tiny_cdn: Path, vectors: Path, tmp_path: Path) -> None:
    write_vectors(InstalledModel.open_published(tiny_cdn / "models" / "kir-a"), tmp_path / "again")
    names = [path.name for path in vectors.iterdir()]
    assert filecmp.cmpfiles(vectors, tmp_path / "again", names, shallow=False)[0] == names


def test_a_folder_that_holds_something_is_left_alone(
    tiny_cdn: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in vectors.iterdir())
    assert main([str(tiny_cdn), str(vectors)]) == 2
    assert "folder is not empty" in capsys.readouterr().err
    assert sorted(path.name for path in vectors.iterdir()) == before
    with pytest.raises(InputError, match="folder is not empty"):
        write_vectors(InstalledModel.open_published(tiny_cdn), vectors)


@pytest.mark.slow
def test_a_model_without_served_rows_agrees_as_well(tiny_cdn: Path, classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "pxtr"
    write_vectors(InstalledModel.open_published(tiny_cdn / "models" / "kir-pxtr"), out)
    done = jvm.run_java([classes], MAIN, out)
    found = lines_of(done)
    assert done.returncode == 0, done.stdout
    assert {f"session-{name}" for name in SESSIONS} <= set(found)
