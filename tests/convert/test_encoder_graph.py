"""The encoder's graph written by hand: torch's answers for any plan, batch and history, and what padding may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from contract.catalogue import read_catalogue
from contract.errors import VerificationFailed
from convert import server_models
from convert.encoder_graph import MASK, encoder_graph, tail_graph, window_graph
from convert.server_models import export_encoder, export_retrieval
from tests.convert import makers
from training.checkpoint import load_checkpoint
from training.kuaiformer import KuaiFormer, KuaiFormerConfig, score
from training.kuaiformer_train import load_kuaiformer
from training.retrieval_eval import item_vectors

PLANS: list[dict[str, Any]] = [
    {},
    {"windows": (), "latest": 5},
    {"windows": (8, 4, 4, 8), "latest": 6, "normalise": False},
    {"windows": (16,), "latest": 3, "heads": 1, "layers": 1, "interests": 1},
    {"windows": (4,), "latest": 2, "width": 64, "hidden": 48, "video_width": 4, "attribute_width": 2},  # narrow rows
    {"windows": (4, 4), "latest": 2, "width": 24, "heads": 3, "hidden": 20, "layers": 3, "interests": 6},
    {"windows": (4,), "latest": 3, "interests": 2, "recency_days": 1.0},
    {"windows": (4, 2), "latest": 3, "interests": 2, "last_item": True},
]


def encoder_of(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = KuaiFormerConfig(**{"width": 16, "video_width": 8, "attribute_width": 4, **changes})
    encoder = KuaiFormer(config, config.spec()).eval().encoder
    with torch.no_grad():  # norms that are not all ones, attention that is not flat
        for name, weight in encoder.named_parameters():
            weight.mul_(1.0 + 0.3 * torch.randn_like(weight) if name.endswith("norm.weight") else 2.0)
            if name == "recency":
                weight.fill_(0.3)
    return encoder


def row_width(encoder: Any) -> int:
    return int(encoder.token[0].in_features)


def session(encoder: Any) -> Any:
    content = encoder_graph(encoder, row_width(encoder)).SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def feeds(encoder: Any, real: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """One history of each length."""
    rng, length = np.random.default_rng(seed), encoder.config.length
    rows = rng.normal(size=(len(real), length, row_width(encoder))).astype(np.float32)
    mask = (np.arange(length)[None] >= length - np.array(real)[:, None]).astype(np.float32)
    return {"history_rows": rows, "history_mask": mask}


def by_torch(encoder: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(encoder(*(torch.from_numpy(value) for value in given.values())).numpy())


class TestParity:
    @pytest.mark.parametrize("changes", PLANS, ids=str)
    def test_any_plan_and_any_history(self, changes: dict[str, Any]) -> None:
        encoder = encoder_of(**changes)
        length = encoder.config.length
        given = feeds(encoder, sorted({0, 1, 2, length // 2, length - 1, length}))
        (got,) = session(encoder).run(None, given)
        np.testing.assert_allclose(got, by_torch(encoder, given), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("batch", [1, 2, 7])
    def test_any_batch_size(self, batch: int) -> None:
        encoder = encoder_of(windows=(8, 4), latest=4)
        given = feeds(encoder, [16] * batch, seed=batch)
        (got,) = session(encoder).run(None, given)
        assert got.shape == (batch, 2, 16)
        np.testing.assert_allclose(got, by_torch(encoder, given), atol=2e-6)

    def test_it_would_see_a_wrong_weight(self) -> None:
        """The bound above is far below what one wrong weight does."""
        encoder, other = encoder_of(windows=(4,), latest=4), encoder_of(windows=(4,), latest=4)
        with torch.no_grad():
            other.blocks[0].qkv.weight[0, 0] += 0.1
        given = feeds(encoder, [8])
        (got,) = session(other).run(None, given)
        assert np.abs(got - by_torch(encoder, given)).max() > 1e-4


class TestInvariance:
    def test_what_stands_in_the_padding_never_matters(self) -> None:
        encoder = encoder_of(windows=(8, 4), latest=4)
        given = feeds(encoder, [0, 3, 9, 16])
        run = session(encoder).run
        (before,) = run(None, given)
        given["history_rows"][given["history_mask"] == 0] = 1e6
        np.testing.assert_array_equal(run(None, given)[0], before)

    def test_each_row_of_a_batch_stands_alone(self) -> None:
        encoder = encoder_of(windows=(8, 4), latest=4)
        given = feeds(encoder, [2, 16, 5])
        run = session(encoder).run
        (together,) = run(None, given)
        for row in range(3):
            (alone,) = run(None, {name: value[row : row + 1] for name, value in given.items()})
            np.testing.assert_allclose(alone[0], together[row], atol=1e-6)

    def test_the_mask_is_nothing_beside_one_and_no_denormal(self) -> None:
        assert np.float32(1.0) + np.float32(np.exp(MASK) * 512) == np.float32(1.0)
        assert np.exp(np.float32(MASK - 20.0)) > np.finfo(np.float32).tiny

    def test_the_same_bytes_every_time(self) -> None:
        encoder = encoder_of(windows=(8, 4), latest=4)
        graphs = [encoder_graph(encoder, row_width(encoder)) for _ in range(2)]
        assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)


class TestForm:
    def test_the_last_layer_is_worked_out_for_the_queries_alone(self) -> None:
        encoder = encoder_of(windows=(8, 4), latest=4, interests=2)
        model = onnx.shape_inference.infer_shapes(encoder_graph(encoder, row_width(encoder)))
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
        read = [shapes[node.output[0]] for node in model.graph.node if node.op_type == "Attention"]
        assert [shape[1] for shape in read] == [8, 4, 8, 2]  # two windows' groups, a layer of 2 + 4 + 2, the queries

    def test_weights_are_written_once(self) -> None:
        encoder = encoder_of()
        held = sum(np.prod(constant.dims) for constant in encoder_graph(encoder, row_width(encoder)).graph.initializer)
        weights = sum(parameter.numel() for parameter in encoder.parameters())
        assert held < 1.1 * weights + 40_000  # positions and masks are small


class TestExport:
    def test_a_graph_that_differs_from_torch_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        net = load_kuaiformer(load_checkpoint(makers.make_kuaiformer(tmp_path / "net", windows=(4,), latest=4).path))
        other = load_kuaiformer(
            load_checkpoint(makers.make_kuaiformer(tmp_path / "other", 1, windows=(4,), latest=4).path)
        )
        wrong = encoder_graph(other.encoder, row_width(other.encoder))
        assert export_encoder(net, tmp_path / "encoder.onnx").inputs == ("history_rows", "history_mask")
        monkeypatch.setattr(server_models, "encoder_graph", lambda encoder, width: wrong)
        with pytest.raises(VerificationFailed, match="encoder in onnxruntime differs from torch"):
            export_encoder(net, tmp_path / "encoder.onnx")

    def test_a_prior_is_part_of_what_is_served(self, tmp_path: Path) -> None:
        """Encoder and item matrix of the files: their product is torch's score, prior included."""

        def spoil(net: KuaiFormer) -> None:
            net.encoder.recency.fill_(0.4)

        made = makers.make_kuaiformer(tmp_path / "net", spoil=spoil, windows=(4,), latest=4, recency_days=1.0)
        checkpoint, items = load_checkpoint(made.path), read_catalogue(makers.make_catalogue(tmp_path / "c.parquet"))
        export_retrieval(checkpoint, items, tmp_path / "out")
        vectors_ID = np.load(tmp_path / "out" / "item_vectors.npy")
        net = load_kuaiformer(checkpoint)
        assert vectors_ID.shape == (len(items), net.config.vector_width)
        assert len(np.unique(vectors_ID[:, -1])) > 2, "a prior of each item's own"
        given = feeds(net.encoder, [0, 3, 8])
        (interests_BKD,) = ort.InferenceSession(tmp_path / "out" / "encoder.onnx").run(None, given)
        np.testing.assert_array_equal(interests_BKD[..., -1], np.float32(0.4))
        with torch.no_grad():
            want = score(torch.from_numpy(by_torch(net.encoder, given)), item_vectors(net, checkpoint.tables, items))
        found = np.einsum("bkd,nd->bkn", interests_BKD, vectors_ID).max(axis=1)
        np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-4)


