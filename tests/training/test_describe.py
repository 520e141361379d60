"""`kir describe`: what a directory holds, counted against the nets themselves, and one line for what is none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import kir
from contract.errors import InputError
from contract.manifest import FileEntry, Golden, Graph, Manifest, Pointer, Tensor, Variant
from contract.specs import kir_spec
from contract.vocabulary import TASKS
from training.checkpoint import save_checkpoint
from training.days import DAY_MS
from training.describe import describe
from training.describe_checkpoint import SWIPE_N, weights_read
from training.description import Description, Section, against, cell_text, fields_of, spec_facts, spec_sections
from training.kir import Graph as KirGraph
from training.kir import Kir, KirConfig, cost, graphs
from training.tables import SparseTables

SHA = "ab" * 32


def test_a_table_has_its_numbers_at_the_right():
    section = Section("files", ("name", "bytes", "share"), [("a", 1_234_567, 0.25), ("long name", None, 0.5)])
    assert section.lines() == [
        "files", "  name           bytes  share", "  a          1,234,567  25.0%", "  long name          –  50.0%",
    ]  # fmt: skip
    assert Section("none", ("a", "b"), []).lines() == ["none", "  a  b"]
    assert [cell_text(value) for value in (True, False, "x", 0)] == ["yes", "no", "x", "0"]
    told = Description("T", {"kind": "kir", "n": 1000}, [section], {"more": [1]})
    assert told.text().splitlines()[:4] == ["T", "  kind  kir", "  n     1,000", ""]
    assert told.to_dict() == {"kind": "kir", "n": 1000, "more": [1]}
    assert "under" in against(5, 6)
    assert "OVER the target of 6 MB" in against(6_000_000, 6_000_000)


def test_every_field_is_told_by_group():
    spec = kir_spec()
    fields = fields_of(spec)
    assert sorted(one["field"] for one in fields) == sorted(one.name for one in spec.fields)
    assert list(dict.fromkeys(one["group"] for one in fields)) == ["user", "video", "feedback", "server", "device"]
    by_name = {one["field"]: one for one in fields}
    assert by_name["video_id"]["table"] == "served: video"
    assert by_name["pxtr"]["table"] == "dense"
    assert by_name["tags"]["max_len"] == 3
    blocks = spec_sections(spec)[1].rows
    assert {name: width for name, _, width in blocks} == {name: spec.width(name) for name in spec.blocks}
    assert sum(n for _, n, _ in blocks) == len(spec.fields)
    assert "no served field" in spec_facts(spec.without_served())["fields"]


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.plain = torch.nn.Linear(3, 4), torch.nn.Linear(9, 9), torch.nn.Linear(4, 2)
        self.register_buffer("constant", torch.ones(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x) + self.constant.T.reshape(4, 5).sum(1) + self.plain.weight.T.sum()


def test_the_weights_of_a_file_are_those_that_its_graph_reads():
    graph = KirGraph(Toy(), {"x": torch.zeros(2, 3)}, ("y",))
    assert weights_read(graph) == (12 + 4) + 20 + 8  # views count; the bias of `plain` and all of `unused` do not


@pytest.fixture(scope="module")
def kir_checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config, spec = KirConfig.of("tiny", buckets=(6, 12)), kir_spec()
    net = Kir(config, spec)
    keys = {table: np.arange(1, 8, dtype=np.uint64) for table in spec.tables}
    return save_checkpoint(
        tmp_path_factory.mktemp("kir") / "k", kind="kir", model=net,
        tables=SparseTables.from_spec_and_keys(spec, keys), spec=spec, model_config=config.to_json(),
        training={"seed": 3}, metrics={}, card_text="# test\n",
    ), net  # fmt: skip


def test_kir_is_told_with_its_costs(kir_checkpoint, tmp_path, capsys):
    checkpoint, net = kir_checkpoint
    assert kir.main(["describe", str(checkpoint.path), "--json", str(tmp_path / "deep/f.json")]) == 0
    text, found = capsys.readouterr().out, json.loads((tmp_path / "deep/f.json").read_text())
    assert (found["kind"], found["version"], found["preset"], found["seed"]) == ("kir", checkpoint.version, "tiny", "3")
    assert found["dense_parameters"] == sum(tensor.numel() for tensor in net.state_dict().values())
    assert found["dense_bytes"] == 4 * found["dense_parameters"]
    rows = {one["table"]: one for one in found["tables"]}
    assert {name: one["width"] for name, one in rows.items()} == dict(net.spec.tables)
    assert found["sparse_parameters"] == sum(8 * width for width in net.spec.tables.values())  # and the default row
    told = {(one["graph"], one["bucket"]): one for one in found["graphs"]}
    sizes = (6, 12, SWIPE_N)
    built = graphs(net.eval(), buckets=sizes)
    assert set(told) == set(built)
    for key in (("page", "N6"), ("watch", "T1"), ("whole", "N32")):
        assert told[key]["multiply_adds"] == cost(built[key])
    for n, one in zip(sizes, found["swipes"], strict=True):
        swipe, watch, whole = (told[key]["multiply_adds"] for key in
                               (("swipe", f"N{n}"), ("watch", "T1"), ("whole", f"N{n}")))  # fmt: skip
        assert one["share"] == pytest.approx((swipe + watch) / whole)
    loaded = [one["weights"] for key, one in told.items() if key[0] != "whole" and key[1] != f"N{SWIPE_N}"]
    assert found["device_weights"] == sum(loaded)
    assert max(one["weights"] for one in told.values()) == told["whole", "N32"]["weights"]
    assert "N32 (no bucket)" in text
    assert "≤ 25%" not in text  # the target is at L = 50
    assert "under the target of 1.5 MB" in text


def test_the_target_of_a_swipe_is_judged_at_its_size(tmp_path):
    config, spec = KirConfig.of("tiny", watched=50, buckets=(SWIPE_N,)), kir_spec().without_served()
    save_checkpoint(
        tmp_path / "k", kind="kir", model=Kir(config, spec), tables=SparseTables.from_spec_and_keys(spec, {}),
        spec=spec, model_config=config.to_json(), training={}, metrics={}, card_text="# test\n",
    )  # fmt: skip
    found = describe(tmp_path / "k")
    assert "≤ 25%: " in found.text()
    assert "no bucket" not in found.text()
    assert found.facts["sparse_parameters"] == 0
    assert "no served field" in found.text()


def test_other_checkpoints_are_told_too(tmp_path, capsys):
    from tests.training.test_evaluation import checkpoint_of
    from training.readers import open_data
    from training.retrieval_split import split_of

    log = open_data("sim:users=8,items=60,days=2")
    split = split_of(log, "sim", cut_ms=int(log.events["time_ms"].max()) - DAY_MS)
    checkpoint = checkpoint_of(tmp_path / "m", split, {"data": "sim", "seed": 1})
    assert kir.main(["describe", str(checkpoint.path)]) == 0
    text = capsys.readouterr().out
    assert "kuaiformer" in text
    assert "history_rows" in text
    assert "multiply-adds" not in text
    found = describe(checkpoint.path)
    assert found.facts["dense_parameters"] == sum(one.numel() for one in checkpoint.dense.values())


def manifest() -> Manifest:
    def graph(name: str, bucket: str, sizes: dict[str, int], ship: str) -> Graph:
        variants = tuple(Variant(one, f"{name}-{bucket}.{one}", 1e-5) for one in sizes)
        files.update({v.file: FileEntry(SHA, size) for v, size in zip(variants, sizes.values(), strict=True)})
        return Graph(name, bucket, (Tensor("x", (1, 2)),), (Tensor("y", (1, 2)),), variants, ship)

    files = {"card.md": FileEntry(SHA, 30)}
    graphs = (
        graph("page", "N20", {"float32": 4000, "int8": 1000}, "int8"),
        graph("watch", "T1", {"float32": 400, "int8": 100}, "float32"),
        graph("swipe", "N20", {"float32": 40}, "float32"),
        graph("whole", "N20", {"float32": 9_000_000}, "float32"),
    )
    return Manifest(
        dense_version="kir-0123", created_at="2026-01-01T00:00:00Z", spec=kir_spec(), capacities={"L": 20, "N": [20]},
        tasks=TASKS, fusion={"effective_view": 1.0, "like": 0.5}, graphs=graphs, files=files, golden=Golden(1),
        card="card.md", min_runtime={}, provenance={"model": {"preset": "tiny"}},
    )  # fmt: skip


def cdn(root, model: Manifest) -> None:
    import hashlib

    directory = root / "models" / model.dense_version
    directory.mkdir(parents=True)
    raw = model.to_bytes()
    (directory / "manifest.json").write_bytes(raw)
    pointer = Pointer(
        model.dense_version, f"models/{model.dense_version}/manifest.json", hashlib.sha256(raw).hexdigest(), len(raw)
    )
    (root / "current.json").write_bytes(pointer.to_bytes())


def test_a_published_model_is_told_by_file(tmp_path, capsys):
    cdn(tmp_path / "cdn", replace(manifest(), dense_version="kir-old"))
    cdn(tmp_path / "cdn", manifest())
    assert kir.main(["describe", str(tmp_path / "cdn"), "--json", str(tmp_path / "f.json")]) == 0
    text, found = capsys.readouterr().out, json.loads((tmp_path / "f.json").read_text())
    assert (found["version"], found["preset"]) == ("kir-0123", "tiny")
    assert found["versions"] == "kir-0123, kir-old"
    assert found["device_bytes"] == {"shipped": 1440, "float32": 4440, "int8": 1100}
    assert "1,440: 3 files" in text
    assert "under the target of 6 MB" in text
    assert "1 graphs have no such variant" in text
    assert "1·σ(effective_view) + 0.5·σ(like)" in text
    assert len(found["files"]) == 6
    alone = describe(tmp_path / "cdn/models/kir-old")
    assert alone.facts["version"] == "kir-old"
    assert "versions" not in alone.facts
    (tmp_path / "cdn/models/kir-0123/manifest.json").unlink()
    assert kir.main(["describe", str(tmp_path / "cdn")]) == 2
    assert "not there" in capsys.readouterr().err


def converted(root, shipped: str = "int8") -> None:
    model = manifest()
    (root / "graphs").mkdir(parents=True)
    graphs = []
    for graph in model.graphs:
        variants = {one.name: f"graphs/{one.file}" for one in graph.variants}
        for one in graph.variants:
            (root / variants[one.name]).write_bytes(b"0" * min(model.files[one.file].n_bytes, 5000))
        graphs.append({"name": graph.name, "bucket": graph.bucket, "variants": variants})
    about = {
        "format": "kir-converted/2", "kind": "kir", "dense_version": model.dense_version,
        "created_at": model.created_at,
        "spec": model.spec.to_json(), "capacities": model.capacities, "fusion": model.fusion, "graphs": graphs,
        "provenance": {},
    }  # fmt: skip
    (root / "model.json").write_text(json.dumps(about))
    told = {"page/N20": shipped, "watch/T1": "float32", "swipe/N20": "float32", "whole/N20": "float32"}
    (root / "verification.json").write_text(json.dumps({"shipped": told}))


def test_a_converted_model_is_told_by_file(tmp_path):
    converted(tmp_path / "m")
    found = describe(tmp_path / "m")
    assert found.facts["kind"] == "converted model"
    assert found.facts["preset"] == "not said"
    assert found.data["device_bytes"] == {"shipped": 1440, "float32": 4440, "int8": 1100}
    (tmp_path / "m/graphs/page-N20.int8").unlink()
    with pytest.raises(InputError, match="not whole"):
        describe(tmp_path / "m")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "no such directory"),
        ({}, "an empty directory"),
        ({"notes.txt": "x"}, "notes.txt"),
        ({"config.json": "{}"}, "config.json"),
        ({"config.json": '{"format": "kir-checkpoint/1"'}, "config.json"),
        ({"model.json": '{"format": "other"}'}, "another format"),
        ({"model.json": "[]"}, "not whole"),
        ({"model.json": '{"format": "kir-converted/2", "kind": "ranker"}'}, "its card describes"),
        ({"current.json": "{}"}, "current.json"),
        ({"manifest.json": "no json"}, "manifest.json"),
    ],
)
def test_anything_else_ends_in_one_line(tmp_path, capsys, files, said):
    folder = tmp_path / "x"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    assert kir.main(["describe", str(folder)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
