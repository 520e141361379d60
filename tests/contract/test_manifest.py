"""The manifest and the pointer: canonical bytes in, the same object out; any other bytes are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.beam import ListReward
from contract.device_class import CLASSES_MAX, DeviceClass
from contract.errors import ManifestError, SpecError
from contract.manifest import (
    FILE_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    FileEntry,
    Golden,
    Graph,
    Manifest,
    Pointer,
    Tensor,
    Variant,
    canonical_json,
)
from contract.specs import kir_spec
from contract.vocabulary import TASKS

SHA = "ab" * 32
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)
hashes = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
tensors = st.builds(Tensor, names, st.lists(st.integers(1, 500), max_size=4).map(tuple), st.just("float32"))

weights = st.dictionaries(st.sampled_from(TASKS), st.floats(-2, 2), min_size=1)
list_rewards = st.builds(ListReward, weights, st.sampled_from(TASKS))


@st.composite
def manifests(draw: Any) -> Manifest:
    files = draw(
        st.dictionaries(names, st.builds(FileEntry, hashes, st.integers(0, FILE_BYTES_MAX)), min_size=1, max_size=4)
    )
    file = st.sampled_from(sorted(files))
    graphs = []
    for name, bucket in draw(st.sets(st.tuples(st.sampled_from(("page", "swipe")), st.integers(1, 99)), max_size=3)):
        variants = tuple(
            Variant(variant, draw(file), draw(st.floats(0, 1)), {"max_abs": draw(st.floats(0, 1))})
            for variant in draw(st.sets(st.sampled_from(("float32", "int8-dynamic")), min_size=1))
        )
        sides = [tuple(draw(st.lists(tensors, max_size=2))) for _ in range(2)]
        graphs.append(Graph(name, f"N{bucket}", *sides, variants, variants[0].name))
    return Manifest(
        dense_version=draw(names),
        created_at="2026-01-01T00:00:00Z",
        spec=kir_spec().without(draw(st.sets(st.sampled_from(("hour", "network", "gap"))))),
        capacities={"L": 20, "P": 4, "k": 2, "N": [20], "t": [1, 10]},
        tasks=TASKS,
        fusion=draw(st.dictionaries(st.sampled_from(TASKS), st.floats(-2, 2))),
        graphs=tuple(graphs),
        files=files,
        golden=Golden(draw(st.integers(0, 2**40)), {g.name: draw(file) for g in graphs}, draw(file)),
        card=draw(file),
        min_runtime={"ai-edge-litert": "2.3.0"},
        list_reward=draw(st.none() | list_rewards),
        device_classes=tuple(
            DeviceClass(name, {}, (), 100 - number) for number, name in enumerate(draw(st.sets(names, max_size=3)))
        ),
    )


def one_manifest() -> Manifest:
    files = {"a.tflite": FileEntry(SHA, 10), "b.npz": FileEntry(SHA, 20), "c.json": FileEntry(SHA, 30)}
    variants = (Variant("float32", "a.tflite", 1e-5), Variant("int8-dynamic", "a.tflite", 1e-4))
    graph = Graph(
        "swipe", "N20", (Tensor("query", (1, 20, 32)),), (Tensor("scores", (1, 20, 4)),), variants, "int8-dynamic"
    )
    other = replace(graph, bucket="N8", ship="float32")
    classes = (
        DeviceClass("large", {"swipe": "float32"}, ("asimddp", "i8mm"), 6000, {"swipe/N20": "b.npz"}, "c.json"),
        DeviceClass("dotprod", {"swipe": "int8-dynamic"}, ("asimddp",)),
        DeviceClass("others", {}, (), 2000),
    )
    return Manifest(
        dense_version="kir-1f3a",
        created_at="2026-01-01T00:00:00Z",
        spec=kir_spec(),
        capacities={"L": 20},
        tasks=TASKS,
        fusion={"like": 1.0},
        graphs=(graph, other),
        files=files,
        golden=Golden(1, {"swipe/N20": "b.npz"}, "c.json"),
        card="c.json",
        min_runtime={},
        list_reward=ListReward({"like": 1.0}),
        device_classes=classes,
    )


def respelled(manifest: Manifest, change: Any) -> bytes:
    """Canonical bytes of a changed manifest, whatever sense it makes."""
    data = json.loads(manifest.to_bytes())
    change(data)
    return canonical_json(data)


class TestManifest:
    @given(manifests())
    @settings(max_examples=40)
    def test_round_trip(self, manifest: Manifest) -> None:
        raw = manifest.to_bytes()
        back = Manifest.from_bytes(raw)
        assert back == manifest
        assert back.to_bytes() == raw

    def test_the_shipped_variant_and_a_named_one(self) -> None:
        graph = one_manifest().graph("swipe", "N20")
        assert graph.variant().name == "int8-dynamic"
        assert graph.variant("float32").tolerance == 1e-5
        with pytest.raises(ManifestError, match="no such variant"):
            graph.variant("int4")

    def test_buckets_ascend(self) -> None:
        assert one_manifest().buckets("swipe") == [8, 20]
        assert one_manifest().buckets("place") == []

    def test_an_absent_graph_is_named(self) -> None:
        with pytest.raises(ManifestError, match="no such graph"):
            one_manifest().graph("swipe", "N99")

    def test_a_manifest_older_than_list_reward_keeps_its_bytes(self) -> None:
        old = replace(one_manifest(), list_reward=None)
        assert b"list_reward" not in old.to_bytes()
        assert Manifest.from_bytes(old.to_bytes()) == old

    def test_a_manifest_without_device_classes_keeps_its_bytes(self) -> None:
        old = replace(one_manifest(), device_classes=())
        assert b"device_classes" not in old.to_bytes()
        assert Manifest.from_bytes(old.to_bytes()) == old

    @given(st.data())
    @settings(max_examples=150)
    def test_a_flipped_byte_is_refused_or_another_valid_manifest(self, data: Any) -> None:
        """The manifest carries no checksum of its own (the pointer has it): a flip may only change a value."""
        raw = bytearray(one_manifest().to_bytes())
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        try:
            back = Manifest.from_bytes(bytes(raw))
        except (ManifestError, SpecError):
            return
        assert back.to_bytes() == bytes(raw)

    @given(st.data())
    def test_truncation_is_refused(self, data: Any) -> None:
        raw = one_manifest().to_bytes()
        with pytest.raises(ManifestError):
            Manifest.from_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])

    def test_other_spellings_of_the_same_content_are_refused(self) -> None:
        data = json.loads(one_manifest().to_bytes())
        with pytest.raises(ManifestError, match="canonical"):
            Manifest.from_bytes(json.dumps(data).encode())

    @pytest.mark.parametrize(
        "raw", [b"", b"null", b"[]", b"\xff", b"{}", b'{"format": "kir-model/2"}', b"[" * 100_000, b"NaN"]
    )
    def test_what_is_no_manifest_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ManifestError):
            Manifest.from_bytes(raw)

    def test_a_huge_file_is_refused_before_parsing(self) -> None:
        with pytest.raises(ManifestError, match="too large"):
            Manifest.from_bytes(b" " * (MANIFEST_BYTES_MAX + 1))

    @pytest.mark.parametrize(
        ("what", "change"),
        [
            ("dense_version", lambda d: d.update(dense_version="../evil")),
            ("unusable", lambda d: d["files"].update({"../../etc/passwd": {"sha256": SHA, "n_bytes": 1}})),
            ("unusable", lambda d: d["files"]["a.tflite"].update(sha256="00")),
            ("unusable", lambda d: d["files"]["a.tflite"].update(n_bytes=-1)),
            ("unusable", lambda d: d["files"]["a.tflite"].update(n_bytes=FILE_BYTES_MAX + 1)),
            ("does not list", lambda d: d["files"].pop("a.tflite")),
            ("does not list", lambda d: d["golden"].update(session="nowhere.json")),
            ("does not list", lambda d: d.update(card="nowhere.md")),
            ("no such variant", lambda d: d["graphs"][0].update(ship="int4")),
            ("unknown bucket", lambda d: d["graphs"][0].update(bucket="X1")),
            ("unknown task", lambda d: d["fusion"].update(swipe=1.0)),
            ("unknown task", lambda d: d["tasks"].append("swipe")),
            ("list_reward", lambda d: d["list_reward"].update(survival="swipe")),
            ("list_reward", lambda d: d["list_reward"].update(value={"swipe": 1.0})),
            ("list_reward", lambda d: d["list_reward"].update(value={"like": 10**400})),
            ("list_reward", lambda d: d["list_reward"].update(discount=0.9)),
            ("list_reward", lambda d: d.update(list_reward=None)),
            ("fingerprint", lambda d: d["spec"]["fields"][0].update(width=99, name="user_id")),
            ("incomplete", lambda d: d.pop("golden")),
            ("left_out", lambda d: d["graphs"][0]["variants"][0].update(verification={"left_out": -1})),
            ("left_out", lambda d: d["graphs"][0]["variants"][0].update(verification={"left_out": True})),
            ("left_out", lambda d: d["graphs"][0]["variants"][0].update(verification={"left_out": [1]})),
            ("left_out", lambda d: d["graphs"][0]["variants"][0].update(verification={"left_out": 10**9})),
            ("names an absent variant", lambda d: d["device_classes"][0]["variants"].update(swipe="int4")),
            ("names an absent variant", lambda d: d["graphs"][1]["variants"].pop(1)),
            ("names no graph", lambda d: d["device_classes"][0]["variants"].update(watch="float32")),
            ("names no CPU flags", lambda d: d["device_classes"][0].update(cpu=["asimddp i8mm"])),
            ("names no CPU flags", lambda d: d["device_classes"][0].update(cpu=["a"] * 100)),
            ("needs no such memory", lambda d: d["device_classes"][0].update(memory_mib_min=-1)),
            ("needs no such memory", lambda d: d["device_classes"][0].update(memory_mib_min=2**40)),
            ("no name of its own", lambda d: d["device_classes"][0].update(name="dotprod")),
            ("no name of its own", lambda d: d["device_classes"][0].update(name="../x")),
            ("never reached", lambda d: d["device_classes"][0].update(cpu=[], memory_mib_min=0)),
            ("too many device classes", lambda d: d["device_classes"].extend(d["device_classes"] * CLASSES_MAX)),
            ("golden tensors of no graph", lambda d: d["device_classes"][0].update(golden_tensors={"x": "b.npz"})),
            ("does not list", lambda d: d["device_classes"][0].update(golden_session="nowhere.json")),
            ("does not list", lambda d: d["device_classes"][0].update(golden_tensors={"swipe/N20": "nowhere"})),
            ("DeviceClass.cpu must be", lambda d: d["device_classes"][0].update(cpu="asimddp")),
            ("DeviceClass.cpu must be", lambda d: d["device_classes"][0].update(cpu=[1])),
            ("DeviceClass.memory_mib_min must be int", lambda d: d["device_classes"][0].update(memory_mib_min=1.5)),
            ("DeviceClass.variants must be", lambda d: d["device_classes"][0].update(variants=["float32"])),
            ("incomplete", lambda d: d["device_classes"][0].update(priority=1)),
            ("incomplete", lambda d: d["device_classes"][0].pop("name")),
            ("incomplete", lambda d: d.update(device_classes={"large": {}})),
            ("incomplete", lambda d: d.update(device_classes=3)),
            ("incomplete", lambda d: d.update(device_classes=[3])),
            ("incomplete", lambda d: d.update(extra=1)),
            ("incomplete", lambda d: d["graphs"][0].pop("inputs")),
            ("incomplete", lambda d: d["graphs"][0]["inputs"][0].update(shape="x")),
            ("incomplete", lambda d: d.update(files=[])),
            ("Manifest.dense_version must be str", lambda d: d.update(dense_version=7)),
            ("Manifest.card must be str", lambda d: d.update(card=["c.json"])),
            ("Manifest.fusion must be Mapping[str, float]", lambda d: d.update(fusion={"like": "1"})),
            ("Manifest.capacities must be", lambda d: d.update(capacities=[20])),
            ("Manifest.min_runtime must be", lambda d: d.update(min_runtime={"ai-edge-litert": 2})),
            ("min_runtime names no package", lambda d: d.update(min_runtime={"": "2.1.0"})),
            ("FileEntry.n_bytes must be int", lambda d: d["files"]["a.tflite"].update(n_bytes="10")),
            ("Golden.tensors must be", lambda d: d["golden"].update(tensors=["b.npz"])),
            ("Graph.bucket must be str", lambda d: d["graphs"][0].update(bucket=20)),
            ("Variant.file must be str", lambda d: d["graphs"][0]["variants"][0].update(file=["a.tflite"])),
            ("Variant.tolerance must be float", lambda d: d["graphs"][0]["variants"][0].update(tolerance="1e-4")),
            ("Tensor.shape must be", lambda d: d["graphs"][0]["inputs"][0].update(shape=[1.5, 2])),
            ("incomplete", lambda d: d["graphs"][0]["inputs"][0].update(layout="NHWC")),
        ],
    )  # fmt: skip
    def test_what_contradicts_itself_is_refused(self, what: str, change: Any) -> None:
        with pytest.raises((ManifestError, SpecError)) as raised:
            Manifest.from_bytes(respelled(one_manifest(), change))
        assert what in str(raised.value)

    @pytest.mark.parametrize("depth", [600, 100_000])
    def test_json_that_is_nested_without_end_is_refused(self, depth: int) -> None:
        """Python's JSON reads deeper documents than it writes."""
        raw = b'{"format": "kir-model/1", "x": ' + b"[" * depth + b"]" * depth + b"}"
        with pytest.raises(ManifestError):
            Manifest.from_bytes(raw)

    def test_a_number_of_five_thousand_digits_is_refused(self) -> None:
        with pytest.raises(ManifestError, match="not JSON"):
            Manifest.from_bytes(b'{"format": "kir-model/1", "x": ' + b"9" * 5_000 + b"}")


