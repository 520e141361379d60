"""The net against a slow, obvious reference: ordinary towers with ordinary heads, one candidate and one task at a time.

`Slow` reads the net's weights, cuts the block-diagonal layers apart, and does what the papers draw: two transformers,
an attention for each tower and head, FM over pairs of fields, experts and gates in loops. Numpy, float64.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from contract.specs import kir_spec
from contract.vocabulary import MASK_VALUE, TASKS
from training.kir import Kir, KirConfig, example_inputs, graphs
from training.kir_layers import (
    LOGIT_BOUND,
    MaskedLinear,
    TowerNorm,
    causal_mask,
    excess,
    heads_first,
    heads_last,
    towers_first,
    towers_last,
)
from training.kir_model import PAGE_BLOCKS

CONFIG = KirConfig.of("tiny", watched=6, buckets=(5,), width=12, heads=3, ffn=20, blocks=2, fm=8)
SPEC = kir_spec()
N, D, H = 5, CONFIG.width, CONFIG.heads


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class Slow:
    """One page, one user, one state."""

    def __init__(self, kir: Kir):
        self.kir = kir

    def layer(self, layer, x):
        weight = layer.effective() if isinstance(layer, MaskedLinear) else layer.weight
        bias = layer.bias * layer.alive if isinstance(layer, MaskedLinear) else layer.bias
        return weight.detach().double().numpy() @ x + bias.detach().double().numpy()

    def pxtr(self, block):
        return next(c.offset for c in self.kir.spec.columns(block) if c.field.feature == "pxtr")

    def scaled(self, block, x):
        """One candidate's or watched video's features with its pXTR logits standardised."""
        first = self.pxtr(block)
        scaler, x = self.kir.scalers[block], x.copy()
        for i in range(7):
            x[first + i] = (x[first + i] - x[first + 7 + i] * float(scaler.mean[i])) / float(scaler.std[i])
        return x

    def part(self, layer, tower, x, n_out, repeats=1):
        """The rows and columns of one tower of a block-diagonal layer: x [in] -> [repeats, n_out]."""
        weight, bias = layer.effective().detach().double().numpy(), (layer.bias * layer.alive).detach().double().numpy()
        size = repeats * n_out
        rows, columns = slice(tower * size, (tower + 1) * size), slice(tower * len(x), (tower + 1) * len(x))
        return (weight[rows, columns] @ x + bias[rows]).reshape(repeats, n_out)

    def norm(self, x):
        return x / np.sqrt((x * x).mean() + 1e-6)

    def transformer(self, tower, tokens):
        """tokens [t, D] of one tower through its blocks, each token looking back."""
        d = D // H
        for block in self.kir.blocks:
            normed = [self.norm(x) for x in tokens]
            q = [self.part(block.q, tower, x, D, H) for x in normed]
            k = [self.part(block.k, tower, x, D)[0] for x in normed]
            v = [self.part(block.v, tower, x, D)[0] for x in normed]
            after = []
            for i, x in enumerate(tokens):
                heads = []
                for h in range(H):
                    mine = slice(h * d, (h + 1) * d)
                    weights = softmax(np.array([q[i][h, mine] @ k[j][mine] for j in range(i + 1)]))
                    heads.append(sum(w * v[j] for j, w in enumerate(weights)))
                x = x + self.part(block.out, tower, np.concatenate(heads), D)[0]
                hidden = np.maximum(self.part(block.up, tower, self.norm(x), CONFIG.ffn)[0], 0)
                after.append(x + self.part(block.down, tower, hidden, D)[0])
            tokens = after
        return np.array([self.norm(x) for x in tokens])

    def memory(self, blocks, n):
        """Slots 0 … n: (keys [2, n + 1, D], values [2, n + 1, D]) by tower."""
        kir = self.kir
        weight, bias = kir.memory.effective().detach().double().numpy(), kir.memory.bias.detach().double().numpy()
        keys, values = [], []
        for tower in range(2):
            mine = slice(tower * D, (tower + 1) * D)
            tokens = [
                (
                    self.layer(kir.token_rows, blocks["watched_rows"][0, i])
                    + self.layer(kir.token_dense, self.scaled("watched_dense", blocks["watched_dense"][0, i]))
                    + self.layer(kir.position, np.eye(CONFIG.slots)[i])
                )[mine]
                for i in range(n + 1)
            ]
            top = self.transformer(tower, tokens)
            for found, first in ((keys, 0), (values, 2 * D)):
                rows = slice(first + tower * D, first + (tower + 1) * D)
                found.append(top @ weight[rows, mine].T + bias[rows])
        return np.array(keys), np.array(values)

    def page(self, blocks, i):
        """query, candidate_pre, placed_kv of candidate i."""
        kir = self.kir
        x = {b: blocks[b][0] if b.startswith("user") else blocks[b][0, i] for b in PAGE_BLOCKS}
        gain = kir.candidate_gain.double().numpy()
        x["candidate_dense"] = self.scaled("candidate_dense", x["candidate_dense"]) * gain
        mixed = sum(self.layer(kir.page_in[b], x[b]) for b in PAGE_BLOCKS)
        fields = []
        for b in PAGE_BLOCKS:
            fields += list(self.layer(kir.fm_in[b], x[b]).reshape(-1, CONFIG.fm))
        fm = sum(a * b for a, b in itertools.combinations(fields, 2))
        bottom = np.maximum(mixed[: CONFIG.bottom] + self.layer(kir.bottom_fm, fm), 0)
        out = mixed[CONFIG.bottom :] + self.layer(kir.page_out, np.concatenate([bottom, fm]))
        query, pre, placed_kv = np.split(out, np.cumsum(kir.out_widths)[:-1])
        pxtr = self.pxtr("candidate_dense")
        server = self.layer(kir.server_skip, x["candidate_dense"][pxtr : pxtr + 14])
        return query, np.concatenate([pre, server]), placed_kv

    def target_attention(self, query, keys, values, since, behind):
        d, found = D // H, []
        for tower, h in itertools.product(range(2), range(H)):
            mine = slice(h * d, (h + 1) * d)
            row = tower * H + h
            logits = keys[tower][:, mine] @ query[tower * D : (tower + 1) * D][mine]
            logits = logits + float(self.kir.since_slope[row]) * since + float(self.kir.behind_slope[row]) * behind
            found.append(softmax(logits) @ values[tower][:, mine])
        return np.concatenate(found)

    def placed_context(self, query, placed):
        kir, d = self.kir, D // H
        entries = np.array([kir.placed_start.detach().double().numpy(), *placed])
        q, found = self.layer(kir.placed_query, query), []
        for h in range(H):
            mine = slice(h * d, (h + 1) * d)
            found.append(softmax(entries[:, mine] @ q[mine]) @ entries[:, D:][:, mine])
        return self.layer(kir.first_placed, np.concatenate(found))

    def scores(self, blocks, n, placed=()):
        """[N, T]. n watched; placed: candidates before it, by index."""
        kir, found = self.kir, []
        keys, values = self.memory(blocks, n)
        kv = [self.page(blocks, j)[2] for j in placed]
        for i in range(N):
            query, pre, _ = self.page(blocks, i)
            pre, server = np.split(pre, [CONFIG.hidden_width])
            gaps = (blocks[name][0, : n + 1] for name in ("since", "behind"))
            attended = self.target_attention(query, keys, values, *gaps)
            hidden = (
                pre + self.layer(kir.first, attended) + self.layer(kir.candidate_in, blocks["candidate_swipe"][0, i])
            )
            hidden = hidden + self.layer(kir.swipe_in, blocks["swipe_dense"][0]) + self.placed_context(query, kv)
            found.append(self.mixture(np.maximum(hidden, 0)) + server)
        return np.array(found)

    def mixture(self, hidden):
        kir, e = self.kir, CONFIG.experts
        half = CONFIG.expert // 2
        weight, bias = kir.task.effective().detach().double().numpy(), kir.task.bias.detach().double().numpy()
        second = np.maximum(self.layer(kir.second, hidden), 0).reshape(e, half)
        gates = self.layer(kir.gate, hidden).reshape(len(TASKS), e)
        scores = []
        for t in range(len(TASKS)):
            rows = [t * e + j for j in range(e)]
            each = [weight[r, j * half : (j + 1) * half] @ second[j] + bias[r] for j, r in enumerate(rows)]
            scores.append(softmax(gates[t]) @ np.array(each))
        return np.array(scores)


@pytest.fixture(scope="module")
def kir() -> Kir:
    torch.manual_seed(5)
    kir = Kir(CONFIG, SPEC).eval()
    kir.set_pxtr_constants(torch.linspace(-1.0, 0.5, 7), torch.linspace(1.0, 2.0, 7))
    kir.candidate_gain.copy_(torch.linspace(1.0, 3.0, len(kir.candidate_gain)))
    kir.start_at_server(torch.randn(len(TASKS), 14))
    with torch.no_grad():
        for name, parameter in kir.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return kir


def state(n: int, seed: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Inputs of the whole graph with n watched videos, as tensors and as float64 arrays."""
    inputs = example_inputs(CONFIG, SPEC, "whole", N, seed=seed)
    for name in ("watched_rows", "watched_dense"):
        inputs[name][:, n + 1 :] = 0
    inputs["since"] = torch.linspace(1.0, 0.0, CONFIG.slots)[None].clone()
    inputs["since"][:, n + 1 :] = 0
    inputs["since"][:, 0] = 0  # the start token has no age
    inputs["behind"] = inputs["since"] ** 2
    inputs["memory_mask"] = torch.where(torch.arange(CONFIG.slots) <= n, 0.0, MASK_VALUE)[None]
    return inputs, {name: x.double().numpy() for name, x in inputs.items()}


