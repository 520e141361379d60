"""A converted model into a CDN directory: an immutable version directory, then the one pointer, moved last.

    from convert.publish import publish, rollback
    print(publish("converted", "cdn", keys="keys").table())

Layout: docs/architecture.md, "Published model". With keys the pointer and the manifests are signed (convert/trust.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.beam import ListReward
from contract.device_class import DeviceClass
from contract.errors import InputError, ManifestError
from contract.manifest import (
    MANIFEST_NAME,
    POINTER_NAME,
    FileEntry,
    Golden,
    Graph,
    Manifest,
    Pointer,
    Variant,
)
from contract.spec import FeatureSpec
from convert.check_published import UNSIGNED, check_version, published_size
from convert.classes import PublishedModel, classes_table, read_classes, with_goldens
from convert.devices import device_table
from convert.files import flush, flush_tree, sha256_of, write_durably
from convert.kir_job import SESSION
from convert.model import CARD, FORMAT, MODEL, REPORT, tensors_of
from convert.report import Verification
from convert.trust_state import is_signed

if TYPE_CHECKING:
    from convert.trust_keys import Lifetimes  # needs cryptography, which an unsigned CDN does without

MIN_RUNTIME = {"ai-edge-litert": "2.3.0"}  # what the chain ran on; older ones were not tried


@dataclass(frozen=True)
class Published:
    """What stands where. moved: whether the pointer, or what is signed, names another version than before."""

    dense_version: str
    directory: Path
    files: int
    n_bytes: int
    moved: bool
    signed: bool = False

    def table(self) -> str:
        pointer = "pointer moved" if self.moved else "pointer unchanged"
        line = f"{self.dense_version}: {self.files} files, {self.n_bytes} bytes in {self.directory}; {pointer}"
        return line if self.signed else f"{line}\n{UNSIGNED}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "directory": str(self.directory)}


def publish(
    result_dir: str | Path,
    cdn_root: str | Path,
    measured: Sequence[str | Path] = (),
    *,
    classes: str | Path | None = None,
    keys: str | Path | None = None,
    lifetimes: Lifetimes | None = None,
) -> Published:
    """Put a converted model into the CDN and point at it. Publishing the same again changes nothing.

    measured: results of `kir bench swipe` for the card's device table (convert/devices.py).
    classes: a file of device classes, which run other variants than those that ship (convert/classes.py).
    keys: folder with release.pem and online.pem (convert/trust_keys.py); without it the CDN is unsigned.

    Raises InputError for a directory that is no finished conversion, ManifestError when this version is there with
    other content: versions are immutable. InputError without keys on a signed CDN; as `with_goldens` for classes that
    don't hold; else as `Publisher`.
    """
    result, root = Path(result_dir), Path(cdn_root)
    _check_signing(root, keys)
    about, report = _read_result(result)
    told = [] if classes is None else read_classes(classes)
    version = str(about["dense_version"])
    directory = root / "models" / version
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f".{version}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        manifest = _write_version(result, about, report, aside, measured, told)
        raw = (aside / MANIFEST_NAME).read_bytes()
        if directory.exists():
            if not (directory / MANIFEST_NAME).is_file() or (directory / MANIFEST_NAME).read_bytes() != raw:
                raise ManifestError(
                    "this version is published with other content", where=directory,
                    fix="a version is immutable: train again, or publish the conversion it came from",
                )  # fmt: skip
            check_version(directory)
        else:
            flush_tree(aside)
            os.replace(aside, directory)
            flush(directory.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    moved = _point(root, version, keys, lifetimes)
    n_bytes = published_size(manifest) + len(raw)
    return Published(version, directory, len(manifest.files) + 1, n_bytes, moved, keys is not None)


def rollback(
    cdn_root: str | Path, version: str, *, keys: str | Path | None = None, lifetimes: Lifetimes | None = None
) -> Published:
    """Point at a version that is already there, checked file by file first; on a signed CDN by new metadata.

    Raises InputError and IntegrityError, on a signed CDN also for a version that was never signed.
    """
    root = Path(cdn_root)
    _check_signing(root, keys)
    directory = root / "models" / version
    if "/" in version or not (directory / MANIFEST_NAME).is_file():
        have = sorted(p.parent.name for p in (root / "models").glob(f"*/{MANIFEST_NAME}"))
        raise InputError("no such published version", where=root, got=version, allowed=have)
    manifest = check_version(directory)
    n_bytes = published_size(manifest) + (directory / MANIFEST_NAME).stat().st_size
    moved = _point(root, version, keys, lifetimes, again=True)
    return Published(version, directory, len(manifest.files) + 1, n_bytes, moved, keys is not None)


def _check_signing(root: Path, keys: str | Path | None) -> None:
    if keys is None and is_signed(root):
        raise InputError("this CDN is signed: phones would not take an unsigned model", where=root, fix="give --keys")


def _point(
    root: Path, version: str, keys: str | Path | None, lifetimes: Lifetimes | None, *, again: bool = False
) -> bool:
    """Sign, where there are keys, and move the pointer, last of all. Returns whether anything named something else."""
    path = f"models/{version}/{MANIFEST_NAME}"
    raw = (root / path).read_bytes()
    content = Pointer(version, path, hashlib.sha256(raw).hexdigest(), len(raw)).to_bytes()
    signed_anew = False
    if keys is not None:
        from convert.trust import Publisher

        signed_anew = Publisher(root, keys, lifetimes).release(content, path, again=again)
    place = root / POINTER_NAME
    if place.is_file() and place.read_bytes() == content:
        return signed_anew
    write_durably(place, content)
    return True


def _read_result(result: Path) -> tuple[dict[str, Any], Verification]:
    try:
        about = json.loads((result / MODEL).read_bytes())
        report = Verification.from_json(json.loads((result / REPORT).read_bytes()))
        if about["format"] != FORMAT:
            raise InputError("another format of conversion", where=result / MODEL, got=about["format"], allowed=FORMAT)
        if about["kind"] != "kir":
            raise InputError(
                "phones load rerankers: this conversion is of another kind", where=result / MODEL, got=about["kind"],
                allowed="kir",
            )  # fmt: skip
    except FileNotFoundError as error:
        raise InputError("not a finished conversion", where=error.filename, fix="run: kir convert model") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("conversion is unreadable", where=result, got=str(error)) from None
    _check_verified(result, about)
    return about, report


def _check_verified(result: Path, about: Mapping[str, Any]) -> None:
    """What is published is what was verified, byte for byte."""
    for name, sha256 in about.get("files", {}).items():
        path = result / name
        if not path.is_file() or sha256_of(path) != sha256:
            what = "file of the conversion is not the one that was verified"
            raise InputError(what, where=path, fix="run kir convert model again")


class _Files:
    """Copies files into the version directory under the names of their hashes."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True)
        self.directory = directory
        self.entries: dict[str, FileEntry] = {}

    def add(self, path: Path) -> str:
        return self.put(path.read_bytes(), path.suffix)

    def put(self, content: bytes, suffix: str) -> str:
        digest = hashlib.sha256(content).hexdigest()
        name = f"{digest[:20]}{suffix}"
        (self.directory / name).write_bytes(content)
        self.entries[name] = FileEntry(digest, len(content))
        return name


