"""Models we did not design, as a user's code would hold them: what `kir convert --module` has to cope with.

Each factory takes nothing; CONTRACTS has the tensor contract of each. Weights are random, from a fixed seed.
Legend: L history, N candidates, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

L, N, D = 20, 12, 16
VOCABULARY = 200


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(3)
        return make()

    return made


class Mlp(nn.Module):
    """candidates [1, N, D] -> scores [1, N]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, candidates: Tensor) -> Tensor:
        return self.net(candidates).squeeze(-1)


class SasRecScores(nn.Module):
    """SASRec with its item table inside: ids go in, and candidates' inner products with the last state come out."""

    def __init__(self) -> None:
        from benchmarks.baselines.sasrec import SASRec

        super().__init__()
        self.items = nn.Embedding(VOCABULARY, D)
        self.net = SASRec(D, L, layers=2, heads=2, dropout=0.0)

    def forward(self, history: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        state_1D = self.net(self.items(history), mask, 1)[:, 0, 0]
        return (self.items(candidates) @ state_1D.unsqueeze(-1)).squeeze(-1)


class Din(nn.Module):
    """Deep Interest Network (KDD 2018): an activation unit over (q, k, q − k, q · k), no softmax, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * D, 32), nn.PReLU(), nn.Linear(32, 1))
        self.top = nn.Sequential(nn.Linear(3 * D, 40), nn.PReLU(), nn.Linear(40, 1))

    def forward(self, user: Tensor, history: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        q = candidates.unsqueeze(2).expand(1, N, L, D)
        k = history.unsqueeze(1).expand(1, N, L, D)
        weight = self.unit(torch.cat([q, k, q - k, q * k], dim=-1)) * mask[:, None, :, None]
        read = (weight * k).sum(2)
        x = torch.cat([user.unsqueeze(1).expand(1, N, D), read, candidates], dim=-1)
        return self.top(x).squeeze(-1)


class DcnV2(nn.Module):
    """Cross network of DCN-v2 (WWW 2021, Eq. 3) with low rank, beside a deep tower; two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.ModuleList(nn.Linear(4 * D, 8, bias=False) for _ in range(3))
        self.v = nn.ModuleList(nn.Linear(8, 4 * D) for _ in range(3))
        self.deep = nn.Sequential(nn.Linear(4 * D, 48), nn.ReLU(), nn.Linear(48, 16), nn.ReLU())
        self.out = nn.Linear(4 * D + 16, 2)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for u, v in zip(self.u, self.v, strict=True):
            x = features * v(u(x)) + x
        return torch.sigmoid(self.out(torch.cat([x, self.deep(features)], dim=-1)))


class Gru4Rec(nn.Module):
    """A GRU over the session; candidates by inner product."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(D, D, batch_first=True)

    def forward(self, session: Tensor, candidates: Tensor) -> Tensor:
        state = self.gru(session)[0][:, -1]
        return (candidates @ state.unsqueeze(-1)).squeeze(-1)


class Square(nn.Module):
    """Self-attention whose sequence is as long as it is wide: a converter that guesses layouts transposes it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)
        self.norm = nn.LayerNorm(D)
        self.out = nn.Linear(D, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(tokens)).split(D, dim=-1)
        weight = torch.softmax(q @ k.transpose(1, 2) / D**0.5, dim=-1)
        return self.out(tokens + weight @ v).squeeze(-1)


class GeluErf(nn.Module):
    """GELU by the error function, once as the operator and once spelt out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(D, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, candidates: Tensor) -> Tensor:
        x = nn.functional.gelu(self.first(candidates))
        x = self.second(x)
        return self.out(0.5 * x * (1.0 + torch.erf(x / 2.0**0.5))).squeeze(-1)


class Determinant(nn.Module):
    """An operator that TFLite has none for."""

    def forward(self, matrices: Tensor) -> Tensor:
        return torch.linalg.det(matrices)


class Doubled(nn.Module):
    """Without any weights."""

    def forward(self, candidates: Tensor) -> Tensor:
        return candidates.sum(-1) * 2


class Embeddings(nn.Module):
    """Ranks nothing: a vector for each input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 32), nn.Tanh(), nn.Linear(32, 8))

    def forward(self, candidates: Tensor) -> Tensor:
        return self.net(candidates)


mlp, sasrec, din, dcn_v2, gru4rec, square, gelu_erf, determinant, embeddings, doubled = (
    seeded(made) for made in (Mlp, SasRecScores, Din, DcnV2, Gru4Rec, Square, GeluErf, Determinant, Embeddings, Doubled)
)


def not_a_module() -> int:
    return 3


def broken() -> nn.Module:
    raise RuntimeError("no weights here")


def _tensor(name: str, *shape: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": "float32", **more}


def _ids(name: str, *shape: int) -> dict[str, Any]:
    return _tensor(name, *shape, dtype="int32", below=VOCABULARY)


def _mask(*shape: int) -> dict[str, Any]:
    return _tensor("mask", *shape, values=[0, 1])


def _contract(name: str, inputs: list[dict[str, Any]], rank: dict[str, Any] | None = None) -> dict[str, Any]:
    found = {"name": name, "inputs": inputs, "outputs": ["scores"]}
    return found if rank is None else {**found, "rank": rank}


_SCORES = {"output": "scores"}
CONTRACTS = {
    "mlp": _contract("mlp", [_tensor("candidates", 1, N, D)], _SCORES),
    "sasrec": _contract("sasrec", [_ids("history", 1, L), _mask(1, L), _ids("candidates", 1, N)], _SCORES),
    "din": _contract(
        "din",
        [_tensor("user", 1, D), _tensor("history", 1, L, D), _mask(1, L), _tensor("candidates", 1, N, D)],
        _SCORES,
    ),
    "dcn_v2": _contract("dcn_v2", [_tensor("features", 1, N, 4 * D)], {**_SCORES, "column": 1}),
    "gru4rec": _contract("gru4rec", [_tensor("session", 1, L, D), _tensor("candidates", 1, N, D)], _SCORES),
    "square": _contract("square", [_tensor("tokens", 1, D, D)], _SCORES),
    "gelu_erf": _contract("gelu_erf", [_tensor("candidates", 1, N, D)], _SCORES),
    "determinant": _contract("determinant", [_tensor("matrices", 1, N, 6, 6)], _SCORES),
    "doubled": _contract("doubled", [_tensor("candidates", 1, N, D)], _SCORES),
    "embeddings": _contract("embeddings", [_tensor("candidates", 1, N, D)]),
}