@pytest.mark.parametrize("n", [0, 1, 4, CONFIG.watched])
@torch.no_grad()
def test_whole_graph_equals_the_reference(kir, n):
    inputs, blocks = state(n)
    found = graphs(kir)["whole", "N5"].module(**inputs)
    np.testing.assert_allclose(found[0].numpy(), Slow(kir).scores(blocks, n), atol=2e-5)


@pytest.mark.parametrize("placed", [(), (3,), (0, 4, 2)])
@torch.no_grad()
def test_place_graph_equals_the_reference(kir, placed):
    inputs, blocks = state(4, seed=2)
    made, slow = graphs(kir), Slow(kir)
    page = {name: inputs[name] for name in PAGE_BLOCKS}
    query, pre, kv = made["page", "N5"].module(**page)
    watched = {name: inputs[name] for name in ("watched_rows", "watched_dense")}
    memory, _ = kir.encode(kir.tokens(watched, None), causal_mask(CONFIG.slots, H))
    memory[:, 5:] = 0
    slots = torch.zeros(1, CONFIG.beams, CONFIG.placed, CONFIG.kv_width)
    mask = torch.full((1, CONFIG.beams, CONFIG.placed), MASK_VALUE)
    for slot, candidate in enumerate(placed):
        slots[0, 1, slot], mask[0, 1, slot] = kv[0, candidate], 0.0
    rest = {name: inputs[name] for name in ("memory_mask", "since", "behind", "swipe_dense", "candidate_swipe")}
    found = made["place", "N5"].module(query, pre, memory, **rest, placed=slots, placed_mask=mask)
    np.testing.assert_allclose(found[0, 1].numpy(), slow.scores(blocks, 4, placed), atol=2e-5)
    np.testing.assert_allclose(found[0, 0].numpy(), slow.scores(blocks, 4), atol=2e-5)