def _write_version(
    result: Path,
    about: Mapping[str, Any],
    report: Verification,
    directory: Path,
    measured: Sequence[str | Path],
    told: Sequence[DeviceClass],
) -> Manifest:
    files = _Files(directory)
    graphs, tensors = [], {}
    for entry in about["graphs"]:
        key = f"{entry['name']}/{entry['bucket']}"
        variants = tuple(
            _variant(report, key, name, files.add(result / path)) for name, path in sorted(entry["variants"].items())
        )
        inputs, outputs = tensors_of(entry["inputs"]), tensors_of(entry["outputs"])
        graphs.append(Graph(entry["name"], entry["bucket"], inputs, outputs, variants, report.shipped[key]))
        tensors[key] = files.add(result / entry["golden"])
    reward = _list_reward(about, result)
    classes = _classes(files, PublishedModel(result, about, report, reward), told)
    manifest = Manifest(
        dense_version=str(about["dense_version"]),
        created_at=str(about["created_at"]),
        spec=FeatureSpec.from_json(about["spec"], str(result / MODEL)),
        capacities=about["capacities"],
        tasks=tuple(about["tasks"]),
        fusion=about["fusion"],
        graphs=tuple(graphs),
        files=files.entries,
        golden=Golden(int(about["rows_revision"]), tensors, files.add(result / SESSION)),
        card=files.put(_card(result, about, report, measured, classes).encode(), ".md"),
        min_runtime=MIN_RUNTIME,
        verification={
            "report": files.add(result / REPORT),
            "data": report.data,
            "n_samples": report.n_samples,
            "together": asdict(report.together),
            "halves_max_abs": report.halves_max_abs,
            "gates": asdict(report.gates),
            # The golden session's scores are the shipped files'; so far they are from the float whole net.
            "session_to_float_whole": about["session"],
        },
        provenance={**about["provenance"], "recipes": about["recipes"], **_made(about)},
        list_reward=reward,
        device_classes=classes,
    )
    (directory / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return Manifest.from_bytes((directory / MANIFEST_NAME).read_bytes(), str(result))


def _classes(files: _Files, model: PublishedModel, told: Sequence[DeviceClass]) -> tuple[DeviceClass, ...]:
    """The classes with their golden files in place."""
    session = (model.result / SESSION).read_bytes()
    return tuple(
        replace(
            made.one,
            golden_tensors={key: files.put(raw, ".npz") for key, raw in made.tensors.items()},
            golden_session=files.put(made.session, ".json") if made.session else "",
        )
        for made in with_goldens(model, told, session)
    )


def _card(
    result: Path,
    about: Mapping[str, Any],
    report: Verification,
    measured: Sequence[str | Path],
    classes: Sequence[DeviceClass],
) -> str:
    parts = [(result / CARD).read_text()]
    if classes:
        parts.append(classes_table(classes))
    if measured:
        parts.append(device_table(measured, str(about["dense_version"]), report.shipped))
    return parts[0] if len(parts) == 1 else "\n\n".join(part.rstrip() for part in parts) + "\n"


def _made(about: Mapping[str, Any]) -> dict[str, Any]:
    """What made the files: tools, flags and commit, what recipes were calibrated on, what a search chose (its trials
    stay in model.json: every phone reads the manifest)."""
    found = {name: about[name] for name in ("made_by", "calibration") if name in about}
    if "auto" in about:
        chosen = {name: {"recipe": one["recipe"], "chosen": one["chosen"]} for name, one in about["auto"].items()}
        found["auto"] = {"prefer": about["prefer"], "graphs": chosen}
    return found


def _list_reward(about: Mapping[str, Any], result: Path) -> ListReward | None:
    """None for a model that has none."""
    found = about.get("list_reward")
    return None if found is None else ListReward.from_json(found, tuple(about["tasks"]), result / MODEL)


def _variant(report: Verification, key: str, name: str, file: str) -> Variant:
    facts = asdict(report.row(key, name))
    del facts["graph"], facts["variant"]
    if facts["left_out"] is None:
        del facts["left_out"]  # a conversion older than it gives the manifest that it gave before
    return Variant(name, file, float(f"{report.tolerance(key, name):.2g}"), facts)
