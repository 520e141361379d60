"""Tables larger than one host: rows dealt over the ranks of a torchrun job by torchrec, updated by fused Adagrad.

    pip install --no-deps -r training/requirements-torchrec.txt
    tables = ShardedTables.from_spec_and_keys(spec, keys, DataParallel.from_environment())

The calls are those of SparseTables. What differs:
- `rows` and `blocks` are collective: every rank calls them, in the same order, in validation too.
- The update happens in the backward pass, once for each look-up. `blocks` looks several blocks up in one go; with two
  calls of `rows` in a step, a table that both read is updated twice, which is not what SparseTables does.
- Rows are no parameters of the module: no average and no best epoch is kept of them, and `save` takes the place of the
  state dict. Gradients are summed over the ranks, as the trainer weights the ranks' losses by their targets.
- The keys (8 bytes a row) stay whole on every rank. CPU and gloo; row-wise Adagrad alone; widths of 4, 8, 12 …

torchrec 1.8 on the CPU: EmbeddingCollection on the meta device, so that no rank ever holds a whole table; row-wise; its
`dense` kernel crashed in a two-process forward, `fused` is named explicitly.
Shapes: R rows of a table, r of this rank, W its width, U rows read in a step, M entries of a field.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.errors import CheckpointError, InputError, SpecError
from contract.features import Columns
from contract.spec import FeatureSpec
from training.checkpoint import TrainingState
from training.distributed import DataParallel
from training.table_optimizers import ROWWISE_EPS
from training.table_shards import Piece, TableShards, save_shard
from training.tables import INIT_STD, SparseTables, field_slots, pooled, rows_read, slots_of, with_default

REQUIREMENTS = Path(__file__).with_name("requirements-torchrec.txt")
OPTIMIZER = "rowwise_adagrad"
CHUNK_ROWS = 1 << 16  # of a table that travels to rank 0 at once


class ShardedTables(nn.Module):
    """The tables of one spec, rank k of n holding the k-th run of ⌈R/n⌉ rows of each. Arguments as SparseTables.

    Raises InputError outside torchrun, without torchrec, and for widths that are no multiple of 4.
    """

    sharded = True

    def __init__(
        self,
        keys: Mapping[str, NDArray[np.uint64]],
        widths: Mapping[str, int],
        parallel: DataParallel | None,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        if parallel is None:
            raise InputError("sharded tables are for jobs of several processes", fix="start the job with torchrun")
        odd = {table: width for table, width in widths.items() if width % 4}
        if odd:
            raise InputError("fbgemm takes tables whose width is a multiple of 4", got=odd)
        self.parallel, self.dropout = parallel, dropout
        self.keys = {table: with_default(keys[table]) for table in sorted(keys)}
        self.widths = {table: widths[table] for table in self.keys}
        # In a list, not as submodules: the rows are saved by `save`, not with the state dict of the task.
        self._groups = [
            _sharded_collection({t: len(self.keys[t]) for t in self.keys if widths[t] == width}, width, parallel)
            for width in sorted(set(self.widths.values()))
        ]
        for i, table in enumerate(self.keys):
            rows_rW, sums_r = self._local(table)
            generator = torch.Generator().manual_seed((seed * 4099 + i) * 65_537 + parallel.rank)
            rows_rW.copy_(torch.randn(rows_rW.shape, generator=generator) * INIT_STD)
            sums_r.zero_()
            if parallel.leads:
                rows_rW[0] = 0.0

    @staticmethod
    def from_spec_and_keys(
        spec: FeatureSpec,
        keys: Mapping[str, NDArray[np.uint64]],
        parallel: DataParallel | None,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> ShardedTables:
        """Tables for all served fields of `spec`, as SparseTables.from_spec_and_keys."""
        unknown = sorted(set(keys) - set(spec.tables))
        if unknown:
            raise SpecError(f"spec '{spec.name}' has no such table", got=unknown, allowed=sorted(spec.tables))
        none = np.zeros(0, np.uint64)
        every = {table: keys.get(table, none) for table in spec.tables}
        return ShardedTables(every, spec.tables, parallel, dropout=dropout, seed=seed)

    @property
    def n_rows(self) -> dict[str, int]:
        return {table: len(keys) for table, keys in self.keys.items()}

    def slots(self, table: str, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        return slots_of(self.keys[table], keys)

    def field_slots(self, spec: FeatureSpec, block: str, columns: Columns) -> dict[str, NDArray[np.int64]]:
        return field_slots(self, spec, block, columns)

    def rows(self, spec: FeatureSpec, block: str, slots: Mapping[str, Tensor]) -> Tensor:
        """One block's rows, float32 [..., spec.width(block)]; where a step reads several blocks, take `blocks`."""
        return self.blocks(spec, {block: slots})[block]

    def blocks(self, spec: FeatureSpec, slots: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Rows of several blocks by one look-up of each table: block -> float32 [..., its width]. Collective."""
        dropout = self.dropout if self.training else 0.0
        fields = [
            (block, column.field.table, rows_read(fields[column.field.name], dropout), fields[column.field.name])
            for block, fields in slots.items()
            for column in spec.columns(block)
        ]
        for block in slots:
            if not spec.columns(block):
                raise SpecError(f"spec '{spec.name}' has no served field in block '{block}'", allowed=spec.blocks)
        unique: dict[str, Tensor] = {}
        places: dict[str, list[Tensor]] = {}
        for table in self.keys:
            reads = [read for _, of, read, _ in fields if of == table]
            flat = torch.cat([read.reshape(-1) for read in reads] or [torch.zeros(0, dtype=torch.int64)])
            unique[table], inverse = torch.unique(flat, return_inverse=True)
            parts = inverse.split([read.numel() for read in reads])
            places[table] = [part.view_as(read) for part, read in zip(parts, reads, strict=True)]
        found = self._look_up(unique)
        parts_of: dict[str, list[Tensor]] = {block: [] for block in slots}
        for block, table, _, entries in fields:
            parts_of[block].append(pooled(found[table], places[table].pop(0), entries))
        return {block: torch.cat(parts, dim=-1) for block, parts in parts_of.items()}

    def _look_up(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows by number, wherever they lie: table -> float32 [U, W]."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        found: dict[str, Tensor] = {}
        for group in self._groups:
            tables = [config.name for config in group._embedding_configs]
            values = torch.cat([rows[table] for table in tables])
            lengths = torch.tensor([len(rows[table]) for table in tables])
            jagged = group(KeyedJaggedTensor(keys=tables, values=values, lengths=lengths))
            found |= {table: jagged[table].values() for table in tables}
        return found

    def optimizers(self, learning_rate: float, kind: str = OPTIMIZER) -> list[Any]:
        """One object that hands the learning rate to the fused updates. Raises InputError for another kind."""
        if kind != OPTIMIZER:
            raise InputError("sharded tables have row-wise Adagrad alone", got=kind, allowed=OPTIMIZER)
        return [_FusedRate([group.fused_optimizer for group in self._groups], learning_rate)]

    def _local(self, table: str) -> tuple[Tensor, Tensor]:
        """This rank's rows [r, W] and sums [r], live."""
        first, last = self.span(table)
        (group,) = (g for g in self._groups if any(config.name == table for config in g._embedding_configs))
        rows_rW = group.embeddings[table].weight.detach().view(last - first, self.widths[table])
        state = group.fused_optimizer.state_dict()["state"].get(f"embeddings.{table}.weight", {})
        shards = state[f"{table}.momentum1"].local_shards() if last > first else []
        return rows_rW, shards[0].tensor.view(-1) if shards else torch.zeros(0)

    def span(self, table: str, rank: int | None = None) -> tuple[int, int]:
        """First row of a rank (None = this one) and the row behind its last."""
        rank = self.parallel.rank if rank is None else rank
        total = len(self.keys[table])
        block = -(-total // self.parallel.world)
        return min(rank * block, total), min((rank + 1) * block, total)

    @torch.no_grad()
    def copy_from(self, tables: SparseTables) -> None:
        """Take the rows of tables that one process holds; each rank its own. Raises CheckpointError for other keys."""
        for table, keys in self.keys.items():
            if table not in tables.keys or not np.array_equal(tables.keys[table], keys):
                raise CheckpointError(f"table '{table}' has other keys")
            first, last = self.span(table)
            self._local(table)[0].copy_(tables.weights[table].detach()[first:last])

    @torch.no_grad()
    def gather(self) -> SparseTables | None:
        """All rows on rank 0 as SparseTables, None on the others; for tables that fit there. Collective."""
        arrays: dict[str, NDArray[Any]] = {}
        for table, keys in self.keys.items():
            rows_rW = self._local(table)[0].contiguous()
            whole_RW = torch.empty(len(keys), self.widths[table]) if self.parallel.leads else None
            for rank in range(self.parallel.world):
                first, last = self.span(table, rank)
                for low in range(first, last, CHUNK_ROWS):
                    high = min(low + CHUNK_ROWS, last)
                    if whole_RW is not None and rank == 0:
                        whole_RW[low:high] = rows_rW[low - first : high - first]
                    elif whole_RW is not None:
                        dist.recv(whole_RW[low:high], rank)
                    elif rank == self.parallel.rank:
                        dist.send(rows_rW[low - first : high - first], 0)
            if whole_RW is not None:
                arrays |= {f"{table}.keys": keys.view(np.int64), f"{table}.rows": whole_RW.numpy()}
        return SparseTables.from_export(arrays) if self.parallel.leads else None

    def save(self, directory: str | Path, state: TrainingState | None = None) -> None:
        """Rows and optimiser of every rank, whole or not at all; `state`: the trainer's, kept along. Collective."""
        pieces = {}
        for table, keys in self.keys.items():
            first, last = self.span(table)
            rows_rW, sums_r = self._local(table)
            pieces[table] = Piece(keys[first:last], rows_rW.numpy(), sums_r.numpy())
        here = self.parallel
        save_shard(directory, pieces, rank=here.rank, world=here.world, wait=dist.barrier, state=state)

    @torch.no_grad()
    def load(self, directory: str | Path) -> TrainingState | None:
        """Go on from `save`, by any number of ranks; returns the trainer's state. Raises CheckpointError."""
        shards = TableShards(directory)
        for table, keys in self.keys.items():
            first, last = self.span(table)
            have = shards.tables.get(table)
            piece = shards.read(table, first, last) if have else None
            fits = have == {"rows": len(keys), "width": self.widths[table]}
            if piece is None or not fits or not np.array_equal(piece.keys, keys[first:last]):
                raise CheckpointError(f"table '{table}' has other keys or another width", where=directory, got=have)
            rows_rW, sums_r = self._local(table)
            rows_rW.copy_(torch.from_numpy(piece.rows))
            sums_r.copy_(torch.from_numpy(piece.sums))
        return shards.state


class _FusedRate:
    """What the trainer sees of updates that happen in the backward pass: a group whose rate it sets before."""

    def __init__(self, optimizers: list[Any], learning_rate: float):
        self.param_groups = [{"lr": learning_rate, "params": []}]
        self._optimizers = optimizers

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            optimizer.zero_grad()

    def step(self) -> None:
        """The rows are updated already."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `ShardedTables.save` keeps the sums."""
        return {"state": {}, "param_groups": self.param_groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.param_groups = list(state["param_groups"])


def _sharded_collection(n_rows: Mapping[str, int], width: int, parallel: DataParallel) -> Any:
    """torchrec's module of all tables of one width."""
    try:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec.distributed.comm_ops import set_gradient_division
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        from torchrec.distributed.types import ShardingEnv
        from torchrec.modules.embedding_configs import EmbeddingConfig
        from torchrec.modules.embedding_modules import EmbeddingCollection
    except ImportError as error:
        raise InputError(
            "sharded tables need torchrec",
            got=str(error),
            fix=f"install it with: pip install --no-deps -r {REQUIREMENTS}",
        ) from None
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    set_gradient_division(False)  # a sum, not a mean over ranks
    configs = [
        EmbeddingConfig(name=table, num_embeddings=rows, embedding_dim=width, feature_names=[table])
        for table, rows in n_rows.items()
    ]
    collection = EmbeddingCollection(tables=configs, device=torch.device("meta"))
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.0, "eps": ROWWISE_EPS}
    sharder = EmbeddingCollectionSharder(fused_params=fused)
    plan = construct_module_sharding_plan(
        collection,
        {table: row_wise(compute_kernel="fused") for table in n_rows},
        sharder,
        local_size=parallel.world,
        world_size=parallel.world,
        device_type="cpu",
    )
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    return sharder.shard(collection, plan, env, torch.device("cpu"))
