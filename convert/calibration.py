"""Calibration: what real pages feed every graph, where they come from, and the ranges of activations they make.

A recipe that fixes the ranges of activations has to see them first. Ranges are the least and greatest values over all
pages: the quantizer's own moving average forgets the loud page, and its clipped values cost ten times the largest error
(docs/conversion.md). Pages must be none that verification uses; made-up ones are taken only when asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConversionError, InputError
from contract.events import Events
from convert import flatbuffer
from convert.chain import Feeds
from convert.files import sha256_of
from convert.quantize import Ranges
from convert.quiet import quiet
from convert.subject import Subject

PAGES = 100
SLACK = 0.1  # of a calibrated range, by which other pages may exceed it


@dataclass(frozen=True)
class CalibrationSource:
    """What the pages were drawn from, so that they can be drawn again.

    name       file or directory, without its path
    sha256     of the file's content; of a directory, over the names and hashes of its files; "" for stand-ins
    pages      how many were drawn; seed: with which
    synthetic  stand-ins, asked for by name
    """

    name: str
    sha256: str
    pages: int
    seed: int
    synthetic: bool = False

    @staticmethod
    def of(data: Any, pages: int, seed: int, *, allow_synthetic: bool = False) -> CalibrationSource:
        """data: as `--data` has it (a file, a directory, KIND:PATH), Events, or None for stand-ins.

        Raises InputError for stand-ins that were not asked for, and for a path that is not there.
        """
        if pages < 1:
            raise InputError("calibration takes one page or more", where="--calibrate", got=pages)
        if data is None:
            if not allow_synthetic:
                raise InputError(
                    "recipe needs calibration, and there are no real pages to calibrate on",
                    fix="give a log with --data, or take made-up pages with --allow-synthetic",
                )
            return CalibrationSource("synthetic", "", pages, seed, synthetic=True)
        if isinstance(data, Events):
            return CalibrationSource("events", _sha256_of_events(data), pages, seed)
        path = Path(data)
        if not path.exists() and ":" in str(data):
            path = Path(str(data).partition(":")[2])
        return CalibrationSource(path.name, _sha256_of_path(path), pages, seed)


@dataclass(frozen=True)
class CalibrationSet:
    """feeds: graph key -> what each page fed it, in order; graphs that no page reached are absent."""

    source: CalibrationSource
    feeds: Mapping[str, Sequence[Feeds]] = field(repr=False)

    @staticmethod
    def record(subject: Subject, source: CalibrationSource) -> CalibrationSet:
        """Run the chain in eager torch on every sample of a subject, and keep what each graph was fed."""
        runs = {key: graph.run for key, graph in subject.graphs.items()}
        feeds: dict[str, list[Feeds]] = {}
        for sample in range(len(subject)):
            subject.run(sample, runs, feeds)
        return CalibrationSet(source, feeds)

    def to_json(self) -> dict[str, Any]:
        """What the artifact carries: the source, and how often each graph ran."""
        return {**asdict(self.source), "runs": {key: len(many) for key, many in sorted(self.feeds.items())}}


def activation_ranges(float_path: str | Path, feeds: Sequence[Feeds]) -> Ranges:
    """Least and greatest value of every activation over all feeds, by tensor name, as the quantizer takes them.

    Arrays [1, ..., 1] of the tensor's rank. Raises ConversionError when there is nothing to run on, or a feed does not
    fit.
    """
    if not feeds:
        what = "no calibration page reaches this graph"
        raise ConversionError(what, where=Path(float_path).name, fix="calibrate with more pages")
    with quiet(f"calibration of {Path(float_path).name}"):
        from ai_edge_quantizer import calibrator
        from ai_edge_quantizer.utils import qsv_utils

        # The other mode asks Python for every tensor of every layer: twenty times slower, the same numbers.
        job = calibrator.Calibrator(
            str(float_path),
            num_threads=1,
            mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
            qsv_update_func=qsv_utils.min_max_update,
        )
        (signature,) = job.get_signature_list()
        job.calibrate({signature: list(feeds)}, None)
        found = job.get_model_qsvs()
    return _ranked(found, Path(float_path))


def not_covered(held: Ranges, seen: Ranges) -> str:
    """What calibration missed: which activations reach further than it saw, by more than a tenth of its range; "" for
    none. Values beyond the range are clipped, which is how a bad calibration set shows."""
    beyond: dict[str, float] = {}
    for name in held.keys() & seen.keys():
        (low, high), (least, most) = _ends(held[name]), _ends(seen[name])
        width = max(high - low, float(np.finfo(np.float32).tiny))
        beyond[name] = max(low - least, most - high, 0.0) / width
    far = [name for name, share in beyond.items() if share > SLACK]
    if not far:
        return ""
    worst = max(far, key=lambda name: (beyond[name], name))
    (low, high), (least, most) = _ends(held[worst]), _ends(seen[worst])
    return (
        f"calibration does not cover what it is verified on: {len(far)} of {len(beyond)} activations are clipped, most "
        f"'{worst}' (calibrated {low:.3g} … {high:.3g}, verified on {least:.3g} … {most:.3g}); calibrate on other or "
        "more pages, unless it is the extreme ones that reach so far, which no log holds"
    )


def _ends(ends: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    return float(ends["min"].item()), float(ends["max"].item())


def _ranked(found: Mapping[str, Mapping[str, Any]], float_path: Path) -> Ranges:
    """That mode gives vectors; where a constant meets an activation the quantizer wants the tensor's rank."""
    model = flatbuffer.unpack(float_path.read_bytes(), float_path)
    rank = {flatbuffer.text(t.name): len(flatbuffer.shape_of(t)) for t in flatbuffer.tensors(model.subgraphs[0])}
    odd = sorted(name for name, ends in found.items() if not all(np.isfinite(end).all() for end in ends.values()))
    if odd:
        raise ConversionError("calibration pages make values that are not finite", where=float_path.name, got=odd)
    return {
        name: {end: np.asarray(value, np.float32).reshape((1,) * rank[name]) for end, value in ends.items()}
        for name, ends in found.items()
        if name in rank
    }


def _sha256_of_path(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        raise InputError("no such data to calibrate on", where=path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def sha256_of_feeds(feeds: Sequence[Feeds]) -> str:
    """Over names and bytes of what a graph was fed: other rows of the same tables make other feeds."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            digest.update(f"{name} {feed[name].shape}\n".encode() + np.ascontiguousarray(feed[name]).tobytes())
    return digest.hexdigest()


def _sha256_of_events(events: Events) -> str:
    """Over names, types and bytes of the columns."""
    digest = hashlib.sha256()
    for name in sorted(events.columns):
        values = np.ascontiguousarray(events.columns[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode() + values.tobytes())
    return digest.hexdigest()
