"""Transformer parts against plain formulas, and that masks hide what they say they hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.errors import InputError
from tests.training import kuaiformer_reference as slow
from training.blocks import (
    MASK,
    Dropout,
    RMSNorm,
    RotaryBlock,
    SwiGLU,
    additive_mask,
    attend,
    attend_with_own,
    causal_mask,
    masked_mean,
    merge_heads,
    rotate,
    rotations,
    split_heads,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def block_of(width: int = 12, heads: int = 3, hidden: int = 16) -> RotaryBlock:
    """Weights far from their small initial values, so that attention isn't nearly even."""
    block = RotaryBlock(width, heads, hidden).eval()
    with torch.no_grad():
        for weight in block.parameters():
            weight.mul_(2.0)
    return block


def test_rms_norm_is_the_formula():
    norm = RMSNorm(6)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(3, 4, 6)
    for row, of_norm in zip(x.reshape(-1, 6), norm(x).reshape(-1, 6), strict=True):
        np.testing.assert_allclose(of_norm.detach(), slow.norm(norm, slow.array(row)), rtol=1e-5)
    assert not norm(torch.zeros(2, 6)).any()


def test_swiglu_is_the_formula():
    part = SwiGLU(6, 10, 3)
    x = torch.randn(5, 6)
    expected = [slow.swiglu(part, slow.array(row)) for row in x]
    np.testing.assert_allclose(part(x).detach(), expected, rtol=1e-4, atol=1e-6)
    assert SwiGLU(6, 10)(x).shape == (5, 6)


def test_rotations_turn_pairs_by_the_papers_angles():
    x = torch.randn(1, 1, 5, 8)
    positions = torch.tensor([0, 1, 2, 7, 100])
    found = rotate(x, rotations(positions, 8))[0, 0]
    for row, position, of_row in zip(x[0, 0], positions, found, strict=True):
        np.testing.assert_allclose(of_row, slow.turned(slow.array(row), int(position)), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0], x[0, 0, 0]), "position 0 turns nothing"


def test_logits_depend_on_differences_of_positions_alone():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def logit(of_query: int, of_key: int) -> float:
        turns = [rotations(torch.tensor([p]), 8) for p in (of_query, of_key)]
        return float((rotate(q, turns[0]) * rotate(k, turns[1])).sum())

    assert logit(9, 4) == pytest.approx(logit(105, 100), abs=1e-4)
    assert logit(9, 4) != pytest.approx(logit(4, 9), abs=1e-2)


def test_heads_split_and_merge():
    x = torch.randn(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(merge_heads(split_heads(x, 3)), x)
    assert torch.equal(split_heads(x, 3)[1, 2, 4], x[1, 4, 8:])


@pytest.mark.parametrize(("width", "heads"), [(10, 3), (9, 3), (6, 6)])
def test_heads_must_divide_the_width_evenly(width, heads):
    with pytest.raises(InputError, match="multiple of the heads"):
        RotaryBlock(width, heads, 16)


def test_the_block_equals_the_slow_one():
    """One row without padding, one whose first two tokens aren't there."""
    block, length = block_of(), 6
    x = torch.randn(2, length, 12)
    present = torch.tensor([[1.0] * 6, [0, 0, 1, 1, 1, 1]])
    turn = rotations(torch.arange(length), 4)
    found = block(x, turn, causal_mask(length, MASK), additive_mask(present, MASK))
    for b, first in enumerate((0, 2)):
        places = list(range(first, length))
        sees = [list(range(i + 1)) for i in range(len(places))]
        expected = slow.block(block, [slow.array(x[b, i]) for i in places], places, sees)
        np.testing.assert_allclose(found[b, first:].detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_causal_block_never_looks_ahead():
    block = block_of()
    masks = rotations(torch.arange(6), 4), causal_mask(6, MASK), torch.zeros(1, 6)
    x = torch.randn(1, 6, 12)
    changed = x.clone()
    changed[:, 4:] += 3.0
    one, other = block(x, *masks), block(changed, *masks)
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])


