"""The tensors that enter and leave each graph of the reranker: names, order, shapes, and plausible examples.

The same in torch, ONNX, TFLite and the manifest (docs/architecture.md, "KIR's graphs").
"""

from __future__ import annotations

import torch
from torch import Tensor

from contract.errors import InputError
from contract.spec import FeatureSpec
from contract.vocabulary import MASK_VALUE
from training.kir_config import KirConfig

GRAPHS = ("page", "watch", "swipe", "place", "whole")


def graph_inputs(config: KirConfig, spec: FeatureSpec, name: str, size: int) -> dict[str, tuple[int, ...]]:
    """Input name -> shape, in order, without what this spec or preset does not have. size: N, or t for `watch`."""
    width = config.width
    page: dict[str, tuple[int, ...]] = {
        "user_rows": (1, spec.width("user_rows")),
        "user_dense": (1, spec.width("user_dense")),
        "candidate_rows": (1, size, spec.width("candidate_rows")),
        "candidate_dense": (1, size, spec.width("candidate_dense")),
    }
    watched = {
        "watched_rows": (1, size if name == "watch" else config.slots, spec.width("watched_rows")),
        "watched_dense": (1, size if name == "watch" else config.slots, spec.width("watched_dense")),
    }
    now = {
        "memory_mask": (1, config.slots),
        "since": (1, config.slots),
        "behind": (1, config.slots),
        "swipe_dense": (1, spec.width("swipe_dense")),
        "candidate_swipe": (1, size, spec.width("candidate_swipe")),
    }
    cache = {
        "position": (1, size, config.slots),
        "past": (1, config.planes, config.slots, width),
        "past_mask": (1, config.slots if config.planes else 0),
    }
    query = {"query": (1, size, config.query_width if config.reads == "target" or name == "place" else 0)}
    swipe = {
        **query,
        "candidate_pre": (1, size, config.pre_width),
        "memory": (1, config.slots, config.memory_width),
        **now,
    }
    placed = {
        "placed": (1, config.beams, config.placed, config.kv_width),
        "placed_mask": (1, config.beams, config.placed),
    }
    shapes = {
        "page": page,
        "watch": {**watched, **cache},
        "swipe": swipe,
        "place": {**swipe, **placed},
        "whole": {**page, **watched, **now},
    }
    if name not in shapes:
        raise InputError("unknown graph", got=name, allowed=GRAPHS)
    return {key: shape for key, shape in shapes[name].items() if 0 not in shape}


def graph_outputs(config: KirConfig, name: str, size: int) -> dict[str, tuple[int, ...]]:
    """Output name -> shape, in order, without what this preset does not have."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "page": {
            "query": (1, size, config.query_width),
            "candidate_pre": (1, size, config.pre_width),
            "placed_kv": (1, size, config.kv_width),
        },
        "watch": {"new": (1, config.planes, size, config.width), "memory_new": (1, size, config.memory_width)},
        "swipe": {"scores": (1, size, config.n_tasks)},
        "place": {"scores": (1, config.beams, size, config.n_tasks)},
        "whole": {"scores": (1, size, config.n_tasks)},
    }
    return {key: shape for key, shape in shapes[name].items() if 0 not in shape}


def example_inputs(config: KirConfig, spec: FeatureSpec, name: str, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Plausible random inputs: half of the slots in use, unused ones zero and masked."""
    random = torch.Generator().manual_seed(seed)
    inputs = {}
    for key, shape in graph_inputs(config, spec, name, size).items():
        x = torch.randn(shape, generator=random)
        if key in ("past_mask", "memory_mask", "placed_mask"):
            x = torch.zeros(shape)
            x[..., (shape[-1] + 1) // 2 :] = MASK_VALUE
        elif key == "position":
            x = torch.eye(config.slots)[None, (config.slots + 1) // 2 :][:, :size].clone()
            x = torch.cat([x, torch.zeros(1, size - x.shape[1], config.slots)], dim=1)
        elif key in ("past", "memory", "placed", "since", "behind"):
            axis = -1 if key in ("since", "behind") else -2
            used = (shape[axis] + 1) // 2
            if axis == -1:  # log ages, and the start token has none
                x = x.abs().clamp(max=1.0)
                x[..., 0] = 0.0
            x.narrow(axis, used, shape[axis] - used).zero_()
        elif key.endswith("_dense") or key == "candidate_swipe":
            x = (x > 1.0).float()
        elif key.endswith("_rows"):
            x = x * 0.1
        inputs[key] = x
    return inputs