@torch.no_grad()
def test_page_graph_equals_the_reference(kir):
    inputs, blocks = state(0)
    found = graphs(kir)["page", "N5"].module(**{name: inputs[name] for name in PAGE_BLOCKS})
    for i in range(N):
        for ours, theirs in zip(found, Slow(kir).page(blocks, i), strict=True):
            np.testing.assert_allclose(ours[0, i].numpy(), theirs, atol=2e-5)


@torch.no_grad()
def test_folding_changes_nothing(kir):
    """Plain linear layers everywhere, the same numbers, and no weight where the mask has none."""
    plain = kir.folded()
    assert not any(isinstance(module, MaskedLinear) for module in plain.modules())
    assert any(isinstance(module, MaskedLinear) for module in kir.modules()), "the net itself is left as it is"
    assert not any(parameter.requires_grad for name, parameter in plain.named_parameters() if "weight" in name)
    x = torch.randn(1, 3, 2 * D)
    for name in ("q", "k", "v", "up"):
        torch.testing.assert_close(getattr(plain.blocks[0], name)(x), getattr(kir.blocks[0], name)(x))
    assert float((plain.blocks[0].k.weight * (1 - kir.blocks[0].k.mask)).abs().max()) == 0.0


def test_norm_is_of_each_tower():
    x = torch.randn(2, 3, 2 * D) * torch.tensor([1.0] * D + [9.0] * D)
    normed = TowerNorm(D, 2)(x).reshape(2, 3, 2, D)
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(2, 3, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed[..., 0, :], x[..., :D] / x[..., :D].square().mean(-1, keepdim=True).sqrt())
    assert torch.isfinite(TowerNorm(D, 2)(torch.zeros(1, 1, 2 * D))).all()


