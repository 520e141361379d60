"""The server ranker: one probability per feedback signal for each candidate (pXTR), from rows already looked up.

Every field of user and candidate is a vector of one width E: served fields by their row, dense ones by a matrix each.
Their bi-interaction sum (factorisation machines, Rendle 2010; He & Chua 2017) and two readings of the user's last
impressions go through a two-layer perceptron:

- target attention with the candidate as query (DIN, Zhou et al., KDD 2018), by inner products, by what candidate and
  entry share (`contract.matches`) and by how long ago the entry was;
- evidence: a learned vector of each entry, averaged over the entries that share the author, a tag, the duration … with
  the candidate, over all, and over the latest ones, shrunk towards zero where there are few.

What depends on the user alone is worked out once per request. Trained with many candidates of one history at once.

Shapes: B histories (requests), M candidates of each, h entries, X pXTR heads, F fields, E width of each, H attention
heads, K kinds of match, V width of evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import InputError, SpecError
from contract.history import RANKER_HISTORY
from contract.matches import K_MATCHES
from contract.spec import FeatureSpec
from contract.specs import ranker_spec
from contract.vocabulary import PXTR_HEADS, X_PXTR
from training.blocks import MASK

SERVED = ("user_rows", "history_rows", "candidate_rows")
DENSE = ("user_dense", "history_dense", "candidate_dense")
USER = ("user_rows", "user_dense")
CANDIDATE = ("candidate_rows", "candidate_dense")
HISTORY = ("history_rows", "history_dense")
SHRINK = 2.0  # entries that say nothing, added to every average of evidence
ROWS_START = 0.05  # standard deviation of a fresh row (training/tables.py): dense fields start as small


@dataclass(frozen=True)
class RankerConfig:
    """Sizes; `trained_heads` says for which signals the log had labels: the others' outputs mean nothing."""

    preset: str = "tiny"
    row_width: int = 16
    width: int = 64
    hidden: int = 32
    heads: int = 2
    head_width: int = 8
    evidence: int = 4
    history: int = RANKER_HISTORY
    dropout: float = 0.0
    trained_heads: tuple[str, ...] = PXTR_HEADS

    def spec(self) -> FeatureSpec:
        return ranker_spec(self.row_width)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "trained_heads": list(self.trained_heads)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> RankerConfig:
        try:
            return RankerConfig(**{**data, "trained_heads": tuple(data["trained_heads"])})
        except (TypeError, KeyError) as error:
            raise InputError("not a ranker configuration", got=str(error)) from None


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"width": 128, "hidden": 64, "heads": 4, "evidence": 8, "dropout": 0.3},
    "paper": {"row_width": 32, "width": 256, "hidden": 128, "heads": 4, "evidence": 8, "dropout": 0.3},
}


def preset_config(preset: str, **changes: Any) -> RankerConfig:
    """The configuration of a preset. Raises InputError for an unknown one."""
    if preset not in PRESETS:
        raise InputError("unknown preset", got=preset, allowed=tuple(PRESETS))
    return RankerConfig(preset=preset, **{**PRESETS[preset], **changes})


