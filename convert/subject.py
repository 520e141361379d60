"""What is verified: graphs, held-out inputs, and how outputs become slates that are ranked.

A slate is the candidates of one held-out input, ordered by a value each. KIR's slates come from a chain of graphs;
the ranker, the encoder and foreign modules are one graph. Both look alike from here, so one verification serves all.

Legend: S held-out samples, n candidates of a slate, N slots of a bucket, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from contract.golden import fused_values
from convert.chain import Feeds, Run, run_halves
from convert.onnx_export import TorchGraph
from convert.phone import Sample
from convert.source import KirSource

Floats = NDArray[np.float32]
Outputs = Mapping[str, Floats]
Record = dict[str, list[Feeds]]
KIR_HALVES = ("page", "watch", "swipe")


class Subject(Protocol):
    """S held-out samples of a model and its graphs.

    version  of the model; graphs: by key
    chained  names of graphs that are judged by the ranking at the chain's end; the others by their own outputs
    labels   float32 [n] of each sample's slate (1 = positive, NaN = unknown), [] where nothing is known
    """

    @property
    def version(self) -> str: ...

    @property
    def graphs(self) -> Mapping[str, TorchGraph]: ...

    @property
    def chained(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> Sequence[Floats]: ...

    def __len__(self) -> int: ...

    def reference(self, sample: int) -> Floats:
        """What the model gives for real candidates, by eager torch and without a cut."""
        ...

    def run(self, sample: int, runs: Mapping[str, Run], record: Record | None = None) -> Floats:
        """The same by the graphs as a device runs them. record: the feeds of every graph that ran are appended."""
        ...

    def values(self, sample: int, found: Floats) -> Floats:
        """Value [n] of each candidate of the slate, from what `run` gave; [0] where nothing is ranked."""
        ...

    def through(self, key: str) -> list[int]:
        """Samples whose chain runs this graph."""
        ...

    def own_slates(self, key: str, feed: int, outputs: Outputs) -> list[Floats]:
        """Slates of a graph's own outputs for its recorded feed of that number; [] where it ranks nothing."""
        ...


@dataclass(frozen=True)
class KirSubject:
    """KIR: page, watch and swipe are a chain that must equal the whole net; place and whole rank by themselves."""

    source: KirSource
    samples: Sequence[Sample]

    @property
    def version(self) -> str:
        return self.source.dense_version

    @property
    def graphs(self) -> Mapping[str, TorchGraph]:
        return self.source.graphs

    @property
    def chained(self) -> tuple[str, ...]:
        return KIR_HALVES

    @property
    def labels(self) -> Sequence[Floats]:
        return [sample.labels for sample in self.samples if sample.labels is not None]

    def __len__(self) -> int:
        return len(self.samples)

    def reference(self, sample: int) -> Floats:
        one = self.samples[sample]
        return self.graphs[f"whole/N{one.bucket}"].run(one.inputs)["scores"][0, : one.n_candidates]

    def run(self, sample: int, runs: Mapping[str, Run], record: Record | None = None) -> Floats:
        one = self.samples[sample]
        return run_halves(one, self.source.layout, runs, record)[0, : one.n_candidates]

    def values(self, sample: int, found: Floats) -> Floats:
        return fused_values(found, self.source.fusion_weights)

    def through(self, key: str) -> list[int]:
        name, _, bucket = key.partition("/")
        return [i for i, s in enumerate(self.samples) if name == "watch" or bucket == f"N{s.bucket}"]

    def own_slates(self, key: str, feed: int, outputs: Outputs) -> list[Floats]:
        n_candidates = self.samples[self.through(key)[feed]].n_candidates
        scores = outputs["scores"]
        slates = scores.reshape(-1, *scores.shape[-2:])  # [1, N, T] or [1, k, N, T]
        return [fused_values(one[:n_candidates], self.source.fusion_weights) for one in slates]


@dataclass(frozen=True)
class GraphSubject:
    """A model of one graph.

    feeds   inputs of each sample
    real    what of the outputs counts: (sample, outputs) -> array, padding cut away
    value   (sample, that array) -> values [n] of its slate; None for a model that ranks nothing
    """

    graph: TorchGraph
    feeds: Sequence[Feeds]
    real: Callable[[int, Outputs], Floats]
    value: Callable[[int, Floats], Floats] | None = None
    version: str = ""
    labels: Sequence[Floats] = field(default_factory=tuple)

    @property
    def graphs(self) -> Mapping[str, TorchGraph]:
        return {self.graph.key: self.graph}

    @property
    def chained(self) -> tuple[str, ...]:
        return (self.graph.name,)

    def __len__(self) -> int:
        return len(self.feeds)

    def reference(self, sample: int) -> Floats:
        return self.real(sample, self.graph.run(self.feeds[sample]))

    def run(self, sample: int, runs: Mapping[str, Run], record: Record | None = None) -> Floats:
        if record is not None:
            record.setdefault(self.graph.key, []).append(dict(self.feeds[sample]))
        return self.real(sample, runs[self.graph.key](self.feeds[sample]))

    def values(self, sample: int, found: Floats) -> Floats:
        return np.zeros(0, np.float32) if self.value is None else self.value(sample, found)

    def through(self, key: str) -> list[int]:
        return list(range(len(self.feeds)))

    def own_slates(self, key: str, feed: int, outputs: Outputs) -> list[Floats]:
        return []
