"""The graphs are one net: cached halves equal the whole, whatever has been watched, evicted or placed.

Reference: `WholeGraph`, which encodes the whole watched list anew. `Phone` drives the graphs as an edge would.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract import features
from contract.errors import InputError
from contract.specs import kir_spec
from contract.vocabulary import MASK_VALUE
from contract.watched import WatchedList
from training import kir_config
from training.kir import Graph, Kir, KirConfig, cost, example_inputs, graph_inputs, graph_outputs, graphs
from training.kir_layers import causal_mask
from training.kir_model import PAGE_BLOCKS

L = 8
TINY = KirConfig.of("tiny", watched=L, buckets=(6,))
SPECS = {
    "full": kir_spec(),
    "pxtr_only": kir_spec().without_served(),
    "no_signals": kir_spec().without(["signals", "buffered"]),
}


def make_kir(spec_name: str = "full", config: KirConfig = TINY) -> Kir:
    torch.manual_seed(1)
    kir = Kir(config, SPECS[spec_name]).eval()
    kir.set_pxtr_constants(torch.linspace(-1.0, 0.5, 7), torch.linspace(1.0, 2.0, 7))
    with torch.no_grad():
        for name, parameter in kir.named_parameters():
            if name.endswith("bias"):  # they start at zero and would hide a missing one
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return kir


def video(random: np.random.Generator, now_ms: int) -> dict:
    return {
        "video_id": np.uint64(random.integers(50)),
        "author_id": np.uint64(random.integers(9)),
        "tags": random.integers(0, 5, 3).astype(np.uint64),
        "duration_ms": 1000 * random.integers(1, 90),
        "pxtr": random.uniform(0.01, 0.9, 7).astype(np.float32),
        "play_time_ms": 1000 * random.integers(0, 90),
        "signals": random.integers(-1, 2, 9).astype(np.int8),
        "shown_at_ms": now_ms,
    }


def row_of(key: int, width: int) -> np.ndarray:
    """A row for each key, the same everywhere."""
    return np.random.default_rng(int(key) % 2**32).normal(size=width).astype(np.float32) * 0.5


def outputs_of(graph: Graph, inputs: dict) -> dict[str, torch.Tensor]:
    """Outputs by name."""
    found = graph.module(**inputs)
    return dict(zip(graph.outputs, found if isinstance(found, tuple) else (found,), strict=True))


class Phone:
    """Watched list, cache and memory of a device, kept up by the T1 and rebuild graphs."""

    def __init__(self, kir: Kir):
        self.kir, self.spec, self.config = kir, kir.spec, kir.config
        self.graphs = graphs(kir)
        self.list = WatchedList(self.config.watched)
        self.past = torch.zeros(1, self.config.planes, self.config.slots, self.config.width)
        self.memory = torch.zeros(1, self.config.slots, self.config.memory_width)
        self.number = 0
        self.watch(0, 1)

    def blocks(self, first: int, end: int, size: int) -> dict[str, torch.Tensor]:
        columns = self.list.columns(first, end)
        found = {}
        for block in ("watched_rows", "watched_dense"):
            width = self.spec.width(block)
            if not width:
                continue
            out = np.zeros((size, width), np.float32)
            if block == "watched_dense":
                features.dense_block(self.spec, block, columns, out[: end - first])
            else:
                for column in self.spec.columns(block):
                    keys = features.block_keys(self.spec, block, columns)[column.field.name]
                    for i, entries in enumerate(keys):
                        out[i, column.slice] = np.mean([row_of(key, column.field.width) for key in entries], axis=0)
            found[block] = torch.from_numpy(out)[None]
        return found

    def watch(self, first: int, end: int, bucket: int = 1) -> None:
        for at in range(first, end, bucket):
            n = min(bucket, end - at)
            position = torch.zeros(1, bucket, self.config.slots)
            position[0, torch.arange(n), torch.arange(at, at + n)] = 1.0
            inputs = {**self.blocks(at, at + n, bucket), "position": position}
            if self.config.planes:
                inputs |= {"past": self.past, "past_mask": self.mask(at)}
            found = outputs_of(self.graphs["watch", f"T{bucket}"], inputs)
            if self.config.planes:
                self.past[:, :, at : at + n] = found["new"][:, :, :n]
            self.memory[:, at : at + n] = found["memory_new"][:, :n]

    def mask(self, used: int) -> torch.Tensor:
        mask = torch.zeros(1, self.config.slots)
        mask[:, used:] = MASK_VALUE
        return mask

    def append(self, item: dict) -> None:
        change = self.list.append({**item, "number": self.number})
        self.number += 1
        self.watch(change.first_slot, change.length)

    def after_choice(self) -> None:
        change = self.list.evict_if_full()
        if change.dropped:
            self.past[:, :, change.first_slot :] = 0
            self.memory[:, change.first_slot :] = 0
            self.watch(change.first_slot, change.length, self.config.rebuild)

    def now(self, now_ms: int) -> dict[str, torch.Tensor]:
        since, behind = np.zeros((2, 1, self.config.slots), np.float32)
        features.since_watched(now_ms, self.list.columns()["shown_at_ms"], since[0, : self.list.length])
        features.videos_behind(self.number, self.list.columns()["number"], behind[0, : self.list.length])
        gaps = {"since": torch.from_numpy(since), "behind": torch.from_numpy(behind)}
        return {"memory_mask": self.mask(self.list.length), **gaps}

    def swipe(self, page: dict, rest: dict, now_ms: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores from the cache, and from the whole net."""
        n = f"N{self.config.buckets[0]}"
        found = outputs_of(self.graphs["page", n], page)
        known = {name: found[name] for name in ("query", "candidate_pre") if name in self.graphs["swipe", n].inputs}
        now = self.now(now_ms)
        halves = self.graphs["swipe", n].module(**known, memory=self.memory, **now, **rest)
        tokens = self.blocks(0, self.list.length, self.config.slots)
        return halves, self.graphs["whole", n].module(**page, **tokens, **now, **rest)