def test_absent_keys_do_not_count():
    block = block_of()
    x = torch.randn(1, 6, 12)
    nothing, turn = torch.zeros(6, 6), rotations(torch.arange(6), 4)
    absent = additive_mask(torch.tensor([[1.0, 1, 1, 1, 0, 0]]), MASK)
    short = block(x[:, :4], rotations(torch.arange(4), 4), nothing[:4, :4], absent[:, :4])
    torch.testing.assert_close(block(x, turn, nothing, absent)[:, :4], short)
    changed = torch.cat([x[:, :4], 50 * torch.randn(1, 2, 12)], dim=1)
    assert torch.equal(block(x, turn, nothing, absent)[:, :4], block(changed, turn, nothing, absent)[:, :4])


def test_queries_with_keys_of_their_own_equal_one_row_of_attention_each():
    """Against `attend` over [sequence | own cut's queries up to itself], query by query."""
    heads, n_tokens, n_cuts, n_queries, width = 2, 5, 3, 2, 4
    key, value = torch.randn(2, 1, heads, n_tokens, width)
    query, own_key, own_value = torch.randn(3, 1, heads, n_cuts * n_queries, width)
    absent = additive_mask(torch.tensor([[0.0, 1, 1, 1, 1]]), MASK)
    hidden = torch.zeros(n_cuts * n_queries, n_tokens)
    for p in range(n_cuts):
        hidden[p * n_queries : (p + 1) * n_queries, n_tokens - n_cuts + p + 1 :] = MASK
    own = (own_key.unflatten(2, (n_cuts, n_queries)), own_value.unflatten(2, (n_cuts, n_queries)))
    found = attend_with_own(query, key, value, hidden, absent, own)
    for p in range(n_cuts):
        for j in range(n_queries):
            place, seen = p * n_queries + j, slice(1, n_tokens - n_cuts + p + 1)
            mine = slice(p * n_queries, place + 1)
            keys = torch.cat([key[:, :, seen], own_key[:, :, mine]], dim=2)
            values = torch.cat([value[:, :, seen], own_value[:, :, mine]], dim=2)
            free = torch.zeros(1, keys.shape[2])
            one = attend(query[:, :, place : place + 1], keys, values, free, free)
            torch.testing.assert_close(found[:, :, place : place + 1], one)


def test_the_last_block_leaves_the_sequence():
    block = block_of()
    x, q = torch.randn(2, 5, 12), torch.randn(2, 3, 2, 12)
    turn, turn_q = rotations(torch.arange(5), 4), rotations(torch.arange(6), 4)
    hidden, absent = causal_mask(5, MASK), torch.zeros(2, 5)
    masks = (hidden, hidden[2:].repeat_interleave(2, dim=0), absent)
    x_last, q_last = block.with_cuts(x, q, turn, turn_q, *masks, True)
    x_next, q_next = block.with_cuts(x, q, turn, turn_q, *masks, False)
    assert torch.equal(x_last, x)
    assert torch.equal(q_last, q_next)
    assert torch.equal(x_next, block(x, turn, hidden, absent)), "the sequence never sees a query"


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_dropout_keeps_the_mean_and_drops_the_rate(rate):
    dropout, x = Dropout(rate), torch.ones(300, 701)
    found = dropout(x)
    share = round(rate * 256) / 256 if rate < 0.999 else 255 / 256
    assert float((found == 0).float().mean()) == pytest.approx(share, abs=0.005)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.1)
    assert len(found.unique()) == 2
    assert not torch.equal(found, dropout(x))
    torch.manual_seed(3)
    again = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), again)


def test_dropout_acts_in_training_alone_and_passes_gradients():
    dropout = Dropout(0.5)
    x = torch.randn(4, 7, requires_grad=True)
    out = dropout(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 2.0))
    dropout.eval()
    assert dropout(x) is x
    assert Dropout(0.0)(x) is x
    for rate in (1.0, -0.1):
        with pytest.raises(InputError, match="below 1"):
            Dropout(rate)


def test_masks():
    assert causal_mask(3, -30.0).tolist() == [[0, -30, -30], [0, 0, -30], [0, 0, 0]]
    assert additive_mask(torch.tensor([1.0, 0.0]), -30.0).tolist() == [0, -30]
    assert float(torch.tensor(MASK).exp()) == 0.0, "what is masked has no weight at all"


def test_masked_mean_of_nothing_is_zero():
    x = torch.randn(2, 4, 3)
    present = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    mean = masked_mean(x, present)
    torch.testing.assert_close(mean[0], (x[0, 0] + x[0, 2]) / 2)
    assert not mean[1].any()
