"""What 256 items cost the server as 55 tokens, answer after answer, beside raw 64 and raw 256: paper 2.3, as served.

    kir bench windows                        # preset paper, 5 new positives between two answers: half a minute
    kir bench windows --positives 1 2 5 10 20 --json windows.json

The server's own `Retrieval.encode` on histories that grow: rows are looked up, graphs run in onnxruntime on one thread.
Arms take turns on the same histories (random weights and rows, which cost what trained ones do): raw 64 and raw 256
whole, 256 compressed whole, and 256 compressed with windows kept between answers. An answer that makes windows anew
counts as it is; means are over all answers, so what is seldom and dear is in them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stats import machine, percentiles
from contract.catalogue import Catalogue, write_catalogue
from contract.errors import InputError
from contract.history import UserHistory
from contract.vocabulary import MISSING_KEY, TAGS_MAX

N_ITEMS, USERS, GAP_MS = 2_000, 8, 60_000
TARGET = 1.15  # of raw 64
RAW_64, RAW_256, WHOLE, KEPT = "raw 64", "raw 256", "256 compressed, whole", "256 compressed, windows kept"


def measure_windows(
    preset: str = "paper", *, positives: Sequence[int] = (5,), answers: int = 96, seed: int = 0, command: str = ""
) -> tuple[dict[str, Any], str]:
    """positives: new ones between two answers of a user; answers: timed of each arm. Returns the result and its table.

    Raises InputError for numbers below 1 and an unknown preset.
    """
    if answers < USERS or any(one < 1 for one in positives) or not positives:
        raise InputError("--answers starts at 8, --positives at 1", got=(answers, tuple(positives)))
    with tempfile.TemporaryDirectory() as folder:
        arms = _arms(Path(folder), preset, seed)
        cases = [_case(arms, many, answers, seed) for many in positives]
    result = {
        "benchmark": "windows", "kind": "host", "command": command, "machine": machine(), "preset": preset,
        "settings": {"answers": answers, "users": USERS, "items": N_ITEMS, "seed": seed}, "target": TARGET,
        "cases": cases,
    }  # fmt: skip
    return result, _table(result)


def _arms(folder: Path, preset: str, seed: int) -> dict[str, Callable[[UserHistory, int], Any]]:
    """name -> one answer for a user's history, as the server gives it."""
    plans: dict[str, dict[str, Any]] = {
        RAW_64: {"windows": (), "latest": 64}, RAW_256: {"windows": (), "latest": 256}, WHOLE: {},
    }  # fmt: skip
    encode = {name: _retrieval(folder / str(n), preset, plan, seed) for n, (name, plan) in enumerate(plans.items())}
    return {name: partial(_whole, one) for name, one in encode.items()} | {KEPT: encode[WHOLE]}


def _whole(encode: Callable[[UserHistory, int | None], Any], history: UserHistory, user: int) -> Any:
    return encode(history, None)


def _retrieval(folder: Path, preset: str, plan: dict[str, Any], seed: int) -> Callable[[UserHistory, int | None], Any]:
    import torch

    from convert.retrieval import write_retrieval
    from server_stub.retrieve import Retriever
    from training.checkpoint import save_checkpoint
    from training.kuaiformer import KuaiFormer, preset_config
    from training.tables import SparseTables

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config = preset_config(preset, **plan)
    spec, ids = config.spec(), np.arange(1, N_ITEMS + 1, dtype=np.uint64)
    keys = {field.table: ids for field in spec.fields if field.table}
    saved = save_checkpoint(
        folder / "checkpoint", kind="kuaiformer", model=KuaiFormer(config, spec), spec=spec, metrics={}, card_text="",
        tables=SparseTables.from_spec_and_keys(spec, keys, seed=seed), model_config=config.to_dict(), training={},
    )  # fmt: skip
    nothing = np.full(N_ITEMS, -1)
    catalogue = Catalogue(
        ids, ids % np.uint64(97) + np.uint64(1), np.full((N_ITEMS, TAGS_MAX), MISSING_KEY), nothing.astype(np.int32),
        nothing.astype(np.int64),
    )  # fmt: skip
    write_catalogue(folder / "catalogue.parquet", catalogue)
    write_retrieval(folder / "out", checkpoint=saved.path, catalogue=folder / "catalogue.parquet")
    found: Callable[[UserHistory, int | None], Any] = Retriever.load(folder / "out").retrieval.encode
    return found


def _case(
    arms: dict[str, Callable[[UserHistory, int], Any]], positives: int, answers: int, seed: int
) -> dict[str, Any]:
    """The arms take turns, all users a turn; their histories are full and grow by `positives` between two answers."""
    rng = np.random.default_rng(seed)
    histories, watched = [UserHistory(256) for _ in range(USERS)], [0] * USERS

    def watch(user: int, many: int) -> None:
        for _ in range(many):
            item = {"video_id": np.uint64(rng.integers(1, N_ITEMS + 1)), "play_time_ms": int(rng.integers(60_000))}
            histories[user].append(item, GAP_MS * watched[user])
            watched[user] += 1

    for user in range(USERS):
        watch(user, 256)
        for arm in arms.values():
            arm(histories[user], user)  # a user's first answer, and what warms the graphs
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(-(-answers // USERS)):
        for user in range(USERS):
            watch(user, positives)
        for name, arm in arms.items():  # a server holds one model: its weights are in the caches from the second on
            for user in range(USERS):
                start = time.perf_counter()
                arm(histories[user], user)
                times[name].append((time.perf_counter() - start) * 1e6)
    told = {name: percentiles(values) | {"mean": float(np.mean(values))} for name, values in times.items()}
    base = _ratios(times, RAW_64)
    return {"positives": positives, "us": told, "over_raw_64": base, "met": base[KEPT] <= TARGET}


def _ratios(times: dict[str, list[float]], base: str) -> dict[str, float]:
    """Means over that of `base`, each without its slowest twentieth: what the machine did meanwhile."""

    def mean(values: Sequence[float]) -> float:
        ordered: NDArray[np.float64] = np.sort(values)
        return float(ordered[: max(1, len(ordered) * 19 // 20)].mean())

    return {name: mean(values) / mean(times[base]) for name, values in times.items()}


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"KuaiFormer's encoder as served, preset {result['preset']}, random weights, on {result['machine']['cpu']}, "
        "one thread; µs an answer"
    ]
    for case in result["cases"]:
        lines += [
            "",
            f"{case['positives']} new positives between two answers".ljust(40) + "mean      p50      p99   × raw 64",
        ]
        for name, us in case["us"].items():
            ratio = case["over_raw_64"][name]
            lines.append(f"{name:<36} {us['mean']:>8.0f} {us['p50']:>8.0f} {us['p99']:>8.0f} {ratio:>10.2f}")
        met = "meets " if case["met"] else "MISSES"
        lines.append(f"  {met} windows kept over raw 64: {case['over_raw_64'][KEPT]:.2f} (at most {TARGET})")
    return "\n".join(lines)
