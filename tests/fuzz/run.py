"""Fuzz every reader of foreign bytes, or some of them.

    python -m tests.fuzz.run --inputs 100000                       # all targets, some ten minutes of one core
    python -m tests.fuzz.run --inputs 1000                         # seconds
    python -m tests.fuzz.run --inputs 20000 --targets page,rows --seed 7 --out fuzz-out

Inputs are mutations of valid ones that know their shape (`mutations.py`), judged one by one (`judge.py`). Where atheris
is installed (Linux on x86-64) it keeps those that reach new code and mutates them further; elsewhere the pool is the
valid ones alone. Each target runs in a process of its own with a limit on its memory. What is found lies in
OUT/<target>/<name>; once mended, it belongs into tests/fuzz/corpus. Exit 1 when something was found.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # late: atheris has to see the rooms' modules when they are imported
    from tests.fuzz.judge import Finding, Target

NAMES = (
    "page", "session", "answer", "feedback_answer", "rows", "manifest", "pointer", "spec", "golden", "state",
    "trust", "active",
)  # fmt: skip
# Of the inputs, by what is at stake and what an input costs: a session runs graphs, a manifest is long; 1 for others.
SHARES = {
    "page": 6,
    "rows": 5,
    "answer": 5,
    "feedback_answer": 2,
    "pointer": 2,
    "spec": 1.5,
    "golden": 1.5,
    "state": 0.5,
    "trust": 0.7,
    "manifest": 0.7,
}
MEMORY_ABOVE_START_BYTES = 2 * 2**30
REPORT_EVERY_S = 15.0
REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = ("atheris", "plain")


class Tally:
    """Counts inputs, keeps the shortest input of each finding, and tells how far it is."""

    def __init__(self, target: Target, inputs: int, out: Path):
        self.target, self.inputs, self.out = target, inputs, out
        self.done = self.refused = 0
        self.findings: dict[tuple[str, str, str], Finding] = {}
        self._told = self._start = time.monotonic()

    def add(self, finding: Finding | None) -> bool:
        """Count one input; whether it was the last."""
        self.done += 1
        if finding is not None:
            known = self.findings.get(finding.key)
            if known is None or len(finding.data) < len(known.data):
                self.findings[finding.key] = finding
                self.save()  # a run may be broken off
        if time.monotonic() - self._told > REPORT_EVERY_S:
            self._told = time.monotonic()
            print(f"{self.target.name}: {self.done:,} of {self.inputs:,}, {len(self.findings)} found", flush=True)
        return self.done >= self.inputs

    def save(self) -> None:
        """Findings and the summary, below `out`."""
        folder = self.out / self.target.name
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for finding in self.findings.values():
            name = hashlib.sha256(finding.data).hexdigest()[:12]
            (folder / name).write_bytes(finding.data)
            lines.append({"file": name, "what": str(finding)})
        seconds = round(time.monotonic() - self._start, 1)
        summary = {"target": self.target.name, "inputs": self.done, "seconds": seconds, "found": lines}
        (self.out / f"{self.target.name}.json").write_text(json.dumps(summary, indent=2) + "\n")


def plain_inputs(target: Target, rng: random.Random) -> Iterator[bytes]:
    """Mutations of the seeds, for ever; the seeds themselves come first."""
    from tests.fuzz.mutations import mutate

    seeds = target.seeds()
    yield from seeds
    while True:
        yield mutate(target, rng.choice(seeds), rng)


def fuzz_plain(target: Target, tally: Tally, seed: int) -> None:
    """Judge mutations of the seeds; the same for the same seed."""
    from tests.fuzz.judge import Judge

    with Judge(target) as judge:
        for data in plain_inputs(target, random.Random(seed)):
            if tally.add(judge.judge(data)):
                return


def fuzz_atheris(target: Target, tally: Tally, seed: int, corpus: Path) -> None:
    """The same under libFuzzer, which keeps what reaches new code. Ends the process: libFuzzer never returns."""
    import atheris

    from tests.fuzz.judge import Judge
    from tests.fuzz.mutations import SIZE_MAX, mutate

    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    judge = Judge(target).__enter__()  # until the process ends

    def one(data: bytes) -> None:
        if tally.add(judge.judge(data)):
            tally.save()
            sys.stdout.flush()
            os._exit(0)

    def change(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)
        raw = atheris.Mutate(data, max_size) if rng.random() < 0.1 else mutate(target, data, rng)
        return bytes(raw[:max_size])

    flags = [f"-seed={seed + 1}", "-timeout=60", "-rss_limit_mb=0", "-verbosity=0"]
    flags += [f"-max_len={SIZE_MAX}", "-len_control=0"]  # 0: or it begins short, and cuts a valid message in two
    flags.append(f"-artifact_prefix={tally.out / target.name}-")
    atheris.Setup(["fuzz", *flags, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def run_child(name: str, inputs: int, seed: int, engine: str, out: Path) -> None:
    """One target in this process."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["contract", "edge"], enable_loader_override=False):
            from tests.fuzz.targets import TARGETS
    else:
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    target.seeds()
    start_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = start_bytes + MEMORY_ABOVE_START_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tally = Tally(target, inputs, out)
    if engine == "atheris":
        fuzz_atheris(target, tally, seed, out / "corpus" / name)
    fuzz_plain(target, tally, seed)
    tally.save()


