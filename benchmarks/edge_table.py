"""The table of `kir bench edge`, and the targets that it is read against."""

from __future__ import annotations

from typing import Any, NamedTuple


class Target(NamedTuple):
    """limit: the largest value that meets it, with `least` the smallest. A case without the figure is not judged."""

    limit: float
    words: str
    least: bool = False

    def verdict(self, value: float) -> str:
        """One line."""
        met = value >= self.limit if self.least else value <= self.limit
        bound = "at least" if self.least else "at most"
        return f"{'meets' if met else 'MISSES':<6} {self.words}: {value:.3g} ({bound} {self.limit:.3g})"


TARGETS = {
    "swipe_p50_us": Target(200.0, "a swipe, p50, µs"),
    "page_p50_us": Target(1_000.0, "page arrival, p50, µs"),
    "engine_share": Target(0.60, "the engine's share of a swipe", least=True),
    "over_litert": Target(1 / 4, "a swipe over the whole net in LiteRT"),
    "over_onnxruntime": Target(1 / 5, "… in onnxruntime"),
    "over_torch": Target(1 / 10, "… in torch eager"),
    "engine_over_floor": Target(3.0, "engine over the arithmetic floor"),
    # The gates of a quantised graph: `convert.report.Gates`.
    "kendall_tau": Target(0.98, "order beside the whole float net's, Kendall's tau", least=True),
    "top1": Target(0.97, "same first video as the whole float net", least=True),
    "over_linear": Target(1.0, "growth of a swipe over growth of N, the worst step"),
    "cold_start_ms": Target(150.0, "cold start to the first choice, ms"),
    "memory_mib": Target(10.0, "model and state, MiB"),
    "soak_growth_mib": Target(1.0, "memory grown from the first tenth of the soak to the last, MiB"),
    "soak_p99_ratio": Target(1.25, "p99 of the last tenth of the soak over that of the first"),
}
_SWIPES = {
    "swipe_us": "swipe: feedback in, next video out",
    "swipe_state_us": "… with a state file",
    "swipe_collected_us": "… with Python's collector at work",
}


def edge_table(result: dict[str, Any]) -> str:
    """A block for each L and N, then the targets that they meet or miss."""
    lines = [f"{result['model']['checkpoint']} on {result['machine']['cpu']}, one thread (kind: host); µs"]
    for case in result["cases"]:
        lines += ["", f"L {case['L']}, N {case['N']}{'':<28} {'p50':>8} {'p90':>8} {'p99':>8} {'x swipe':>8}"]
        rows = {words: case[name] for name, words in _SWIPES.items()}
        page = f"page/{case['bucket']}"
        rows[f"page arrival, {page} {case['variants'][page]}"] = case["page_us"]
        rows |= {f"engine alone: {name} {case['variants'][name]}": row for name, row in case["engine_us"].items()}
        for name, row in (rows | case["peers_us"]).items():
            over = row["p50"] / case["swipe_p50_us"]
            lines.append(f"{name:<42} {row['p50']:>8.0f} {row['p90']:>8.0f} {row['p99']:>8.0f} {over:>8.2f}")
        lines.append("Python's collector is off where the row does not say so: when it runs is the app's business")
        stages = "  ".join(f"{name} {value:.0f}" for name, value in case["stages_us"].items())
        lines.append(f"stages, p50: {stages}")
        work = f"{_millions(case, 'watch')} + {_millions(case, 'swipe')} M multiply-adds"
        lines.append(
            f"floor {case['floor_us']:.0f} µs ({work}); slates that the whole float net scored: {case['compared']}"
        )
        lines += [f"  {target.verdict(case[name])}" for name, target in TARGETS.items() if name in case]
        if "soak" in case:
            soak = case["soak"]
            memory = soak["resident_mib"]
            lines.append(
                f"  soak of {soak['swipes']} swipes, collector on: resident {memory[0]:.1f} → {memory[-1]:.1f} MiB;"
                f" p99 {soak['first_tenth_us']['p99']:.0f} → {soak['last_tenth_us']['p99']:.0f}"
            )
    return "\n".join(lines)


def _millions(case: dict[str, Any], graph: str) -> str:
    return next(f"{n / 1e6:.2f}" for key, n in case["multiply_adds"].items() if key.startswith(graph))
