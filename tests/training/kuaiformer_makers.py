"""Small KuaiFormers and histories for tests: any plan, weights that make attention uneven."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.kuaiformer import Encoder, KuaiFormer, KuaiFormerConfig, preset_config

SMALL = {"width": 12, "heads": 3, "hidden": 16, "video_width": 8, "attribute_width": 4, "interests": 3}
PAPER = (64, 64, 16, 16, 16, 16, 16)
PLANS = {
    "paper": {"windows": PAPER, "latest": 48},
    "raw": {"windows": (), "latest": 20},
    "odd": {"windows": (5, 3, 3, 5), "latest": 7},
    "ones": {"windows": (1, 4), "latest": 1},
}


def config_of(plan: str = "paper", **changes: Any) -> KuaiFormerConfig:
    return preset_config("tiny", **{**SMALL, **PLANS[plan], **changes})


def net_of(config: KuaiFormerConfig, seed: int = 0) -> KuaiFormer:
    """In eval mode, with weights twice their initial size: attention is far from even, mistakes show."""
    torch.manual_seed(seed)
    net = KuaiFormer(config, config.spec()).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2.0)
    return net.requires_grad_(False)


def sibling(encoder: Encoder, **changes: Any) -> Encoder:
    """The same weights with another plan."""
    config = KuaiFormerConfig.from_dict({**encoder.config.to_dict(), **changes})
    other = Encoder(config, encoder.token_skip.in_features)
    other.load_state_dict(encoder.state_dict())
    return other.eval().requires_grad_(False)


def histories(config: KuaiFormerConfig, held: list[int], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows [B, L, R] without any structure, padding included, and a mask with `held` real items each."""
    length = config.length if length is None else length
    mask = (torch.arange(length) >= length - torch.tensor(held)[:, None]).float()
    return torch.randn(len(held), length, config.spec().width("history_rows")), mask