def page_and_rest(kir: Kir) -> tuple[dict, dict]:
    inputs = example_inputs(kir.config, kir.spec, "whole", kir.config.buckets[0], seed=3)
    page = {k: v for k, v in inputs.items() if k.startswith(("user", "candidate")) and k != "candidate_swipe"}
    return page, {k: v for k, v in inputs.items() if k in ("swipe_dense", "candidate_swipe")}


SMALL = {"watched": L, "buckets": (6,), "width": 16, "ffn": 32, "expert": 16}
PRESETS = {name: KirConfig.of(name, **SMALL) for name in ("kir", "kir2020", "kir2022")}
ABLATED = {
    "id": KirConfig.of("tiny", watched=L, buckets=(6,), towers=("id",)),
    "pxtr": KirConfig.of("tiny", watched=L, buckets=(6,), towers=("pxtr",)),
    "mean_placed": KirConfig.of("tiny", watched=L, buckets=(6,), reads="mean"),
}
CASES = [*((spec_name, TINY) for spec_name in SPECS), *(("full", config) for config in (PRESETS | ABLATED).values())]
NAMES = [*SPECS, *PRESETS, *ABLATED]
CASES += [("pxtr_only", config) for config in PRESETS.values()]
NAMES += [f"pxtr_only-{name}" for name in PRESETS]


@pytest.mark.parametrize(("spec_name", "config"), CASES, ids=NAMES)
@torch.no_grad()
def test_halves_equal_the_whole_net_through_evictions(spec_name, config):
    kir = make_kir(spec_name, config)
    phone, random = Phone(kir), np.random.default_rng(0)
    page, rest = page_and_rest(kir)
    seen, now_ms = [], 1_700_000_000_000
    for watched in range(3 * L + 1):
        if watched in (0, 1, L - 1, L, L + 1, 2 * L, 3 * L):
            halves, whole = phone.swipe(page, rest, now_ms)
            torch.testing.assert_close(halves, whole, atol=1e-5, rtol=0)
            seen.append(whole)
        phone.after_choice()
        now_ms += int(random.integers(2_000, 90_000))
        phone.append(video(random, now_ms - 1_000))
    spread = torch.stack(seen).std(0)
    assert float(spread.max()) > 1e-3, "what was watched must matter"


@torch.no_grad()
def test_chunks_equal_one_by_one():
    kir, random = make_kir(), np.random.default_rng(4)
    one, chunks = Phone(kir), Phone(kir)
    for i in range(L - 1):
        item = video(random, 1_700_000_000_000 + 1000 * i)
        one.append(item)
        chunks.list.append(item)
    chunks.watch(1, chunks.list.length, TINY.rebuild)  # the last chunk is part padding
    torch.testing.assert_close(chunks.past, one.past, atol=1e-5, rtol=0)
    torch.testing.assert_close(chunks.memory, one.memory, atol=1e-5, rtol=0)