def run_target(name: str, inputs: int, seed: int, engine: str, out: Path) -> dict[str, Any]:
    """One target in a process of its own. Returns its summary; a process that died is a finding."""
    (out / f"{name}.json").unlink(missing_ok=True)
    values = {"targets": name, "inputs": inputs, "seed": seed, "engine": engine, "out": out}
    flags = [part for flag, value in values.items() for part in (f"--{flag}", str(value))]
    command = [sys.executable, "-m", "tests.fuzz.run", "--child", *flags]
    with open(out / f"{name}.log", "wb") as log:  # libFuzzer's own account, and the trace of a process that died
        done = subprocess.run(command, check=False, stderr=log)
    try:
        summary: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    except FileNotFoundError:
        what = f"the process ended with {done.returncode}: {out / name}.log"
        return {"target": name, "inputs": 0, "seconds": 0.0, "found": [{"file": "", "what": what}]}
    return summary


def shares(names: list[str], inputs: int) -> dict[str, int]:
    """Inputs per target: `inputs` in all, at least."""
    weights = {name: SHARES.get(name, 1) for name in names}
    return {name: int(-(-inputs * weight // sum(weights.values()))) for name, weight in weights.items()}


def table(summaries: list[dict[str, Any]]) -> str:
    lines = [f"{'target':<16} {'inputs':>9} {'seconds':>8} {'found':>6}"]
    for s in summaries:
        lines.append(f"{s['target']:<16} {s['inputs']:>9,} {s['seconds']:>8.1f} {len(s['found']):>6}")
        lines += [f"    {found['what']} -> {found['file'] or '-'}" for found in s["found"]]
    found = sum(len(s["found"]) for s in summaries)
    return "\n".join([*lines, f"{sum(s['inputs'] for s in summaries):,} inputs, {found} found"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000, help="in all, over the targets (default 1000)")
    parser.add_argument("--targets", default=",".join(NAMES), help="some of: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    default = "atheris" if importlib.util.find_spec("atheris") else "plain"
    parser.add_argument("--engine", choices=ENGINES, default=default, help="default: atheris where it is installed")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="where findings go (default fuzz-out)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    names = args.targets.split(",")
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"unknown targets {unknown}; allowed: {NAMES}")
    if args.child:
        run_child(names[0], args.inputs, args.seed, args.engine, args.out)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    summaries = []
    for name, inputs in shares(names, args.inputs).items():
        print(f"{name}: {inputs:,} inputs, seed {args.seed}, {args.engine}", flush=True)
        summaries.append(run_target(name, inputs, args.seed, args.engine, args.out))
    print(table(summaries))
    return int(any(summary["found"] for summary in summaries))


if __name__ == "__main__":
    sys.exit(main())