class TestDeviceClasses:
    @pytest.mark.parametrize(
        ("cpu", "memory_mib", "names"),
        [
            ({"asimddp", "i8mm", "fp"}, 8000, ["large", "dotprod", "others", ""]),
            ({"asimddp", "i8mm"}, 5999, ["dotprod", "others", ""]),
            ({"asimddp"}, 1000, ["dotprod", ""]),
            ({"avx2"}, 2000, ["others", ""]),
            (set(), 0, [""]),
        ],
    )
    def test_the_first_whose_needs_are_met_comes_first(self, cpu: set[str], memory_mib: int, names: list[str]) -> None:
        assert one_manifest().classes_for(cpu, memory_mib) == names

    def test_its_variants_ship_in_all_buckets_and_its_goldens_count(self) -> None:
        manifest = one_manifest()
        seen = manifest.of_class("large")
        assert [graph.ship for graph in seen.graphs] == ["float32", "float32"]
        assert [graph.ship for graph in manifest.graphs] == ["int8-dynamic", "float32"]
        assert seen.golden == replace(manifest.golden, tensors={"swipe/N20": "b.npz"})

    def test_what_it_does_not_name_ships(self) -> None:
        manifest = one_manifest()
        assert manifest.of_class("others") == manifest.of_class("") == manifest

    def test_an_unknown_class_is_refused(self) -> None:
        with pytest.raises(ManifestError, match="no such device class"):
            one_manifest().of_class("huge")


