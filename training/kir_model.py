"""The reranker's network: causal towers over the watched list, target attention, DeepFM, placed context, MMoE.

Shape legend: B batch, N candidates (training: M targets of one window), L1 = L + 1 watched slots (slot 0 the start
token), t new tokens, S towers (id, pxtr; or one), H heads of a tower, D width of a tower, P placed slots, E experts,
T tasks, C width of candidate_pre, V width of placed_kv, X pXTR.

Crossings (CIKM 2022 section 4.3): a pXTR difference enters in linear form, `W·p_watched − W·p_candidate`: the watched
part comes through the pxtr tower's values, the candidate's through `candidate_pre`, and no N×L tensor is built. How
long ago and how many videos ago each was watched enter the attention as biases with a slope for each head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from contract.spec import FeatureSpec
from training.kir_config import KirConfig
from training.kir_layers import (
    HARD_MASK,
    Block,
    MaskedLinear,
    PxtrScaler,
    TowerNorm,
    causal_mask,
    dense_layer,
    excess,
    group_mask,
    heads_first,
    heads_last,
    input_layer,
    pxtr_scalers,
    total,
    tower_mask,
)

PAGE_BLOCKS = ("user_rows", "user_dense", "candidate_rows", "candidate_dense")
STEEPEST = 8.0  # of the attention biases at the start: exp(-8 · log1p(s)/8) = 1/(1 + s), for s seconds
LOUDEST_GAIN = 8.0


class Kir(nn.Module):
    """The dense net. Takes looked-up rows; `training/kir.py` cuts it into graphs.

    Source: KIR at CIKM 2022 (Figure 3: attention over watched and placed, MMoE) and the 2020 talk (two stacks, DeepFM).
    """

    candidate_gain: Tensor

    def __init__(self, config: KirConfig, spec: FeatureSpec):
        super().__init__()
        self.config, self.spec = config, spec
        self.excess: list[Tensor] = []
        width, towers, both = config.width, config.n_towers, config.n_towers * config.width
        self.scalers = pxtr_scalers(spec, (*PAGE_BLOCKS, "watched_dense"))
        # watched list
        self.token_rows = input_layer(spec, "watched_rows", group_mask(spec, "watched_rows", config), both)
        self.token_dense = input_layer(spec, "watched_dense", group_mask(spec, "watched_dense", config), both)
        self.position = dense_layer(config.slots, both, gain=config.slots**0.5 * 0.1)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = TowerNorm(width, towers)
        # K_id, K_pxtr, V_id, V_pxtr; values alone where nothing attends
        self.memory = MaskedLinear(tower_mask(width, width, towers).repeat(2 if config.reads == "target" else 1, 1))
        # page: columns [bottom | FM fields | query, candidate_pre without the skip, placed_kv]
        self.n_fields = {block: len(spec.columns(block)) for block in PAGE_BLOCKS}
        self.out_widths = [config.query_width, config.hidden_width, config.kv_width]
        page_out = config.bottom + sum(self.out_widths)
        self.page_in = nn.ModuleDict()
        self.fm_in = nn.ModuleDict()
        for block in PAGE_BLOCKS:
            layer = input_layer(spec, block, None, page_out)
            if layer is not None:
                self.page_in[block] = layer
                if config.fm:
                    n_out = self.n_fields[block] * config.fm
                    self.fm_in[block] = input_layer(spec, block, self._field_mask(block), n_out)
        self.register_buffer("candidate_gain", torch.ones(spec.width("candidate_dense")))  # `balance` moves it
        self.bottom_fm = dense_layer(config.fm, config.bottom) if config.fm else None
        self.page_out = dense_layer(config.bottom + config.fm, sum(self.out_widths))
        # A layer of its own, not rows of those above: recipes leave it in float (convert/recipes), for int8 would round
        # the server's scores as coarsely as what is learnt on top of them.
        self.server_skip = dense_layer(self._pxtr.stop - self._pxtr.start, config.n_tasks) if config.skip else None
        # swipe
        # Steep at first for some heads: log ages are small numbers, and from flat biases a long list is read as a mean
        # of all of it for most of a training.
        self.since_slope = nn.Parameter(torch.linspace(-STEEPEST, 0.0, towers * config.heads))
        self.behind_slope = nn.Parameter(torch.linspace(0.0, -STEEPEST, towers * config.heads))
        self.first = dense_layer(both, config.hidden_width)
        self.candidate_in = input_layer(spec, "candidate_swipe", None, config.hidden_width)
        self.swipe_in = input_layer(spec, "swipe_dense", None, config.hidden_width)
        if config.placed:
            self.placed_query = dense_layer(both, width, gain=(width // config.heads) ** -0.5)
            self.placed_start = nn.Parameter(torch.randn(config.kv_width) * 0.1)
            self.first_placed = dense_layer(width, config.hidden_width, gain=0.5)
        half = config.expert // 2
        self.second = MaskedLinear(tower_mask(config.expert, half, config.experts))
        gates = config.n_tasks * config.experts if config.experts > 1 else 0  # one expert has nothing to weigh
        self.gate = dense_layer(config.hidden_width, gates, gain=0.5) if gates else None
        if config.reads == "target":
            self._start_alike()
        self.task = MaskedLinear(tower_mask(half, 1, config.experts).repeat(config.n_tasks, 1), gain=0.5)

    @torch.no_grad()
    def _start_alike(self) -> None:
        """Queries start as the keys of a watched video with the same features, so that like finds like at once.

        From random weights the net spends most of a short training on a plateau before attention matches anything.
        """
        keys = self.memory.effective()[: self.config.n_towers * self.config.width]
        first = self.config.bottom
        for side in ("rows", "dense"):
            page = dict(self.page_in.items()).get(f"candidate_{side}")
            token = {"rows": self.token_rows, "dense": self.token_dense}[side]
            gain = 1.0 if side == "rows" else (self.config.width // self.config.heads) ** -0.5  # rows start small
            watched = {c.field.feature: c for c in self.spec.columns(f"watched_{side}")}
            if page is None or token is None:
                continue
            for column in self.spec.columns(f"candidate_{side}"):
                if column.field.feature in watched:
                    alike = keys @ (token.weight * token.mask)[:, watched[column.field.feature].slice]
                    page.weight[first : first + len(keys), column.slice] = alike * gain

    @property
    def _pxtr(self) -> slice:
        """Columns of `candidate_dense` that hold the server's predictions: logits and presence bits."""
        return next(c.slice for c in self.spec.columns("candidate_dense") if c.field.feature == "pxtr")

    @torch.no_grad()
    def start_at_server(self, weight_T2X: Tensor) -> None:
        """Set the skip: what each task's score takes of the standardised pXTR logits (X) and presence bits (X)."""
        assert self.server_skip is not None
        self.server_skip.weight.copy_(weight_T2X / self.candidate_gain[self._pxtr])
        self.server_skip.bias.zero_()

    @torch.no_grad()
    def rescale(self, task: int, factor: float, shift: float, server_2X: Tensor) -> None:
        """Logits of one task become factor·logit + shift + server·pXTR (as the skip reads them; [0] without a skip)."""
        experts = slice(task * self.config.experts, (task + 1) * self.config.experts)
        self.task.weight[experts] *= factor
        # The gates of a task add up to 1, so that what each expert's score gains the task's gains.
        self.task.bias[experts] = self.task.bias[experts] * factor + shift
        if self.server_skip is not None:
            self.server_skip.weight[task] *= factor
            self.server_skip.bias[task] *= factor
            self.server_skip.weight[task] += server_2X / self.candidate_gain[self._pxtr]

    def _field_mask(self, block: str) -> Tensor:
        """[fields·fm, width]: each field projected on its own."""
        return torch.block_diag(*[torch.ones(self.config.fm, c.field.width) for c in self.spec.columns(block)])

    @torch.no_grad()
    def set_pxtr_constants(self, mean_X: Tensor, std_X: Tensor) -> None:
        """Mean and standard deviation of the training data's pXTR logits, per head."""
        for module in self.modules():
            if isinstance(module, PxtrScaler):
                module.mean.copy_(mean_X)
                module.std.copy_(std_X.clamp(min=0.1))

    @torch.no_grad()
    def balance(self) -> None:
        """Move loud columns of the candidate's dense layer into the features they read; what the net computes stays.

        A feature whose values are small is given large weights, and int8 has one step a row of the matrix, which its
        largest column sets. Features may grow up to the range of the standardised pXTR beside them, eightfold.
        Source: equalisation of a layer's columns (Nagel et al. 2019, arXiv:1906.04721, section 4.1), here on inputs.
        """
        layers = [side["candidate_dense"] for side in (self.page_in, self.fm_in) if "candidate_dense" in side]
        if not layers:
            return
        loudest = layers[0].effective().abs().amax(0)
        gain = (loudest / loudest[loudest > 0].median()).clamp(1.0, LOUDEST_GAIN)
        for layer in layers:
            layer.weight /= gain
        if self.server_skip is not None:
            self.server_skip.weight /= gain[self._pxtr]
        self.candidate_gain *= gain

    def folded(self) -> Kir:
        """A frozen copy with masks folded into plain linear layers: what is exported."""
        plain = copy.deepcopy(self).eval().requires_grad_(False)
        for module in list(plain.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, MaskedLinear):
                    setattr(module, name, child.folded().requires_grad_(False))
        return plain

    def scaled(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same blocks as the layers read them: pXTR logits standardised, the candidate's features balanced."""
        found = {name: self.scalers[name](x) if name in self.scalers else x for name, x in blocks.items()}
        if "candidate_dense" in found:
            found["candidate_dense"] = found["candidate_dense"] * self.candidate_gain
        return found

    # page ------------------------------------------------------------------------------------------------------------

    def _side(self, layers: nn.ModuleDict, side: str, blocks: Mapping[str, Tensor]) -> Tensor | None:
        parts = [layers[name](blocks[name]) for name in PAGE_BLOCKS if name.startswith(side) and name in layers]
        return total(parts) if parts else None

    def _interaction(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """FM's second order as a vector: ½((Σv)² − Σv²) over fields, [B, N, fm] (sum-square trick)."""
        sums, squares = [], []
        for name, layer in self.fm_in.items():
            fields_fm = layer(blocks[name])
            v = fields_fm.reshape(*fields_fm.shape[:-1], self.n_fields[name], self.config.fm)
            sums.append(v.sum(-2))
            squares.append((v * v).sum(-2))
        summed = total(sums[::-1])  # candidate first: its [B, N, ·] takes the user's broadcast
        return 0.5 * (summed * summed - total(squares[::-1]))

    def page(self, blocks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on the page alone. user_* [B, 1 or N, ·], candidate_* [B, N, ·] of the blocks the spec has.

        Returns query [B, N, S·D], candidate_pre [B, N, C], placed_kv [B, N, V]; of width 0 where the net needs none.
        """
        blocks = self.scaled(blocks)
        mixed = self._side(self.page_in, "candidate", blocks)
        assert mixed is not None, "a spec has candidate fields"
        user = self._side(self.page_in, "user", blocks)
        mixed = mixed if user is None else mixed + user
        bottom, direct = mixed.split([self.config.bottom, sum(self.out_widths)], dim=-1)
        if self.bottom_fm is not None:
            fm = self._interaction(blocks)
            bottom = torch.cat([torch.relu(bottom + self.bottom_fm(fm)), fm], dim=-1)
        else:
            bottom = torch.relu(bottom)
        out = direct + self.page_out(bottom)
        query, pre, placed_kv = out.split(self.out_widths, dim=-1)
        if self.server_skip is not None:
            pre = torch.cat([pre, self.server_skip(blocks["candidate_dense"][..., self._pxtr])], dim=-1)
        return query, pre, placed_kv

    # watched list ----------------------------------------------------------------------------------------------------

    def tokens(self, blocks: Mapping[str, Tensor], position: Tensor | None) -> Tensor:
        """watched_rows [B, t, Rw], watched_dense [B, t, Fw], position [B, t, L1] (None: slots 0 … L) -> [B, t, S·D]."""
        blocks = self.scaled(blocks)
        parts = [
            layer(blocks[name])
            for name, layer in (("watched_rows", self.token_rows), ("watched_dense", self.token_dense))
            if layer is not None
        ]
        if position is not None:
            return total([*parts, self.position(position)])
        weight = self.position.effective() if isinstance(self.position, MaskedLinear) else self.position.weight
        return total(parts) + (weight.t() + self.position.bias)

    def encode(
        self, x: Tensor, mask: Tensor, past: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B, t, S·D] through the towers -> memory [B, t, Wm] and k, v of each block, [B·S, t, D] each."""
        planes = []
        for index, block in enumerate(self.blocks):
            x, k, v = block(x, mask, None if past is None else past[index])
            planes += [k, v]
        return self.memory(self.norm(x)), planes

    # swipe -----------------------------------------------------------------------------------------------------------

    def attend(self, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """What is read of the watched list, in all towers at once: [B, N, S·D], or [B, 1 or N, S·D] of a mean.

        query [B, N, S·D], memory [B, L1, 2·S·D] (a mean: values alone, S·D), bias [B·S·H, 1 or N, L1].
        """
        heads, both = self.config.n_towers * self.config.heads, self.config.n_towers * self.config.width
        if self.config.reads == "mean":
            return heads_last(torch.softmax(bias, dim=-1) @ heads_first(memory, heads), memory.shape[0])
        keys, values = memory.split([both, both], dim=-1)
        logits = heads_first(query, heads) @ heads_first(keys, heads).transpose(1, 2)
        if self.training:
            self.excess.append(excess(logits))
        return heads_last(torch.softmax(logits + bias, dim=-1) @ heads_first(values, heads), query.shape[0])

    def candidate_part(self, pre: Tensor, attended: Tensor, blocks: Mapping[str, Tensor]) -> Tensor:
        """The experts' input [B, N, hidden]: page, what was read of the watched list, the candidate's state."""
        own = pre[..., : self.config.hidden_width] if self.config.skip else pre
        hidden = own + self.first(attended)
        return hidden if self.candidate_in is None else hidden + self.candidate_in(blocks["candidate_swipe"])

    def experts(self, hidden: Tensor, pre: Tensor) -> Tensor:
        """MMoE from the experts' first layer before its ReLU [k, N, hidden] to logits [k, N, T]; with a skip the last T
        of candidate_pre [1, N, C] are added to them.

        The task's own layer is linear, so Σ_e gate·(w_t·expert_e) is worked out per expert and mixed last.
        """
        logits = self._mixture(torch.relu(hidden))
        return logits + pre[..., self.config.hidden_width :] if self.config.skip else logits

    def _mixture(self, hidden: Tensor) -> Tensor:
        if self.gate is None:
            return self.task(torch.relu(self.second(hidden)))
        shape = (*hidden.shape[:-1], self.config.n_tasks, self.config.experts)
        gates = torch.softmax(self.gate(hidden).reshape(shape), dim=-1)
        return (self.task(torch.relu(self.second(hidden))).reshape(shape) * gates).sum(-1)

    def empty_placed(self) -> Tensor:
        """The experts' input when nothing is placed: attention over the start entry alone is its value, [hidden]."""
        if not self.config.placed:
            return torch.zeros(self.config.hidden_width)
        return self.first_placed(self.placed_start[self.config.width :])

    def attend_placed(self, query: Tensor, placed_kv: Tensor, mask: Tensor) -> Tensor:
        """Training's form: query [B, M, 2D], placed_kv [B, M, V] of the window's targets, mask [B, M, M] additive.

        Each target attends to the start entry and to what its row of the mask leaves open -> [B, M, hidden].
        """
        heads, width, batch = self.config.heads, self.config.width, query.shape[0]
        start = self.placed_start.expand(batch, 1, -1)
        keys, values = torch.cat([start, placed_kv], dim=1).split([width, width], dim=-1)
        logits = heads_first(self.placed_query(query), heads) @ heads_first(keys, heads).transpose(1, 2)
        if self.training:
            self.excess.append(excess(logits))
        open_start = torch.cat([torch.zeros_like(mask[..., :1]), mask], dim=-1).repeat_interleave(heads, dim=0)
        mixed = torch.softmax(logits + open_start, dim=-1) @ heads_first(values, heads)
        return self.first_placed(heads_last(mixed, batch))

    def logit_excess(self) -> Tensor:
        """Sum over all attentions of the last training step (`kir_layers.LOGIT_BOUND`)."""
        parts = [*self.excess, *(block.excess for block in self.blocks)]
        return total(parts) if parts else self.since_slope.new_zeros(())

    def forward(self, blocks: Mapping[str, Tensor], mask_value: float = HARD_MASK) -> Tensor:
        """Training: every target of B windows at once -> logits [B, M, T].

        Blocks: user_*, candidate_*, swipe_dense [B, M, ·]; watched_* [B, L1, ·] encoded once, causally;
        visible, since, behind [B, M, L1]: which slots the target's choice could see, `features.since_watched` and
        `features.videos_behind`; placed [B, M, M]: which other targets are placed before it. Both masks are 0 or 1.
        """
        config = self.config
        self.excess = []
        query, pre, placed_kv = self.page(blocks)
        memory, _ = self.encode(
            self.tokens(blocks, None), causal_mask(config.slots, config.heads, mask_value, pre.device)
        )
        gaps_BHML1 = self.bias(blocks["since"][:, None], blocks["behind"][:, None])
        bias = (gaps_BHML1 + ((1.0 - blocks["visible"]) * mask_value)[:, None]).flatten(0, 1)
        hidden = self.candidate_part(pre, self.attend(query, memory, bias), blocks)
        if self.swipe_in is not None:
            hidden = hidden + self.swipe_in(blocks["swipe_dense"])
        if config.placed:
            hidden = hidden + self.attend_placed(query, placed_kv, (1.0 - blocks["placed"]) * mask_value)
        return self.experts(hidden, pre)

    def bias(self, since: Tensor, behind: Tensor) -> Tensor:
        """Attention bias of each head [S·H, …] for how long and how many videos ago, from [1, …] each."""
        return since * self.since_slope[:, None, None] + behind * self.behind_slope[:, None, None]