@pytest.mark.parametrize(("batch", "t"), [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_shapes_for_one_token_one_window_and_many_hold_the_same_numbers(batch, t):
    """The branches that save transposes on the phone order towers, tokens and heads like the general one."""
    rows = 2
    x = torch.arange(batch * t * 2 * rows * 5.0).reshape(batch, t, 2 * rows * 5)
    general = x.reshape(batch, t, 2, rows * 5).transpose(1, 2).reshape(batch * 2, t * rows, 5)
    assert torch.equal(towers_first(x, 2, rows), general)
    assert torch.equal(towers_last(towers_first(x, 2, rows), batch, t), x)
    alone = x.reshape(batch, t * rows, -1)
    assert torch.equal(towers_first(x, 1, rows), alone)
    assert torch.equal(towers_last(alone, batch, t), x)
    heads = x.reshape(batch, t, 4, rows * 5 // 2).transpose(1, 2).reshape(batch * 4, t, rows * 5 // 2)
    assert torch.equal(heads_first(x, 4), heads)
    assert torch.equal(heads_last(heads_first(x, 4), batch), x)


def test_causal_mask_has_a_row_per_head():
    mask = causal_mask(3, 2, -5.0)
    assert mask.shape == (1, 6, 3)
    assert mask[0, 0].tolist() == mask[0, 1].tolist() == [0, -5, -5]
    assert mask[0, 4].tolist() == [0, 0, 0]


def test_logits_are_free_below_the_bound_and_charged_above():
    assert float(excess(torch.tensor([-LOGIT_BOUND, 0.0, LOGIT_BOUND]))) == 0.0
    assert float(excess(torch.tensor([LOGIT_BOUND + 2.0, -LOGIT_BOUND - 2.0]))) == pytest.approx(4.0)


def test_training_charges_every_attention():
    """Watched blocks, target attention and placed attention: loud queries are charged, and only while training."""
    for loud in ("blocks.0.q", "page_in.candidate_dense", "placed_query"):
        torch.manual_seed(0)
        kir = Kir(CONFIG, SPEC)
        inputs, _ = state(4)
        blocks = {**inputs, "visible": (inputs["memory_mask"] == 0).float().expand(1, N, -1)}
        blocks |= {name: inputs[name].expand(1, N, -1) for name in ("since", "behind")}
        blocks["placed"] = torch.zeros(1, N, N)
        for name in ("user_rows", "user_dense", "swipe_dense"):
            blocks[name] = inputs[name][:, None].expand(1, N, -1)
        kir.train()(blocks)
        before = float(kir.logit_excess().detach())
        with torch.no_grad():
            kir.get_submodule(loud).weight.mul_(200.0)
        kir(blocks)
        assert float(kir.logit_excess().detach()) > before + 1.0, loud


@torch.no_grad()
def test_queries_start_alike():
    """Before training, a candidate attends most to the watched video that has its features."""
    torch.manual_seed(0)
    kir = Kir(KirConfig.of("tiny"), SPEC).eval()
    width, rows = kir.config.width, SPEC.width("candidate_rows")
    videos = torch.randn(8, rows) * 0.2
    tokens = kir.token_rows(videos)
    keys = kir.memory(kir.norm(tokens[:, None]))[:, 0, :width]
    direct = kir.page_in["candidate_rows"](videos)[:, kir.config.bottom : kir.config.bottom + width]
    hits = int((direct @ keys.T).argmax(1).eq(torch.arange(8)).sum())
    assert hits >= 6, "by chance it would be one of eight"
