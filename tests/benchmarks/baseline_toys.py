"""Small worlds for the baselines' tests, and plain loops for what the nets do with matrices."""

from __future__ import annotations

import math

import numpy as np
import torch

from contract.vocabulary import MISSING_KEY, TAGS_MAX
from training.readers import LeaveOneOut
from training.retrieval_split import split_of


def sequences(histories, val, test=None):
    """A split from lists of catalogue rows; every user has a val and a test item."""
    n_items = max(max(h) for h in [*histories, val]) + 1
    data = LeaveOneOut(
        item_ids=np.arange(n_items) + 100,
        user_ids=np.arange(len(histories)),
        train_items=np.concatenate(histories).astype(np.int64),
        offsets=np.append(0, np.cumsum([len(h) for h in histories])),
        val_items=np.array(val),
        test_items=np.array(test if test is not None else val),
        item_tags=np.full((n_items, TAGS_MAX), MISSING_KEY, np.uint64),
    )
    return split_of(data, "toy")


def ring(n_users=60, n_items=12, length=9):
    """Every item is followed by the next one on a ring."""
    starts = np.random.default_rng(0).integers(0, n_items, n_users)
    walks = [(start + np.arange(length + 1)) % n_items for start in starts]
    return sequences([walk[:-1] for walk in walks], [int(walk[-1]) for walk in walks])


def groups(n_users=80, n_groups=4, size=6, length=5):
    """A user likes one group's items, in any order; val is one that is not in the history."""
    random = np.random.default_rng(0)
    orders = [random.permutation(size) + size * (user % n_groups) for user in range(n_users)]
    return sequences([order[:length] for order in orders], [int(order[-1]) for order in orders])


def layer_norm(x, module):
    x = np.asarray(x)
    y = (x - x.mean()) / math.sqrt(x.var() + module.eps)
    return y * module.weight.detach().numpy() + module.bias.detach().numpy()


def linear(x, module):
    return module.weight.detach().numpy() @ x + (0.0 if module.bias is None else module.bias.detach().numpy())


def softmax(x):
    e = np.exp(np.asarray(x) - np.max(x))
    return e / e.sum()


def sasrec_by_hand(net, items):
    """Output behind the last of some item vectors [n, D]: one position and one head at a time."""
    n, width = items.shape
    positions = net.position.detach().numpy()
    xs = [items[i] * math.sqrt(width) + positions[len(positions) - n + i] for i in range(n)]
    for block in net.blocks:
        queries = [layer_norm(x, block.attention_norm) for x in xs]
        q, k, v = ([linear(x, m) for x in s] for s, m in ((queries, block.query), (xs, block.key), (xs, block.value)))
        ys, size = [], width // block.heads
        for i in range(n):
            y = queries[i].copy()
            for head in range(block.heads):
                part = slice(head * size, (head + 1) * size)
                weights = softmax([q[i][part] @ k[j][part] / math.sqrt(size) for j in range(i + 1)])
                y[part] += sum(w * v[j][part] for j, w in enumerate(weights))
            y = layer_norm(y, block.feed_forward_norm)
            ys.append(y + linear(np.maximum(linear(y, block.inner), 0), block.outer))
        xs = ys
    return [layer_norm(xs[-1], net.norm)]


def gru4rec_by_hand(net, items):
    """The GRU's equations, one step at a time."""
    state = np.zeros(items.shape[1])
    p = {name: value.detach().numpy() for name, value in net.gru.named_parameters()}
    for item in items:
        ir, iz, ic = np.split(p["weight_ih_l0"] @ item + p["bias_ih_l0"], 3)
        hr, hz, hc = np.split(p["weight_hh_l0"] @ state + p["bias_hh_l0"], 3)
        reset, update = 1 / (1 + np.exp(-ir - hr)), 1 / (1 + np.exp(-iz - hz))
        state = (1 - update) * np.tanh(ic + reset * hc) + update * state
    return [state]


def comirec_sa_by_hand(net, items):
    """A = softmax(W2 tanh(W1 (H + P))), V = A H (section 3.2), over the last `length` items."""
    window = items[-net.length :]
    hidden = [np.tanh(linear(h + net.position.detach().numpy()[i], net.inner)) for i, h in enumerate(window)]
    found = []
    for direction in net.outer.weight.detach().numpy():
        weights = softmax([direction @ h for h in hidden])
        found.append(sum(w * h for w, h in zip(weights, window, strict=True)))
    return found


def comirec_dr_by_hand(net, items):
    """Algorithm 1 of the paper, over the last `length` items."""
    window, n_k = items[-net.length :], net.interests
    width = items.shape[1]
    matrices = net.votes.detach().numpy()
    votes = [(h @ matrices[i if len(matrices) > 1 else 0]).reshape(n_k, width) for i, h in enumerate(window)]
    b = np.zeros((len(window), n_k))
    for round_number in range(3):
        capsules = []
        for k in range(n_k):
            z = sum(softmax(b[i])[k] * votes[i][k] for i in range(len(window)))
            square = z @ z
            capsules.append(z * square / (1 + square) / math.sqrt(square + 1e-9))
        if round_number < 2:
            for i in range(len(window)):
                for k in range(n_k):
                    b[i, k] += votes[i][k] @ capsules[k]
    return capsules


BY_HAND = {
    "sasrec": sasrec_by_hand,
    "gru4rec": gru4rec_by_hand,
    "comirec-sa": comirec_sa_by_hand,
    "comirec-dr": comirec_dr_by_hand,
}


def shuffled_weights(net, seed=0):
    """The net with every weight drawn anew, so that none is zero or one by its start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return net.eval()
