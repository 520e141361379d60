"""Transformer parts against plain formulas, and that masks hide what they say they hide."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contract.errors import InputError
from training.blocks import (
    Attention,
    RMSNorm,
    SwiGLU,
    TransformerBlock,
    additive_mask,
    attend,
    causal_mask,
    masked_mean,
    merge_heads,
    split_heads,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rms_norm_is_the_formula():
    norm = RMSNorm(6)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(3, 4, 6)
    slow = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * norm.weight
    torch.testing.assert_close(norm(x), slow)
    assert not norm(torch.zeros(2, 6)).any()


def test_swiglu_is_the_formula():
    part = SwiGLU(6, 10, 3)
    x = torch.randn(5, 6)
    gate, up = x @ part.gate.weight.T, x @ part.up.weight.T
    torch.testing.assert_close(part(x), (gate * torch.sigmoid(gate) * up) @ part.down.weight.T)
    assert SwiGLU(6, 10)(x).shape == (5, 6)


def slow_attention(part: Attention, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One head, one query, one key at a time."""
    names = ("query", "key", "value", "out")
    query, key, value, out = (getattr(part, name).weight.detach().numpy() for name in names)
    q, k, v = x @ query.T, x @ key.T, x @ value.T
    width = x.shape[1] // part.heads
    result = np.zeros_like(x)
    for head in range(part.heads):
        cut = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            logits = np.array([q[i, cut] @ k[j, cut] / math.sqrt(width) + mask[i, j] for j in range(len(x))])
            weights = np.exp(logits - logits.max())
            result[i, cut] = (weights / weights.sum()) @ v[:, cut]
    return result @ out.T


def test_attention_equals_the_slow_one():
    part = Attention(8, 2)
    x = torch.randn(2, 5, 8)
    mask = causal_mask(5, -30.0)
    fast = part(x, mask)
    for b in range(2):
        slow = slow_attention(part, x[b].numpy(), mask.numpy())
        np.testing.assert_allclose(fast[b].detach().numpy(), slow, rtol=1e-4, atol=1e-6)


def test_attention_takes_another_context():
    part = Attention(8, 2)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 7, 8)
    assert part(x, None, context).shape == (2, 3, 8)
    torch.testing.assert_close(part(x), part(x, None, x))


def test_attend_matches_torch():
    q, k, v = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(attend(q, k, v, None), torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_heads_split_and_merge():
    x = torch.randn(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(merge_heads(split_heads(x, 3)), x)
    assert torch.equal(split_heads(x, 3)[1, 2, 4], x[1, 4, 8:])


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="multiple of the heads"):
        Attention(10, 3)


def test_a_causal_block_never_looks_ahead():
    block = TransformerBlock(8, 2, 16).eval()
    x = torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 3.0
    one, other = block(x, causal_mask(6, -1e4)), block(changed, causal_mask(6, -1e4))
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])


def test_masked_keys_do_not_count():
    block = TransformerBlock(8, 2, 16).eval()
    x = torch.randn(1, 6, 8)
    present = torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    masked = block(x, additive_mask(present, -1e4)[:, None, None])
    torch.testing.assert_close(masked[:, :4], block(x[:, :4]))


def test_the_block_is_pre_norm_with_residuals():
    block = TransformerBlock(8, 2, 16).eval()
    x = torch.randn(2, 3, 8)
    middle = x + block.attention(block.attention_norm(x))
    torch.testing.assert_close(block(x), middle + block.feed_forward(block.feed_forward_norm(middle)))


def test_dropout_acts_in_training_alone():
    block = TransformerBlock(8, 2, 16, dropout=0.5)
    x = torch.randn(2, 3, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_masks():
    assert causal_mask(3, -30.0).tolist() == [[0, -30, -30], [0, 0, -30], [0, 0, 0]]
    assert additive_mask(torch.tensor([1.0, 0.0]), -30.0).tolist() == [0, -30]


def test_masked_mean_of_nothing_is_zero():
    x = torch.randn(2, 4, 3)
    present = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    mean = masked_mean(x, present)
    torch.testing.assert_close(mean[0], (x[0, 0] + x[0, 2]) / 2)
    assert not mean[1].any()