@torch.no_grad()
def test_nothing_placed_is_swipe():
    made = graphs(make_kir())
    inputs = example_inputs(TINY, SPECS["full"], "place", 6)
    inputs["placed"].zero_()
    inputs["placed_mask"].fill_(MASK_VALUE)
    placed = made["place", "N6"].module(**inputs)
    swipe = made["swipe", "N6"].module(**{k: v for k, v in inputs.items() if not k.startswith("placed")})
    for beam in range(TINY.beams):
        torch.testing.assert_close(placed[:, beam], swipe, atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_beam_sees_only_what_it_placed():
    place = graphs(make_kir())["place", "N6"].module
    inputs = example_inputs(TINY, SPECS["full"], "place", 6)
    inputs["placed_mask"].zero_()
    before = place(**inputs)
    inputs["placed"] = inputs["placed"].clone()
    inputs["placed"][:, 1] += 1.0
    after = place(**inputs)
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-6, rtol=0)
    assert float((after[:, 1] - before[:, 1]).abs().max()) > 1e-3


@torch.no_grad()
def test_a_later_token_changes_no_earlier_one():
    kir = make_kir()
    inputs = example_inputs(TINY, SPECS["full"], "watch", TINY.rebuild)
    watch = graphs(kir)["watch", f"T{TINY.rebuild}"].module
    new, memory = watch(**inputs)
    inputs["watched_dense"] = inputs["watched_dense"].clone()
    inputs["watched_dense"][:, 2] += 3.0
    new_after, memory_after = watch(**inputs)
    torch.testing.assert_close(new_after[:, :, :2], new[:, :, :2], atol=1e-6, rtol=0)
    torch.testing.assert_close(memory_after[:, :2], memory[:, :2], atol=1e-6, rtol=0)
    assert not torch.allclose(memory_after[:, 3], memory[:, 3], atol=1e-4)


@torch.no_grad()
def test_candidates_are_scored_each_alone():
    """Permuted candidates give permuted scores; a padding candidate changes no other."""
    kir = make_kir()
    made, n = graphs(kir)["whole", "N6"].module, 6
    inputs = example_inputs(TINY, SPECS["full"], "whole", n)
    scores = made(**inputs)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    names = [k for k in inputs if k.startswith("candidate")]
    permuted = made(**{**inputs, **{k: inputs[k][:, order] for k in names}})
    torch.testing.assert_close(permuted, scores[:, order], atol=1e-6, rtol=0)
    padded = made(
        **{**inputs, **{k: torch.cat([inputs[k][:, :4], torch.zeros_like(inputs[k][:, 4:])], 1) for k in names}}
    )
    torch.testing.assert_close(padded[:, :4], scores[:, :4], atol=1e-6, rtol=0)


@torch.no_grad()
def test_towers_are_independent():
    """Only video and feedback reach the id tower, only server predictions and feedback the pxtr tower."""
    kir = make_kir()
    watch = graphs(kir)["watch", "T1"].module
    inputs = example_inputs(TINY, SPECS["full"], "watch", 1)
    _, before = watch(**inputs)
    d = TINY.width
    _, rows_moved = watch(**{**inputs, "watched_rows": inputs["watched_rows"] + 1.0})
    moved = (rows_moved - before).abs().reshape(4, d).amax(1) > 1e-6  # K_id, K_pxtr, V_id, V_pxtr
    assert moved.tolist() == [True, False, True, False]
    pxtr = next(c for c in kir.spec.columns("watched_dense") if c.field.feature == "pxtr")
    dense = inputs["watched_dense"].clone()
    dense[..., pxtr.slice] += 1.0
    _, pxtr_moved = watch(**{**inputs, "watched_dense": dense})
    moved = (pxtr_moved - before).abs().reshape(4, d).amax(1) > 1e-6
    assert moved.tolist() == [False, True, False, True]


