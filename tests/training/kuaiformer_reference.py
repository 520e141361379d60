"""KuaiFormer's encoder written slowly: one user, one head, one query at a time, rotations as complex numbers.

There is no padding and no additive mask here: what is absent is not there, what must not be seen is left out of the
softmax. Float64 throughout.

Shapes: T tokens, D width, E width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.blocks import RMSNorm, RotaryBlock, SwiGLU
from training.kuaiformer import Encoder

Floats = NDArray[np.float64]


def array(tensor: torch.Tensor) -> Floats:
    return tensor.detach().double().numpy()


def linear(layer: Any, x: Floats) -> Floats:
    y = array(layer.weight) @ x
    return y if layer.bias is None else y + array(layer.bias)


def norm(layer: RMSNorm, x: Floats) -> Floats:
    return x / np.sqrt(sum(value**2 for value in x) / len(x) + layer.eps) * array(layer.weight)


def swiglu(layer: SwiGLU, x: Floats) -> Floats:
    gate = linear(layer.gate, x)
    return linear(layer.down, gate / (1 + np.exp(-gate)) * linear(layer.up, x))


def turned(x_E: Floats, position: int) -> Floats:
    """The pair (i, i + E / 2) is a complex number and turns by position · 10000^(-2i / E)."""
    half = len(x_E) // 2
    angles = position * 10_000.0 ** (-2 * np.arange(half) / len(x_E))
    pairs = (x_E[:half] + 1j * x_E[half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag])


def block(layer: RotaryBlock, x_TD: list[Floats], positions: list[int], sees: list[list[int]]) -> list[Floats]:
    """sees: for every token, the numbers of the tokens it may look at."""
    width = layer.width // layer.heads
    parts = [np.split(linear(layer.qkv, norm(layer.attention_norm, x)), 3) for x in x_TD]
    read: list[list[Floats]] = [[] for _ in x_TD]
    for head in range(layer.heads):
        of_head = slice(head * width, (head + 1) * width)
        queries = [turned(part[0][of_head], position) for part, position in zip(parts, positions, strict=True)]
        keys = [turned(part[1][of_head], position) for part, position in zip(parts, positions, strict=True)]
        for i, query in enumerate(queries):
            weights = np.exp([query @ keys[j] / np.sqrt(width) for j in sees[i]])
            values = [parts[j][2][of_head] for j in sees[i]]
            read[i].append(sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True)))
    found = []
    for x, of_x in zip(x_TD, read, strict=True):
        x = x + linear(layer.out, np.concatenate(of_x))
        found.append(x + swiglu(layer.feed_forward, norm(layer.feed_forward_norm, x)))
    return found


def encoder(net: Encoder, rows_LR: torch.Tensor, mask_L: torch.Tensor) -> Floats:
    """Interests of one history: [K, D]. The plan's windows lie at the input's front, whatever is padding there."""
    windows = net.config.plan(len(rows_LR))[0]
    rows, real = array(rows_LR), [bool(m) for m in mask_L]

    def token(place: int) -> Floats:
        return swiglu(net.token[1], linear(net.token[0], rows[place])) + linear(net.token_skip, rows[place])

    tokens, positions, start = [], [], 0
    for number, size in enumerate(windows):
        places = [i for i in range(start, start + size) if real[i]]
        start += size
        if places:
            everyone = [list(range(len(places)))] * len(places)
            x = [token(i) for i in places]
            tokens.append(np.mean(block(net.window_block, x, places, everyone), axis=0))
            positions.append(number)
    for i in range(start, len(rows)):
        if real[i]:
            tokens.append(token(i))
            positions.append(len(windows) + i - start)
    behind = len(windows) + len(rows) - start
    n_items, n_queries = len(tokens), net.config.interests
    last = token(len(rows) - 1) if net.config.last_item and real[-1] else 0.0
    x = [*tokens, *(query + last for query in array(net.queries))]
    positions += [behind + j for j in range(n_queries)]
    for layer in net.blocks:
        x = block(layer, x, positions, [list(range(i + 1)) for i in range(len(x))])
    answers = [linear(net.out, norm(net.norm, q)) for q in x[n_items:]]
    return np.array([a / np.linalg.norm(a) for a in answers] if net.config.normalise else answers)
