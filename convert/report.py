"""The verification report: frozen, prints a table, gives a dict, saves itself."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import InputError, VerificationFailed
from convert.measure import Distance, OutcomeGap, Ranking
from convert.quantize import FLOAT

FORMAT = "kir-verification/1"
FLOAT_TOLERANCE, INT8_TOLERANCE = 1e-5, 1e-4
FLOAT_MARGIN, INT8_MARGIN = 8.0, 1.0
TIMES = ("latency_us", "latency_p50_us")
ONNX = "onnx"
SHARES = ("tau", "top1", "cosine")  # gates that no model passes above 1


@dataclass(frozen=True)
class Gates:
    """float_max_abs: ONNX and TFLite float against torch. halves_max_abs: page + watch + swipe against the whole net.
    tau, top1: mean Kendall tau and agreement of the first, of the value that ranks, for quantised graphs.
    gauc_loss: of real outcomes; missed when the whole interval lies below it, which a few pages never show.
    gauc_abs: of real outcomes; missed when the mean change is larger, up or down. 1 is no bound: the mean of a few
    pages strays by more than any bound worth stating.
    snr_db: of each graph's outputs: what ranks well on the average page may still be noise on some.
    cosine: of the outputs, for models that rank nothing."""

    float_max_abs: float = 1e-4
    halves_max_abs: float = 1e-4
    tau: float = 0.98
    top1: float = 0.97
    gauc_loss: float = 0.002
    gauc_abs: float = 1.0
    snr_db: float = 15.0
    cosine: float = 0.999

    def changed(self, settings: Sequence[str]) -> Gates:
        """With `NAME=VALUE` in place of a default: "tau=.985".

        Raises InputError for an unknown name, what is no number, a share above 1, or a bound below 0.
        """
        values = asdict(self)
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in values:
                raise InputError("no such gate", got=setting, allowed=sorted(values), fix="say: --gate tau=0.985")
            try:
                values[name] = value = float(text)
            except ValueError:
                raise InputError("a gate's bound is a number", got=setting, fix=f"--gate {name}=NUMBER") from None
            most = 1.0 if name in SHARES else math.inf
            if not 0.0 <= value <= most:  # nan as well
                raise InputError("a gate's bound is out of range", got=setting, allowed=f"0 … {most:g}")
        return Gates(**values)


@dataclass(frozen=True)
class VariantReport:
    """One file. latency_us: 20th percentile, set inputs + invoke + get outputs, one thread; 0 = not measured.

    left_out: operators that XNNPACK does not run; None = not counted.
    outcomes: what the variant does to known outcomes; None where there are none, and for files that are no variant.
    """

    graph: str
    variant: str
    max_abs: float
    mean_abs: float
    cosine: float
    snr_db: float
    tau: float
    top1: float
    top6: float
    n_bytes: int
    latency_us: float
    latency_p50_us: float
    partitions: int
    passed: bool
    integer: bool = False
    outcomes: OutcomeGap | None = None
    left_out: int | None = None

    @staticmethod
    def of(
        graph: str,
        variant: str,
        found: Distance,
        ranks: Ranking | None,
        n_bytes: int,
        times_us: Sequence[float] = (),
        partitions: int = 0,
        *,
        passed: bool,
        integer: bool = False,
        outcomes: OutcomeGap | None = None,
        left_out: int | None = None,
    ) -> VariantReport:
        ranks = ranks or Ranking(1.0, 1.0, 1.0)
        p20, p50 = (times_us[len(times_us) // 5], times_us[len(times_us) // 2]) if times_us else (0.0, 0.0)
        return VariantReport(
            graph, variant, **asdict(found), **asdict(ranks), n_bytes=n_bytes, latency_us=round(p20, 2),
            latency_p50_us=round(p50, 2), partitions=partitions, passed=passed, integer=integer, outcomes=outcomes,
            left_out=left_out,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """What was not measured is null: the time of an ONNX file."""
        times = {name: getattr(self, name) or None for name in TIMES}
        return {**asdict(self), **times}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> VariantReport:
        times = {name: data[name] or 0.0 for name in TIMES}
        return VariantReport(**{**data, **times, "outcomes": OutcomeGap.from_json(data["outcomes"])})


@dataclass(frozen=True)
class Verification:
    """What was measured and what ships. together, outcomes: of all shipped variants at once. failed: (graph, recipe,
    why there is no such variant). ranked: whether the model orders anything; else tau and its like say nothing."""

    rows: tuple[VariantReport, ...]
    shipped: Mapping[str, str]
    together: Ranking
    halves_max_abs: float
    gates: Gates
    n_samples: int
    data: str
    outcomes: OutcomeGap | None = None
    failed: tuple[tuple[str, str, str], ...] = ()
    ranked: bool = True

    def row(self, graph: str, variant: str) -> VariantReport:
        return next(row for row in self.rows if (row.graph, row.variant) == (graph, variant))

    def tolerance(self, graph: str, variant: str) -> float:
        """How far another CPU's outputs may lie from the golden ones.

        Float arithmetic, also on dequantised weights: eight times what ONNX, LiteRT and torch differ by here. int8
        products: most inputs give the same, but an activation at a rounding border takes another step, and layers on
        it is up to 0.6 of the variant's own error (arm64 against x86): neither strays further than that from float.
        """
        row = self.row(graph, variant)
        if row.integer:
            return max(INT8_TOLERANCE, INT8_MARGIN * row.max_abs)
        return max(FLOAT_TOLERANCE, FLOAT_MARGIN * self.row(graph, FLOAT).max_abs)

    @property
    def shipped_bytes(self) -> int:
        """What a phone downloads: shipped variants of every graph but `whole`."""
        return sum(self.row(k, v).n_bytes for k, v in self.shipped.items() if not k.startswith("whole"))

    @property
    def kept(self) -> str:
        """What is kept of float torch by all that ships together, in words."""
        if self.ranked:
            return f"tau {self.together.tau:.4f}, top-1 {self.together.top1:.3f}"
        return f"cosine {min(self.row(key, variant).cosine for key, variant in self.shipped.items()):.6f}"

    @property
    def left_in_float(self) -> tuple[str, ...]:
        """Graphs of which every quantised variant that was asked for misses the gates or is not possible."""
        asked = {row.graph for row in self.rows if row.variant not in (FLOAT, ONNX)} | {
            key for key, _, _ in self.failed
        }
        passed = {row.graph for row in self.rows if row.variant not in (FLOAT, ONNX) and row.passed}
        return tuple(key for key in self.shipped if key in asked - passed)

    def hold_quantised(self) -> None:
        """Raises VerificationFailed where a graph would ship in float for want of a variant that passes."""
        if self.left_in_float:
            raise VerificationFailed(
                "nothing quantised passes", got=", ".join(self.left_in_float), allowed="none, with --no-float",
                fix="without --no-float these ship in float32; other recipes: --auto size",
            )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **asdict(self),
            "rows": [row.to_json() for row in self.rows],
            "shipped": dict(self.shipped),
            "shipped_bytes": self.shipped_bytes,
            "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Verification:
        return Verification(
            rows=tuple(VariantReport.from_json(row) for row in data["rows"]),
            shipped=dict(data["shipped"]),
            together=Ranking(**data["together"]),
            halves_max_abs=float(data["halves_max_abs"]),
            gates=Gates(**data["gates"]),
            n_samples=int(data["n_samples"]),
            data=str(data["data"]),
            outcomes=OutcomeGap.from_json(data["outcomes"]),
            failed=tuple((str(graph), str(recipe), str(why)) for graph, recipe, why in data["failed"]),
            ranked=bool(data.get("ranked", True)),
        )

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.write_text(json.dumps(self.to_json(), indent=2, sort_keys=True) + "\n")
        return path

    def table(self) -> str:
        """One line per file; * = ships. The time is what decides: the 20th percentile."""
        right = (("bytes", 8), ("p20 us", 7), ("max abs", 9), ("SNR dB", 6), *(
            (("tau", 7), ("top-1", 6), ("top-6", 6)) if self.ranked else (("cosine", 9),)
        ), ("GAUC", 8), ("parts", 5))  # fmt: skip
        head = f"{'graph':<11} {'variant':<17} " + " ".join(f"{name:>{width}}" for name, width in right)
        lines = [head, "-" * len(head)]
        for row in self.rows:
            mark = "*" if self.shipped.get(row.graph) == row.variant else " " if row.passed else "!"
            gap = "" if row.outcomes is None else f"{row.outcomes.gauc.mean:+.4f}"
            time = f"{row.latency_us:.0f}" if row.latency_us else "–"
            ranks = f"{row.tau:>7.4f} {row.top1:>6.3f} {row.top6:>6.3f}" if self.ranked else f"{row.cosine:>9.6f}"
            pieces = "–" if row.variant == ONNX else row.partitions
            lines.append(
                f"{row.graph:<11} {row.variant + mark:<17} {row.n_bytes:>8} {time:>7} "
                f"{row.max_abs:>9.2g} {row.snr_db:>6.0f} {ranks} {gap:>8} {pieces:>5}"
            )
        lines += [f"{graph:<11} {recipe:<17} not possible: {why}" for graph, recipe, why in self.failed]
        parts = {row.graph.split("/")[0] for row in self.rows}
        cut = f"cut against whole {self.halves_max_abs:.2g}; " if "whole" in parts and len(parts) > 1 else ""
        lines.append(
            f"together: {self.kept}; {cut}{self.shipped_bytes} bytes to a phone; {self.n_samples} samples: {self.data}"
        )
        if self.outcomes is not None:
            lines.append(f"outcomes, shipped minus float: {self.outcomes}")
        if self.left_in_float:
            lines.append(
                f"nothing quantised passes, float32 ships: {', '.join(self.left_in_float)} (kir convert debug names "
                "the layer, --auto size mends, --no-float ends with status 1)"
            )
        lines.append("* ships, ! misses the gate; GAUC: variant minus float, of what users watched long")
        return "\n".join(lines)

    def outcomes_table(self) -> str:
        """One line per file with known outcomes: GAUC and nDCG@5, variant minus float, with 95 % intervals."""
        known = [row for row in self.rows if row.outcomes is not None]
        if not known:
            return "no outcomes: the data do not say what users watched long"
        return "\n".join(f"{row.graph:<11} {row.variant:<17} {row.outcomes}" for row in known)
