"""KuaiFormer's encoder as an ONNX graph written out by hand, in the form in which onnxruntime is quickest.

Tracing `training.kuaiformer.Encoder` gives a correct graph that spends much of its time outside matrix products. This
one computes the same, and is compared with torch before it is kept; `kir bench encoder` measures how far it is from
the least time that its products take.

- tokens and queries are one sequence of T = windows + latest + K, so that each weight is read once a layer;
- the last layer is worked out for the queries alone, nobody reads its items;
- the token MLP's first linear layer is folded into the gate and up projections where that takes fewer products;
- a window's mean goes before the compression layer's down projection, which is linear: one row a window, not its items;
- attention, RMSNorm and rotary positions are operators of opset 23 instead of a dozen nodes each.

The same in two halves (`window_graph`, `tail_graph`) for a server that keeps a user's windows between two answers.

Shapes: B batch, L history (right-aligned, padding first), R columns of history_rows, D width, E width of a head,
F hidden, W windows, T tokens of the stack (queries included), K interests.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.blocks import RMSNorm, RotaryBlock, SwiGLU, rotations
from training.kuaiformer import Encoder

OPSET = 23
IR_VERSION = 10  # of onnx 1.16, which every onnxruntime with opset 23 reads

# Added to what must not be seen. exp(-64) = 2e-28 is lost in any float32 sum next to a 1, as training's -1e4 is; but
# below -87 the exponential is a denormal number, over which onnxruntime's softmax takes five times as long.
MASK = -64.0

Floats = NDArray[np.float32]


def encoder_graph(encoder: Encoder, row_width: int) -> onnx.ModelProto:
    """history_rows float32 [B, L, R], history_mask float32 [B, L] (1 = real) -> interests float32 [B, K, D]; B is free.

    L is the whole plan's length. What stands in padding rows can't reach an answer.
    """
    config, g = encoder.config, _Graph("history_mask")
    tokens_BLD = _tokens(g, encoder)
    early, parts, present = sum(config.windows), [], []
    if config.windows:
        windows_BWD, present_BW = _compressed(g, encoder, tokens_BLD)
        parts.append(windows_BWD)
        present.append(present_BW)
    parts.append(g.cut(tokens_BLD, early, config.length))
    present.append(g.cut("history_mask", early, config.length))
    asked = np.arange(config.interests)[None] + len(config.windows) + config.latest
    last = g.cut(tokens_BLD, config.length - 1, config.length)
    interests = _answered(g, encoder, parts, present, g.batched(asked), last)
    inputs = {"history_rows": ["b", config.length, row_width], "history_mask": ["b", config.length]}
    return g.model("encoder", inputs, {"interests": (interests, [config.interests, config.vector_width])})


def window_graph(encoder: Encoder, row_width: int) -> onnx.ModelProto:
    """`Encoder.compressed` of windows of one size: history_rows [B, S, R], history_mask [B, S] -> token [B, D],
    present [B]; B windows, be they of one history or of many, of S items up to the plan's largest.

    One graph for all sizes: a server goes from one to the other, and finds the weights in its caches.
    """
    g, block, config = _Graph("history_mask"), encoder.window_block, encoder.config
    x = _tokens(g, encoder)
    there = g.op("Unsqueeze", "history_mask", g.ints(1))  # [B, 1, S]
    size = g.op("Shape", "history_mask", start=1, end=2)
    places = g.op("Range", g.const(np.int64(0)), g.op("Squeeze", size), g.const(np.int64(1)))
    places = g.op("Expand", g.op("Unsqueeze", places, g.ints(0)), g.op("Shape", "history_mask"))
    turn = (*_turns(g, np.arange(max(config.windows)), config.width // config.heads), places)
    normed = _norm(g, x, block.attention_norm)
    query, key, value = _projected(g, block, normed, normed)
    query, key = _rotated(g, query, turn, config.heads), _rotated(g, key, turn, config.heads)
    absent = g.op("Unsqueeze", g.op("Mul", g.op("Sub", g.const(1.0), there), g.const(MASK)), g.ints(1))
    absent = g.op("Expand", absent, g.op("Concat", g.ints(1, 1), size, g.ints(1), axis=0))
    read = _attended(g, query, key, value, absent, config.heads)
    x = g.op("Add", x, g.matmul(read, _array(block.out.weight).T))
    hidden = _hidden(g, block.feed_forward, _norm(g, x, block.feed_forward_norm))
    count = g.op("ReduceSum", there, g.ints(2), keepdims=1)
    mean = g.op("Div", there, g.op("Max", count, g.const(1.0)))
    down = g.matmul(g.op("MatMul", mean, hidden), _array(block.feed_forward.down.weight).T)
    token = g.op("Squeeze", g.op("Add", g.op("MatMul", mean, x), down), g.ints(1))
    present = g.op("Squeeze", g.op("Min", count, g.const(1.0)), g.ints(1, 2))
    inputs: dict[str, list[Any]] = {"history_rows": ["b", "s", row_width], "history_mask": ["b", "s"]}
    return g.model("window", inputs, {"token": (token, [config.width]), "present": (present, [])})


def tail_graph(encoder: Encoder, row_width: int) -> onnx.ModelProto:
    """`Encoder.behind`: tokens [B, W, D], present [B, W] as `window_graph` gave them, and up to `latest` raw items,
    history_rows [B, latest, R], history_mask [B, latest] with the padding *behind* them -> interests [B, K, D].

    The queries stand right behind the last real item, wherever that is, as they do in training.
    """
    config, g = encoder.config, _Graph("history_mask")
    n_windows = len(config.windows)
    count_B1 = g.op("ReduceSum", "history_mask", g.ints(1), keepdims=1)
    asked = g.op(
        "Add", g.op("Cast", count_B1, to=TensorProto.INT64), g.ints(*(n_windows + np.arange(config.interests)))
    )
    tokens = _tokens(g, encoder)
    later = g.op("Pad", g.cut("history_mask", 1, config.latest), g.ints(0, 0, 0, 1))
    last = g.op("MatMul", g.op("Unsqueeze", g.op("Sub", "history_mask", later), g.ints(1)), tokens)  # of the last real
    interests = _answered(g, encoder, ["tokens", tokens], ["present", "history_mask"], asked, last)
    inputs = {"tokens": ["b", n_windows, config.width], "present": ["b", n_windows]}
    inputs |= {"history_rows": ["b", config.latest, row_width], "history_mask": ["b", config.latest]}
    return g.model("tail", inputs, {"interests": (interests, [config.interests, config.vector_width])})


def _answered(g: _Graph, encoder: Encoder, parts: list[str], present: list[str], asked_BK: str, last_B1D: str) -> str:
    """Interests [B, K, D] of token parts [B, ·, D] and their presence; asked_BK: places of the queries behind them;
    last_B1D: the token of the last item, 0 for an empty history."""
    config = encoder.config
    queries = g.batched(_array(encoder.queries)[None])
    x_BTD = g.op("Concat", *parts, g.op("Add", queries, last_B1D) if config.last_item else queries, axis=1)
    present_BT = g.op("Concat", *present, g.batched(np.ones((1, config.interests), np.float32)), axis=1)
    interests = _stack(g, encoder, x_BTD, present_BT, asked_BK)
    if config.recency_days is None:
        return interests
    weight = np.full((1, config.interests, 1), _array(encoder.recency), np.float32)
    return g.op("Concat", interests, g.batched(weight), axis=2)


def _tokens(g: _Graph, encoder: Encoder) -> str:
    """Token MLP and its skip: [B, L, D], zero in the padding.

    The mask is a column of its own: it zeroes what padding rows hold and carries the first layer's bias.
    """
    linear, mlp = encoder.token[0], encoder.token[1]
    mask_BL1 = g.op("Unsqueeze", "history_mask", g.ints(2))
    rows = g.op("Concat", g.op("Mul", "history_rows", mask_BL1), mask_BL1, axis=2)
    first, gate, up = np.concatenate([_array(linear.weight).T, _array(linear.bias)[None]]), mlp.gate, mlp.up
    if 2 * gate.weight.numel() + first.size > 2 * len(first) * len(gate.weight):
        exact = first.astype(np.float64)
        folded = [(exact @ _array(part.weight).T).astype(np.float32) for part in (gate, up)]
        hidden = _gated(g, *(g.matmul(rows, weight) for weight in folded))
    else:
        hidden = _hidden(g, mlp, g.matmul(rows, first))
    skip = _array(encoder.token_skip.weight).T
    skip = np.concatenate([skip, np.zeros_like(skip[:1])])
    return g.op("Add", g.matmul(hidden, _array(mlp.down.weight).T), g.matmul(rows, skip))


def _compressed(g: _Graph, encoder: Encoder, tokens_BLD: str) -> tuple[str, str]:
    """One token per window [B, W, D], and whether it holds anything [B, W]: paper 2.3, all windows in one pass."""
    config, block, windows = encoder.config, encoder.window_block, encoder.config.windows
    early = sum(windows)
    x, there = g.cut(tokens_BLD, 0, early), g.cut("history_mask", 0, early)
    absent = g.op("Mul", g.op("Sub", g.const(1.0), there), g.const(MASK))
    # Each window counts its positions from 0: the table repeats, the places run through.
    place = np.concatenate([np.arange(size) for size in windows])
    turn = (*_turns(g, place, config.width // config.heads), g.batched(np.arange(early)[None]))
    normed = _norm(g, x, block.attention_norm)
    query, key, value = _projected(g, block, normed, normed)
    query, key = _rotated(g, query, turn, config.heads), _rotated(g, key, turn, config.heads)
    read, start = [], 0
    for size, group in groupby(windows):
        end = start + len(list(group)) * size
        q, k, v = (g.op("Reshape", g.cut(p, start, end), g.ints(-1, size, config.width)) for p in (query, key, value))
        mask = g.op("Reshape", g.cut(absent, start, end), g.ints(-1, 1, 1, size))
        mask = g.op("Expand", mask, g.ints(1, 1, size, 1))
        read.append(g.op("Reshape", _attended(g, q, k, v, mask, config.heads), g.ints(-1, end - start, config.width)))
        start = end
    x = g.op("Add", x, g.matmul(g.op("Concat", *read, axis=1), _array(block.out.weight).T))
    hidden = _hidden(g, block.feed_forward, _norm(g, x, block.feed_forward_norm))
    member = np.repeat(np.eye(len(windows), dtype=np.float32), windows, axis=1)
    counted = g.op("Mul", g.const(member[None]), g.op("Unsqueeze", there, g.ints(1)))
    count_BW1 = g.op("ReduceSum", counted, g.ints(2), keepdims=1)
    mean = g.op("Div", counted, g.op("Max", count_BW1, g.const(1.0)))
    down = g.matmul(g.op("MatMul", mean, hidden), _array(block.feed_forward.down.weight).T)
    present = g.op("Min", g.op("Squeeze", count_BW1, g.ints(2)), g.const(1.0))
    return g.op("Add", g.op("MatMul", mean, x), down), present


def _stack(g: _Graph, encoder: Encoder, x: str, present_BT: str, asked_BK: str) -> str:
    """The causal stack over [tokens | queries] and the projection of the queries: [B, K, D]. asked_BK: their places."""
    config = encoder.config
    total = len(config.windows) + config.latest + config.interests
    first, head = total - config.interests, config.width // config.heads
    causal = np.triu(np.full((total, total), MASK, np.float32), 1)
    absent = g.op("Unsqueeze", g.op("Mul", g.op("Sub", g.const(1.0), present_BT), g.const(MASK)), g.ints(1, 2))
    mask, mask_queries = (g.op("Add", absent, g.const(part)) for part in (causal, causal[first:]))
    cos, sin = _turns(g, np.arange(total), head)
    turn = cos, sin, g.op("Concat", g.batched(np.arange(first)[None]), asked_BK, axis=1)
    turn_queries = cos, sin, asked_BK
    for number, block in enumerate(encoder.blocks):
        last = number == len(encoder.blocks) - 1
        normed = _norm(g, x, block.attention_norm)
        asking = g.cut(normed, first, total) if last else normed
        query, key, value = _projected(g, block, asking, normed)
        query = _rotated(g, query, turn_queries if last else turn, config.heads)
        key = _rotated(g, key, turn, config.heads)
        read = _attended(g, query, key, value, mask_queries if last else mask, config.heads)
        x = g.op("Add", g.cut(x, first, total) if last else x, g.matmul(read, _array(block.out.weight).T))
        hidden = _hidden(g, block.feed_forward, _norm(g, x, block.feed_forward_norm))
        x = g.op("Add", x, g.matmul(hidden, _array(block.feed_forward.down.weight).T))
    interests = g.matmul(_norm(g, x, encoder.norm), _array(encoder.out.weight).T)
    if not config.normalise:
        return interests
    square = g.op("ReduceSum", g.op("Mul", interests, interests), g.ints(2), keepdims=1)
    return g.op("Div", interests, g.op("Sqrt", g.op("Add", square, g.const(1e-12))))


def _projected(g: _Graph, block: RotaryBlock, asking: str, context: str) -> tuple[str, str, str]:
    """Query of `asking`, key and value of `context`. Three products: splitting one costs a copy and gains nothing."""
    query, key, value = np.split(_array(block.qkv.weight), 3)
    return g.matmul(asking, query.T), g.matmul(context, key.T), g.matmul(context, value.T)


def _rotated(g: _Graph, x: str, turn: tuple[str, str, str], heads: int) -> str:
    return g.op("RotaryEmbedding", x, *turn, num_heads=heads)


def _attended(g: _Graph, query: str, key: str, value: str, mask: str, heads: int) -> str:
    return g.op("Attention", query, key, value, mask, q_num_heads=heads, kv_num_heads=heads)


def _norm(g: _Graph, x: str, norm: RMSNorm) -> str:
    return g.op("RMSNormalization", x, g.const(_array(norm.weight)), axis=-1, epsilon=norm.eps)


def _hidden(g: _Graph, mlp: SwiGLU, x: str) -> str:
    return _gated(g, g.matmul(x, _array(mlp.gate.weight).T), g.matmul(x, _array(mlp.up.weight).T))


def _gated(g: _Graph, gate: str, up: str) -> str:
    """silu(gate) * up."""
    return g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)


def _turns(g: _Graph, positions: NDArray[Any], head_width: int) -> tuple[str, str]:
    """cos and sin by place [len(positions), E / 2]."""
    cos, sin = rotations(torch.from_numpy(positions), head_width)
    return g.const(cos.numpy()), g.const(sin.numpy())


def _array(tensor: Any) -> Floats:
    found: Floats = tensor.detach().cpu().float().numpy()
    return found


def _values(shapes: dict[str, list[Any]]) -> list[Any]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


class _Graph:
    """Nodes and constants as they are added; every method returns the name of a tensor."""

    def __init__(self, batched_by: str) -> None:
        """batched_by: an input whose first axis is the batch."""
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._held: dict[tuple[Any, ...], str] = {}
        self.batch = self.op("Shape", batched_by, start=0, end=1)

    def model(
        self, name: str, inputs: dict[str, list[Any]], outputs: dict[str, tuple[str, list[int]]]
    ) -> onnx.ModelProto:
        """The finished graph, checked. outputs: name -> tensor and its shape behind the batch."""
        for output, (tensor, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [tensor], [output], name=output))
        shapes = {output: ["b", *shape] for output, (_, shape) in outputs.items()}
        graph = helper.make_graph(self.nodes, name, _values(inputs), _values(shapes), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="kir")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def const(self, value: Any) -> str:
        """A constant, written once however often it is used: float64 becomes float32."""
        array = np.ascontiguousarray(value, np.float32 if np.asarray(value).dtype == np.float64 else None)
        array = array.reshape(np.shape(value))  # ascontiguousarray makes a scalar a vector
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._held:
            self._held[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._held[key]))
        return self._held[key]

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def matmul(self, x: str, weight: Floats) -> str:
        return self.op("MatMul", x, self.const(weight))

    def cut(self, x: str, start: int, end: int) -> str:
        """x[:, start:end]."""
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(1))

    def batched(self, value: NDArray[Any]) -> str:
        """A constant [1, ...] repeated for each row of the batch."""
        shape = self.op("Concat", self.batch, self.ints(*[1] * (value.ndim - 1)), axis=0)
        return self.op("Expand", self.const(value), shape)