@torch.no_grad()
def test_training_form_equals_the_graphs():
    """Unfolded weights, all positions at once, placed by mask: the same scores as swipe and place."""
    kir, m = make_kir(), 3
    made = graphs(kir, buckets=(m,))
    inputs = example_inputs(TINY, SPECS["full"], "whole", m, seed=5)
    visible = [0, 2, 2]  # watched when target i was chosen; targets 1 and 2 at one choice, 1 placed before 2
    mask = torch.zeros(1, m, TINY.slots)
    for i, n in enumerate(visible):
        mask[0, i, n + 1 :] = MASK_VALUE
    placed_mask = torch.full((1, m, m), MASK_VALUE)
    placed_mask[0, 2, 1] = 0.0
    gaps = {name: inputs[name][:, None].expand(1, m, -1) for name in ("since", "behind")}
    blocks = {**inputs, "visible": (mask == 0).float(), **gaps, "placed": (placed_mask == 0).float()}
    for name in ("user_rows", "user_dense", "swipe_dense"):
        blocks[name] = inputs[name][:, None].expand(1, m, -1)
    scores = kir(blocks)
    for i in (0, 1):
        whole = made["whole", f"N{m}"].module(**{**inputs, "memory_mask": mask[:, i]})
        torch.testing.assert_close(scores[:, i], whole[:, i], atol=1e-5, rtol=0)
    page = {k: v for k, v in inputs.items() if k.startswith(("user", "candidate")) and k != "candidate_swipe"}
    query, pre, placed_kv = made["page", f"N{m}"].module(**page)
    x = kir.tokens({k: inputs[k] for k in ("watched_rows", "watched_dense")}, None)
    place = example_inputs(TINY, SPECS["full"], "place", m)
    memory, _ = kir.encode(x, causal_mask(TINY.slots, TINY.heads))
    placed = torch.zeros_like(place["placed"])
    placed[:, 0, 0] = placed_kv[:, 1]
    beam_mask = torch.full_like(place["placed_mask"], MASK_VALUE)
    beam_mask[:, 0, 0] = 0.0
    rest = {k: inputs[k] for k in ("since", "behind", "swipe_dense", "candidate_swipe")}
    graph_scores = made["place", f"N{m}"].module(
        query, pre, memory, mask[:, 2], **rest, placed=placed, placed_mask=beam_mask
    )
    torch.testing.assert_close(graph_scores[:, 0, 2], scores[:, 2], atol=1e-5, rtol=0)
    assert float((graph_scores[:, 1, 2] - scores[:, 2]).abs().max()) > 1e-4, "what is placed must matter"


def test_pxtr_constants_standardise():
    """Layers read (logit − mean) / std where present, and nothing where null; nothing else changes."""
    kir = make_kir()
    offset = next(c.offset for c in kir.spec.columns("watched_dense") if c.field.feature == "pxtr")
    logit, present = slice(offset, offset + 7), slice(offset + 7, offset + 14)
    x = torch.rand(3, kir.spec.width("watched_dense"))
    x[0, logit], x[0, present] = torch.linspace(-1.0, 0.5, 7), 1.0
    x[1, logit], x[1, present] = torch.linspace(-1.0, 0.5, 7) + 2 * torch.linspace(1.0, 2.0, 7), 1.0
    x[2, logit], x[2, present] = 0.0, 0.0
    given = kir.scaled({"watched_dense": x, "watched_rows": x})
    torch.testing.assert_close(given["watched_dense"][:, logit], torch.tensor([[0.0], [2.0], [0.0]]).expand(3, 7))
    others = [i for i in range(x.shape[1]) if not logit.start <= i < logit.stop]
    assert torch.equal(given["watched_dense"][:, others], x[:, others])
    assert given["watched_rows"] is x


def test_a_rare_head_makes_no_loud_weights():
    """Folded into the matrices, a mean of −7 at a std of .15 made weights of 26 beside others of .15: int8 failed."""
    kir = make_kir()
    kir.set_pxtr_constants(torch.full((7,), -7.0), torch.full((7,), 0.15))
    layer = kir.page_in["candidate_dense"]
    assert torch.equal(kir.folded().page_in["candidate_dense"].weight, layer.weight * layer.mask)


