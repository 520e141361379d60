"""The model card that is published: the training card with what conversion measured."""

from __future__ import annotations

from collections.abc import Mapping

from convert.report import Verification
from convert.source import KirSource


def model_card(source: KirSource, report: Verification) -> str:
    """Markdown. Facts only: what it is, what it takes, how it was checked, what it is not for."""
    spec, capacities = source.spec, source.capacities
    n_files = sum(not key.startswith("whole") for key in report.shipped)
    facts: dict[str, object] = {
        "dense version": source.dense_version,
        "rows revision": source.rows_revision,
        "feature spec": f"{spec.name}, fingerprint {spec.fingerprint}, {len(spec.fields)} fields",
        "watched list": f"{capacities['L']} videos",
        "candidates": f"buckets {capacities['N']}",
        "value": _sum(source.fusion),
        "size on a phone": f"{report.shipped_bytes} bytes in {n_files} files",
        "verified on": f"{report.n_samples} windows ({report.data})",
        "kept of float torch": report.kept,
    }
    if source.list_reward is not None:
        reward = source.list_reward
        facts["value in a list"] = f"{_sum(reward.value)}; s = Π σ({reward.survival}) of those before"
    lines = [
        f"# KIR {source.dense_version}",
        "",
        "Reranks the candidates of a page at every swipe, on the device, from what has just been watched.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "Scores of two dense versions are not comparable. Latency is the converting machine's, not a phone's.",
        "",
        "## Conversion",
        "",
        "```",
        report.table(),
        "```",
    ]
    if source.card.strip():
        lines += ["", "## Training", "", source.card.strip().replace("\n# ", "\n### ").removeprefix("# ")]
    return "\n".join(lines) + "\n"


def _sum(weights: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:g}·σ({task})" for task, weight in weights.items())