class TestPointer:
    POINTER = Pointer("kir-1f3a", "models/kir-1f3a/manifest.json", SHA, 1234)

    @given(names, hashes, st.integers(1, MANIFEST_BYTES_MAX))
    def test_round_trip(self, version: str, digest: str, n_bytes: int) -> None:
        pointer = Pointer(version, f"models/{version}/manifest.json", digest, n_bytes)
        assert Pointer.from_bytes(pointer.to_bytes()) == pointer

    @given(st.data())
    @settings(max_examples=300)
    def test_any_flipped_byte_is_refused(self, data: Any) -> None:
        raw = bytearray(self.POINTER.to_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        with pytest.raises(ManifestError):
            Pointer.from_bytes(bytes(raw))

    @given(st.data())
    def test_truncation_is_refused(self, data: Any) -> None:
        raw = self.POINTER.to_bytes()
        with pytest.raises(ManifestError):
            Pointer.from_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])

    @pytest.mark.parametrize(
        "change",
        [
            {"dense_version": "../kir"},
            {"manifest": "models/other/manifest.json"},
            {"manifest": "../../manifest.json"},
            {"manifest_sha256": "xyz"},
            {"manifest_bytes": "12"},
            {"manifest_bytes": True},
            {"manifest_bytes": 0},
            {"manifest_bytes": MANIFEST_BYTES_MAX + 1},
            {"dense_version": 3},
        ],
    )
    def test_unusable_values_are_refused_even_with_a_right_checksum(self, change: dict[str, Any]) -> None:
        with pytest.raises(ManifestError, match=r"unusable|must be (int|str)"):
            Pointer.from_bytes(replace(self.POINTER, **change).to_bytes())

    def test_a_missing_key_is_refused(self) -> None:
        data = json.loads(self.POINTER.to_bytes())
        del data["manifest_bytes"]
        with pytest.raises(ManifestError, match="incomplete"):
            Pointer.from_bytes(canonical_json(data))
