"""KIR's graphs: one network, cut at what is known when. Tensor names and shapes: docs/architecture.md.

    from training.kir import Kir, KirConfig, graphs
    kir = Kir(KirConfig.of("tiny"), kir_spec())
    for key, graph in graphs(kir).items(): scores = graph.module(**graph.inputs)

Shape legend: N candidates, L1 = L + 1 watched slots, t new tokens, S towers, D width of a tower, G = S·B·2 cache
planes, P placed slots, k beams, C candidate_pre, V placed_kv, Wm width of memory, T tasks.

Each graph is a thin module over one folded copy of the net (`Kir.folded`): plain linear layers with a bias, static
shapes, no gather, no expand. What a spec or a preset does not have is no input and no output: blocks without fields,
keys and values without blocks, query and placed_kv where nothing attends. Without a placed context there is no `place`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from contract.vocabulary import MASK_VALUE
from training.checkpoint import Checkpoint
from training.kir_config import PRESETS, KirConfig
from training.kir_interface import GRAPHS, example_inputs, graph_inputs, graph_outputs
from training.kir_layers import causal_mask, heads_first, heads_last
from training.kir_model import Kir

__all__ = ["GRAPHS", "PRESETS", "Graph", "Kir", "KirConfig", "PageGraph", "PlaceGraph", "SwipeGraph", "WatchGraph"]
__all__ += ["WholeGraph", "cost", "example_inputs", "graph_inputs", "graph_outputs", "graphs"]
__all__ += ["load_kir"]


def _present(**blocks: Tensor | None) -> dict[str, Tensor]:
    return {name: block for name, block in blocks.items() if block is not None}


class PageGraph(nn.Module):
    """Once per page: user_* [1, ·], candidate_* [1, N, ·] -> query [1, N, S·D], candidate_pre [1, N, C], placed_kv."""

    def __init__(self, net: Kir):
        super().__init__()
        self.net = net

    def forward(
        self,
        user_rows: Tensor | None = None,
        user_dense: Tensor | None = None,
        candidate_rows: Tensor | None = None,
        candidate_dense: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        found = self.net.page(
            _present(
                user_rows=None if user_rows is None else user_rows.reshape(1, 1, -1),
                user_dense=None if user_dense is None else user_dense.reshape(1, 1, -1),
                candidate_rows=candidate_rows,
                candidate_dense=candidate_dense,
            )
        )
        return tuple(x for x in found if x.shape[-1])


class WatchGraph(nn.Module):
    """t watched tokens against the cache -> new [1, G, t, D], memory_new [1, t, Wm].

    The tokens see the slots that `past_mask` leaves open and each other causally. Without blocks they see nothing but
    themselves: no past and no new keys and values.
    """

    causal: Tensor
    zeros: Tensor

    def __init__(self, net: Kir, t: int):
        super().__init__()
        self.net, self.t = net, t
        config = net.config
        causal = torch.cat([torch.zeros(1, t, config.slots), causal_mask(t, 1)], dim=-1)
        self.register_buffer("causal", causal[:, :, None], persistent=False)
        self.register_buffer("zeros", torch.zeros(1, t), persistent=False)

    def forward(
        self,
        watched_rows: Tensor | None = None,
        watched_dense: Tensor | None = None,
        position: Tensor | None = None,
        past: Tensor | None = None,
        past_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        config = self.net.config
        tokens = self.net.tokens(_present(watched_rows=watched_rows, watched_dense=watched_dense), position)
        if not config.blocks:
            return self.net.encode(tokens, self.causal)[0]
        assert past is not None
        assert past_mask is not None
        mask = torch.cat([past_mask, self.zeros], dim=-1)[None]
        if self.t > 1:
            mask = mask + self.causal
        # planes are tower-major, then layer, then key/value: [S, 2B·L1, D] splits into k, v, k, v, … of all towers
        planes = past.reshape(config.n_towers, 2 * config.blocks * config.slots, config.width)
        planes = planes.split(config.slots, dim=1)
        pairs = list(zip(planes[0::2], planes[1::2], strict=True))
        memory, new = self.net.encode(tokens, mask, pairs)
        return torch.cat(new, dim=1).reshape(1, config.planes, self.t, config.width), memory


class _Scores(nn.Module):
    """What swipe, place and whole share: target attention and the experts."""

    since_slope: Tensor
    behind_slope: Tensor
    nothing: Tensor

    def __init__(self, net: Kir):
        super().__init__()
        self.net = net
        for name in ("since_slope", "behind_slope"):
            self.register_buffer(name, getattr(net, name).detach()[:, None, None].clone(), persistent=False)
        self.register_buffer("nothing", net.empty_placed().detach().clone(), persistent=False)
        # attention over the start entry alone is a constant: it goes into a bias instead of an op
        self.swipe_in = net.swipe_in
        if isinstance(net.swipe_in, nn.Linear):
            self.swipe_in = nn.Linear(net.swipe_in.in_features, net.swipe_in.out_features).requires_grad_(False)
            self.swipe_in.weight.copy_(net.swipe_in.weight)
            self.swipe_in.bias.copy_(net.swipe_in.bias + self.nothing)

    def hidden(
        self,
        query: Tensor | None,
        candidate_pre: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        since: Tensor,
        behind: Tensor,
        swipe_dense: Tensor | None,
        candidate_swipe: Tensor | None,
        nothing_placed: bool,
    ) -> Tensor:
        bias = since * self.since_slope + behind * self.behind_slope + memory_mask
        attended = self.net.attend(candidate_pre if query is None else query, memory, bias)
        hidden = self.net.candidate_part(candidate_pre, attended, _present(candidate_swipe=candidate_swipe))
        nothing = nothing_placed and self.net.config.placed > 0
        if swipe_dense is not None:
            layer = self.swipe_in if nothing else self.net.swipe_in
            assert layer is not None
            return hidden + layer(swipe_dense)
        return hidden + self.nothing if nothing else hidden


class SwipeGraph(_Scores):
    """Scores of N candidates with nothing placed: [1, N, T] logits."""

    def forward(
        self,
        query: Tensor | None = None,
        candidate_pre: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        since: Tensor | None = None,
        behind: Tensor | None = None,
        swipe_dense: Tensor | None = None,
        candidate_swipe: Tensor | None = None,
    ) -> Tensor:
        assert candidate_pre is not None
        assert memory is not None
        assert memory_mask is not None
        assert since is not None
        assert behind is not None
        return self.net.experts(
            self.hidden(query, candidate_pre, memory, memory_mask, since, behind, swipe_dense, candidate_swipe, True),
            candidate_pre,
        )


class PlaceGraph(_Scores):
    """Scores of N candidates given what each of k beams has placed: [1, k, N, T] logits."""

    start: Tensor
    zeros: Tensor

    def __init__(self, net: Kir):
        super().__init__(net)
        config = net.config
        start = net.placed_start.detach().repeat(config.beams, 1, 1)
        self.register_buffer("start", start.clone(), persistent=False)  # [k, 1, V]
        self.register_buffer("zeros", torch.zeros(config.beams, 1), persistent=False)

    def _placed(self, query: Tensor, placed: Tensor, placed_mask: Tensor) -> Tensor:
        config = self.net.config
        beams, slots = config.beams, config.placed + 1
        n, heads, inner = query.shape[1], config.heads, config.width // config.heads
        kv = torch.cat([self.start, placed.reshape(beams, config.placed, config.kv_width)], dim=1)
        keys, values = kv.split([config.width, config.width], dim=-1)
        mask = torch.cat([self.zeros, placed_mask.reshape(beams, config.placed)], dim=-1)
        # all beams' keys in one product, then each beam's own P + 1 columns
        logits = heads_first(self.net.placed_query(query), heads) @ heads_first(
            keys.reshape(1, beams * slots, config.width), heads
        ).transpose(1, 2)
        logits = logits.reshape(heads * n, beams, slots).transpose(0, 1) + mask.reshape(beams, 1, slots)
        weights = torch.softmax(logits, dim=-1).reshape(beams * heads, n, slots)
        mixed = weights @ heads_first(values, heads).reshape(beams * heads, slots, inner)
        return self.net.first_placed(heads_last(mixed, beams))

    def forward(
        self,
        query: Tensor,
        candidate_pre: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        since: Tensor,
        behind: Tensor,
        swipe_dense: Tensor | None = None,
        candidate_swipe: Tensor | None = None,
        placed: Tensor | None = None,
        placed_mask: Tensor | None = None,
    ) -> Tensor:
        shared = self.hidden(
            query, candidate_pre, memory, memory_mask, since, behind, swipe_dense, candidate_swipe, False
        )
        scores = self.net.experts(shared + self._placed(query, placed, placed_mask), candidate_pre)
        return scores.reshape(1, self.net.config.beams, query.shape[1], self.net.config.n_tasks)


class WholeGraph(_Scores):
    """Everything in one pass, nothing cached and nothing placed: the reference of the halves, [1, N, T] logits."""

    causal: Tensor

    def __init__(self, net: Kir):
        super().__init__(net)
        self.register_buffer("causal", causal_mask(net.config.slots, 1)[:, :, None], persistent=False)
        self.page = PageGraph(net)

    def forward(
        self,
        user_rows: Tensor | None = None,
        user_dense: Tensor | None = None,
        candidate_rows: Tensor | None = None,
        candidate_dense: Tensor | None = None,
        watched_rows: Tensor | None = None,
        watched_dense: Tensor | None = None,
        memory_mask: Tensor | None = None,
        since: Tensor | None = None,
        behind: Tensor | None = None,
        swipe_dense: Tensor | None = None,
        candidate_swipe: Tensor | None = None,
    ) -> Tensor:
        assert memory_mask is not None
        assert since is not None
        assert behind is not None
        found = self.page(user_rows, user_dense, candidate_rows, candidate_dense)
        query, pre = (None, found[0]) if not self.net.config.query_width else found[:2]
        tokens = self.net.tokens(_present(watched_rows=watched_rows, watched_dense=watched_dense), None)
        memory, _ = self.net.encode(tokens, self.causal)
        # unused slots of the cached memory are zero: 1 + mask/30 is 1 for a used slot and exactly 0 for an unused one
        memory = memory * (1.0 - memory_mask / MASK_VALUE).reshape(1, -1, 1)
        return self.net.experts(
            self.hidden(query, pre, memory, memory_mask, since, behind, swipe_dense, candidate_swipe, True), pre
        )


class Graph(NamedTuple):
    """One graph in one bucket: module, example inputs in the order of the interface, output names.

    `module(**inputs)` gives one tensor or a tuple in the order of `outputs`.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def load_kir(checkpoint: Checkpoint) -> Kir:
    """The dense net of a checkpoint of kind "kir", in eval mode. Raises CheckpointError when tensors differ."""
    kir = Kir(KirConfig.from_json(checkpoint.model_config), checkpoint.spec)
    checkpoint.load_into(kir)
    return kir.eval()


def graphs(
    kir: Kir, buckets: tuple[int, ...] | None = None, t: tuple[int, ...] | None = None
) -> dict[tuple[str, str], Graph]:
    """Every graph in every bucket: ("page", "N20"), ("watch", "T1"), …. All share one folded copy of the net."""
    config, net = kir.config, kir.folded()
    found = {}
    for name in GRAPHS if config.placed else [name for name in GRAPHS if name != "place"]:
        sizes = (t or (1, config.rebuild)) if name == "watch" else (buckets or config.buckets)
        for size in sizes:
            module: nn.Module
            if name == "watch":
                module, bucket = WatchGraph(net, size), f"T{size}"
            else:
                kinds = {"page": PageGraph, "swipe": SwipeGraph, "place": PlaceGraph, "whole": WholeGraph}
                module, bucket = kinds[name](net), f"N{size}"
            inputs = example_inputs(config, kir.spec, name, size)
            found[name, bucket] = Graph(module.eval(), inputs, tuple(graph_outputs(config, name, size)))
    return found


def cost(graph: Graph) -> int:
    """Multiply-adds of the graph's matrix products as the device runs them (structural zeros included)."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        graph.module(**graph.inputs)
    return counter.get_total_flops() // 2