WINDOWED = [plan for plan in PLANS if plan.get("windows", (1,))]


@pytest.mark.parametrize("plan", WINDOWED)
def test_windows_that_are_kept_answer_as_torch_does_for_every_length_of_the_tail(plan: dict[str, Any]) -> None:
    """Also beside each other in one call, and for histories that fill the windows in part or not at all."""
    encoder = encoder_of(**plan)
    config, width = encoder.config, row_width(encoder)
    early = sum(config.windows)

    def loaded(model: Any) -> Any:
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    window, tail = loaded(window_graph(encoder, width)), loaded(tail_graph(encoder, width))
    rng = np.random.default_rng(3)
    tails = list(range(1, config.latest + 1)) + [config.latest] * 2
    rows = rng.normal(size=(len(tails), config.length, width)).astype(np.float32)
    mask = np.ones((len(tails), config.length), np.float32)
    mask[-2, : early // 2 + 1] = 0.0  # windows filled in part
    mask[-1, :early] = 0.0
    parts, end = [], 0
    for size in config.windows:
        place, end = slice(end, end + size), end + size
        given = {"history_rows": rows[:, place], "history_mask": mask[:, place]}
        parts.append(window.run(["token", "present"], given))
    tokens, present = (np.stack(side, axis=1) for side in zip(*parts, strict=True))
    raw = np.full((len(tails), config.latest, width), 7.0, np.float32)  # what stands in the padding says nothing
    there = np.zeros((len(tails), config.latest), np.float32)
    for row, n in enumerate(tails):
        raw[row, :n], there[row, :n] = rows[row, early : early + n], 1.0
    given = {"tokens": tokens, "present": present, "history_rows": raw, "history_mask": there}
    (found,) = tail.run(["interests"], given)
    with torch.no_grad():
        kept = encoder.compressed(torch.from_numpy(rows[:, :early]), torch.from_numpy(mask[:, :early]), config.windows)
        for row, n in enumerate(tails):
            one = tuple(part[row : row + 1] for part in kept)
            want = encoder.behind(one, torch.from_numpy(rows[row : row + 1, early : early + n]), torch.ones(1, n))
            np.testing.assert_allclose(found[row], want[0, 0].numpy(), atol=3e-5, err_msg=f"{n} raw items")
    full = session(encoder).run(["interests"], {"history_rows": rows[-3:], "history_mask": mask[-3:]})[0]
    np.testing.assert_allclose(found[-3:], full, atol=3e-5)