@pytest.mark.parametrize(("spec_name", "config"), CASES, ids=NAMES)
@torch.no_grad()
def test_loud_columns_move_into_their_features_and_nothing_else_changes(spec_name, config):
    kir = make_kir(spec_name, config)
    layer = kir.page_in["candidate_dense"]
    layer.weight[:, 3] *= 6.0
    layer.weight[:, 5] *= 40.0
    random = np.random.default_rng(0)
    widths = {block: kir.spec.width(block) for block in PAGE_BLOCKS if kir.spec.width(block)}
    blocks = {b: torch.from_numpy(random.normal(size=(2, 4, n)).astype(np.float32)) for b, n in widths.items()}
    before = kir.page(blocks)
    for _ in range(2):
        kir.balance()
        for ours, theirs in zip(kir.page(blocks), before, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    loudest = layer.effective().abs().amax(0)
    assert float(loudest.max() / loudest.median()) < 1.01, "twice, so that the fortyfold column is within reach"
    assert 3.0 < float(kir.candidate_gain[3]) < 12.0


@pytest.mark.parametrize(("spec_name", "config"), CASES, ids=NAMES)
def test_shapes_are_as_told(spec_name, config):
    kir = make_kir(spec_name, config)
    for (name, bucket), graph in graphs(kir).items():
        size = int(bucket[1:])
        assert {k: tuple(v.shape) for k, v in graph.inputs.items()} == graph_inputs(kir.config, kir.spec, name, size)
        result = graph.module(**graph.inputs)
        result = result if isinstance(result, tuple) else (result,)
        told = graph_outputs(kir.config, name, size)
        assert graph.outputs == tuple(told)
        assert [tuple(x.shape) for x in result] == list(told.values())
        assert all(bool(torch.isfinite(x).all()) for x in result)
        if name == "swipe":
            assert result[0].shape[-1] == len(config.tasks)
    assert (("place", "N6") in graphs(kir)) == (config.placed > 0)


def test_no_sequence_is_as_long_as_a_feature_is_wide():
    """onnx2tf's TensorFlow backend takes one for the other and gives wrong scores without a word."""
    spec = kir_spec()
    for preset in kir_config.PRESETS:
        config = KirConfig.of(preset)
        widths = {spec.width(block) for block in spec.blocks} | {config.width, 2 * config.width, 4 * config.width}
        widths |= {config.width // config.heads, config.pre_width, config.kv_width, 2 * config.ffn, config.bottom}
        lengths = {*config.buckets, config.slots, config.rebuild, config.slots + 1, config.slots + config.rebuild}
        assert not lengths & widths


def test_cost_grows_with_what_is_scored():
    made = graphs(make_kir(), buckets=(6, 12))
    assert 0 < cost(made["swipe", "N6"]) < cost(made["swipe", "N12"]) < cost(made["whole", "N12"])
    assert cost(made["watch", "T1"]) < cost(made["watch", f"T{TINY.rebuild}"])


def test_configuration_is_checked_and_round_trips():
    config = KirConfig.of("kir")
    assert KirConfig.from_json(config.to_json()) == config
    for changes in ({"watched": 7}, {"heads": 3}, {"buckets": (20, 10)}, {"buckets": ()}):
        with pytest.raises(InputError):
            KirConfig.of("tiny", **changes)
    with pytest.raises(InputError, match="unknown size"):
        KirConfig.of("huge")
    with pytest.raises(InputError):
        KirConfig.from_json({"preset": "tiny"})


@pytest.mark.parametrize("config", [TINY, *PRESETS.values(), *ABLATED.values()], ids=["tiny", *PRESETS, *ABLATED])
def test_gradients_reach_every_parameter(config):
    kir = make_kir(config=config)
    m = 3
    inputs = example_inputs(TINY, SPECS["full"], "whole", m)
    blocks = {
        **inputs,
        "visible": (inputs["memory_mask"] == 0).float().expand(1, m, -1),
        "since": inputs["since"].expand(1, m, -1),
        "behind": inputs["behind"].expand(1, m, -1),
    }
    for name in ("user_rows", "user_dense", "swipe_dense"):
        blocks[name] = inputs[name][:, None].expand(1, m, -1)
    blocks["placed"] = torch.ones(1, m, m).tril(-1)
    blocks["candidate_swipe"] = torch.ones_like(inputs["candidate_swipe"])  # few entries: all may be 0 by chance
    kir(blocks).square().sum().backward()
    silent = [name for name, p in kir.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0.0]
    if config.towers == ("pxtr",):  # reads no video rows
        silent = [name for name in silent if not name.startswith("token_rows")]
    assert not [name for name in silent if not name.endswith("k.bias")], "a key's bias shifts all logits alike"