class Fields(nn.Module):
    """Blocks as field vectors: {block: [..., width]} -> [..., F·E]. Served fields stand as they are."""

    def __init__(self, spec: FeatureSpec, blocks: tuple[str, str], row_width: int):
        super().__init__()
        self.rows, self.dense = blocks
        columns = spec.columns(self.dense)
        self.n_fields = len(spec.columns(self.rows)) + len(columns)
        self.width = self.n_fields * row_width
        mask = torch.block_diag(*[torch.ones(row_width, column.field.width) for column in columns])
        self.register_buffer("mask", mask, persistent=False)
        self.weight = nn.Parameter(torch.randn_like(mask) * ROWS_START)

    def forward(self, blocks: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([blocks[self.rows], F.linear(blocks[self.dense], self.weight * self.mask)], dim=-1)


class Ranker(nn.Module):
    """Logits of the heads and, last, of the watched share (trained as an auxiliary task, not served).

    blocks   user_rows [B, 1 or M, Ru], user_dense [B, 1 or M, Fu], candidate_rows [B, M, Rc], candidate_dense
             [B, M, Fc], history_rows [B, h, Rh], history_dense [B, h, Fh]
    visible  [B, 1 or M, h], 1 = an entry this candidate's choice may read; oldest first, contiguous
    match    [B, M, h, K], `contract.matches.match_flags`
    """

    def __init__(self, config: RankerConfig, spec: FeatureSpec):
        super().__init__()
        self.config, self.spec = config, spec
        widths = {column.field.width for block in SERVED for column in spec.columns(block)}
        if len(widths) != 1:
            raise SpecError("the ranker's field vectors must have one width", where=spec.name, got=sorted(widths))
        self.row_width = widths.pop()
        self.user, self.candidate, self.entry = (Fields(spec, b, self.row_width) for b in (USER, CANDIDATE, HISTORY))
        inner, kinds = config.heads * config.head_width, K_MATCHES + 2
        self.query = nn.Linear(self.candidate.width, inner)
        self.key = nn.Linear(self.entry.width, inner)
        self.value = nn.Linear(self.entry.width, inner)
        self.same = nn.Parameter(torch.full((K_MATCHES, config.heads), 0.5))
        self.fade = nn.Parameter(torch.zeros(config.heads))
        self.evidence = nn.Linear(self.entry.width, config.evidence)
        read = self.candidate.width + self.row_width + inner + kinds * (config.evidence + 1)
        self.from_user = nn.Linear(self.user.width, config.width)
        self.from_candidate = nn.Linear(read, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(config.width, config.hidden)
        self.out = nn.Linear(config.hidden, X_PXTR + 1)
        self.direct_user = nn.Linear(self.user.width, X_PXTR + 1, bias=False)
        self.direct = nn.Linear(self.candidate.width, X_PXTR + 1, bias=False)
        # Rows start at about ±ROWS_START, so what reads them alone starts that much larger.
        with torch.no_grad():
            for layer in (self.query, self.key, self.value, self.evidence):
                layer.weight.mul_(4.0)

    def _interaction(self, user: Tensor, candidate: Tensor) -> Tensor:
        """½((Σv)² − Σv²) over the fields of both, [B, M, E]."""
        split = [x.unflatten(-1, (-1, self.row_width)) for x in (user, candidate)]
        total = split[0].sum(-2) + split[1].sum(-2)
        squares = (split[0] * split[0]).sum(-2) + (split[1] * split[1]).sum(-2)
        return 0.5 * (total * total - squares)

    def forward(self, blocks: Mapping[str, Tensor], visible: Tensor, match: Tensor) -> Tensor:
        """[B, M, X + 1]."""
        user, candidate, entry = self.user(blocks), self.candidate(blocks), self.entry(blocks)
        seen_BMhK = visible.unsqueeze(-1)
        match = match * seen_BMhK
        # how many visible entries stand between an entry and the choice, itself included
        ago = torch.log(visible.flip(-1).cumsum(-1).flip(-1).clamp(min=1.0)).unsqueeze(-1)
        heads = (self.config.heads, self.config.head_width)
        q_BHMd = self.query(candidate).unflatten(-1, heads).transpose(1, 2)
        k_BHdh = self.key(entry).unflatten(-1, heads).permute(0, 2, 3, 1)
        v_BHhd = self.value(entry).unflatten(-1, heads).transpose(1, 2)
        bias_BMhH = match @ self.same - ago * self.fade + (1.0 - seen_BMhK) * MASK
        logits_BHMh = q_BHMd @ k_BHdh / self.config.head_width**0.5 + bias_BMhH.permute(0, 3, 1, 2)
        any_BM1 = visible.amax(-1, keepdim=True)  # an empty history reads nothing
        read_BMI = (torch.softmax(logits_BHMh, dim=-1) @ v_BHhd).transpose(1, 2).flatten(-2) * any_BM1
        latest = seen_BMhK * torch.exp(-0.25 * torch.exp(ago))
        kinds_BMhK = torch.cat([match, *(x.expand(*match.shape[:-1], 1) for x in (seen_BMhK, latest))], dim=-1)
        count_BMK = kinds_BMhK.sum(-2)
        pooled_BMKV = kinds_BMhK.transpose(-1, -2) @ self.evidence(entry).unsqueeze(1)
        pooled_BMKV = pooled_BMKV / (count_BMK.unsqueeze(-1) + SHRINK)
        parts = [candidate, self._interaction(user, candidate), read_BMI, pooled_BMKV.flatten(-2), count_BMK.log1p()]
        x_BMD = F.relu(self.from_user(user) + self.from_candidate(torch.cat(parts, dim=-1)))
        hidden_BMD = self.dropout(F.relu(self.hidden(self.dropout(x_BMD))))
        logits: Tensor = self.out(hidden_BMD) + self.direct_user(user) + self.direct(candidate)
        return logits


class RankerProbabilities(nn.Module):
    """What is exported, one request at a time: user_rows [1, Ru], user_dense [1, Fu], history_rows [1, h, Rh],
    history_dense [1, h, Fh], history_mask [1, h], candidate_rows [n, Rc], candidate_dense [n, Fc], match [n, h, K] ->
    probabilities `pxtr` [n, X]."""

    def __init__(self, net: Ranker):
        super().__init__()
        self.net = net

    def forward(
        self,
        user_rows: Tensor,
        user_dense: Tensor,
        history_rows: Tensor,
        history_dense: Tensor,
        history_mask: Tensor,
        candidate_rows: Tensor,
        candidate_dense: Tensor,
        match: Tensor,
    ) -> Tensor:
        blocks = {
            "user_rows": user_rows[None],
            "user_dense": user_dense[None],
            "history_rows": history_rows,
            "history_dense": history_dense,
            "candidate_rows": candidate_rows[None],
            "candidate_dense": candidate_dense[None],
        }
        return torch.sigmoid(self.net(blocks, history_mask[None], match[None])[0, :, :X_PXTR])
