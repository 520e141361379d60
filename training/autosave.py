"""Training state on disk while a training runs: what was killed goes on from the last save, bit for bit.

    saver = Autosave.beside(out_dir, told)                    .NAME.autosave beside the checkpoint that is to come
    trainer = Trainer(..., save=saver.save, save_every_s=600)
    if resume:
        trainer.load_state(saver.load())
    trainer.run()
    save_checkpoint(out_dir, ...)
    saver.clear()

    DIR/state.safetensors    every tensor but the best weights; its header holds the JSON object and names the file of
    DIR/best-N.safetensors   the best weights, which is written only when they changed

`told` is what the run was told (data, recipe) as JSON objects by part: a save of a run that was told otherwise is not
gone on from.

Each file is written aside, flushed to disk and renamed; state.safetensors comes last and is what makes a save count.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from contract.errors import CheckpointError
from training.checkpoint import TrainingState

STATE = "state.safetensors"
BEST = "best."
_ABSENT = "not told"


class Autosave:
    """The saves of one training in `directory`; a new save replaces the one before. One writer at a time.

    told   see above; None = not asked
    blank  the values that count for keys of `told` which a save does not have, since they came to the code later
    """

    def __init__(
        self,
        directory: str | Path,
        told: Mapping[str, Any] | None = None,
        blank: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.directory = Path(directory)
        self.told = None if told is None else dict(_as_json(told))
        self._blank = _as_json(blank or {})
        self._best_epoch: int | None = None  # of the file of best weights that this object wrote or read
        self._best_name = ""

    @staticmethod
    def beside(
        out_dir: str | Path,
        told: Mapping[str, Any] | None = None,
        blank: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Autosave:
        """In a hidden directory beside `out_dir`, which is written whole at the end and so is not there yet."""
        out_dir = Path(out_dir)
        return Autosave(out_dir.with_name(f".{out_dir.name}.autosave"), told, blank)

    @property
    def exists(self) -> bool:
        return (self.directory / STATE).is_file()

    def save(self, state: TrainingState) -> Path:
        """Write `state` whole or not at all; returns the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        best = {name: tensor for name, tensor in state.tensors.items() if name.startswith(BEST)}
        rest = {name: tensor for name, tensor in state.tensors.items() if name not in best}
        if not best:
            self._best_epoch, self._best_name = None, ""
        elif self._best_epoch != state.meta["best_epoch"]:
            # A name that no earlier save uses: until state.safetensors is replaced, the old pair must stay whole.
            self._best_epoch, self._best_name = state.meta["best_epoch"], self._free_name()
            _write(self.directory / self._best_name, best, {})
        # NaN and numpy's numbers pass: a metric that can't be computed must not end a training.
        meta = dict(state.meta) if self.told is None else {**state.meta, "told": self.told}
        header = {"state": json.dumps(meta, default=float), "best": self._best_name}
        _write(self.directory / STATE, rest, header)
        for path in self.directory.glob("*"):
            if path.name not in (STATE, self._best_name):
                path.unlink()
        return self.directory

    def load(self) -> TrainingState:
        """The last save. Raises CheckpointError when there is none, it can't be read or is of a run told otherwise."""
        path = self.directory / STATE
        if not path.is_file():
            raise CheckpointError("no saved training state", where=self.directory, fix="train without --resume")
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata()
            tensors = load_file(path)
            if header["best"]:
                tensors |= load_file(self.directory / header["best"])
            meta = json.loads(header["state"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError("saved training state can't be read", where=path, got=str(error)) from None
        self._check_told(meta.get("told"))
        self._best_name = header["best"]
        self._best_epoch = meta["best_epoch"] if self._best_name else None
        return TrainingState(tensors, meta)

    def clear(self) -> None:
        """Remove the saves; for the end, when the checkpoint is written."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._best_epoch, self._best_name = None, ""

    def _check_told(self, saved: Mapping[str, Any] | None) -> None:
        if saved is None or self.told is None:
            return
        parts = sorted({*saved, *self.told})
        theirs = {part: _filled(saved.get(part), self._blank.get(part)) for part in parts}
        other = {part: _apart(part, self.told.get(part), theirs[part]) for part in parts}
        other = {part: pairs for part, pairs in other.items() if pairs}
        if other:
            pairs = [pair for found in other.values() for pair in found]
            raise CheckpointError(
                f"training state of another run ({', '.join(other)})",
                where=self.directory,
                got=", ".join(now for now, _ in pairs),
                allowed=", ".join(was for _, was in pairs),
                fix="resume with the same data and recipe, or train without --resume",
            )

    def _free_name(self) -> str:
        taken = {path.name for path in self.directory.glob("best-*")}
        return next(name for n in range(len(taken) + 1) if (name := f"best-{n}.safetensors") not in taken)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=float))


def _filled(part: Any, blank: Any) -> Any:
    return {**blank, **part} if isinstance(part, dict) and isinstance(blank, dict) else part


def _apart(part: str, now: Any, was: Any) -> list[tuple[str, str]]:
    """What differs, key by key: ("train.epochs 4", "train.epochs 3") for now and then."""
    if not (isinstance(now, dict) and isinstance(was, dict)):
        return [] if now == was else [(f"{part} {now}", f"{part} {was}")]
    names = [name for name in sorted({*now, *was}) if now.get(name, _ABSENT) != was.get(name, _ABSENT)]
    return [(f"{part}.{name} {now.get(name, _ABSENT)}", f"{part}.{name} {was.get(name, _ABSENT)}") for name in names]


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    aside = path.with_name(f".{path.name}.part")
    own: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        # Tied weights share memory, which safetensors refuses; all others are written from where they lie.
        shared = flat.untyped_storage().data_ptr() in storages
        own[name] = flat.clone() if shared else flat
        storages.add(own[name].untyped_storage().data_ptr())
    save_file(own, aside, header)
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
