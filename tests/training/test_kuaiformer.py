"""KuaiFormer's net: it equals a slow reference, padding never moves an answer, plans as in the paper, ONNX."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from contract.errors import InputError, SpecError
from convert.onnx_export import OnnxGraph, TorchGraph, export_onnx
from tests.training import kuaiformer_reference as slow
from tests.training.kuaiformer_makers import PAPER, PLANS, config_of, histories, net_of
from training.kuaiformer import PRESETS, KuaiFormer, KuaiFormerConfig, preset_config, preset_label, score


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


# --- the plan


def test_the_plan_is_the_papers():
    config = config_of("paper")
    assert config.plan(256) == (PAPER, 48)
    assert (config.length, len(PAPER) + 48) == (256, 55), "256 items become 55 tokens (Eq. 7)"
    assert config.plan(48) == ((), 48)
    assert config.plan(5) == ((), 5)
    assert config.plan(64) == ((16,), 48)
    assert config.plan(192) == ((64, 16, 16, 16, 16, 16), 48)
    assert config.lengths == (*range(1, 49), 64, 80, 96, 112, 128, 192, 256)
    for length in config.lengths:
        windows, raw = config.plan(length)
        assert sum(windows) + raw == length
    for wrong in (0, 50, 129, 257, -1):
        with pytest.raises(InputError, match="border"):
            config.plan(wrong)
    assert KuaiFormerConfig().windows == PAPER
    assert KuaiFormerConfig().latest == 48


@pytest.mark.parametrize(
    ("windows", "length"),
    [((256, 256, 256, *(32,) * 4, *(16,) * 5), 1024), ((*(1024,) * 3, *(128,) * 7, 24), 4096)],
)
def test_longer_histories_fit_the_papers_55_tokens(windows, length):
    latest = 55 - len(windows)
    windows = (*windows[:-1], windows[-1] + length - latest - sum(windows))
    config = config_of("paper", windows=windows, latest=latest)
    assert (config.length, config.lengths[-1], len(windows) + latest) == (length, length, 55)
    seen = []
    encoder = net_of(config).encoder
    original = encoder.blocks[0].with_cuts
    encoder.blocks[0].with_cuts = lambda x, *rest: seen.append(x.shape[1]) or original(x, *rest)
    interests = encoder(*histories(config, [length, 100]))
    assert seen == [55], "what the stack runs over"
    assert torch.isfinite(interests).all()


def test_wrong_configurations_are_refused():
    for wrong in ({"latest": 0}, {"windows": (4, 0)}):
        with pytest.raises(InputError, match="a raw tail of 1 or more"):
            config_of("paper", **wrong)
    for wrong in ({"width": 10}, {"width": 9}, {"heads": 12}):
        with pytest.raises(InputError, match="multiple of the heads"):
            config_of("paper", **wrong)
    for wrong in ({"layers": 0}, {"interests": 0}, {"hidden": -3}):
        with pytest.raises(InputError, match="starts at 1"):
            config_of("paper", **wrong)
    for wrong in ({"temperature": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}):
        with pytest.raises(InputError, match="out of range"):
            config_of("paper", **wrong)
    with pytest.raises(InputError, match="unknown preset"):
        preset_config("huge")
    with pytest.raises(InputError, match="not a KuaiFormer"):
        KuaiFormerConfig.from_dict({"size": 3})
    with pytest.raises(SpecError, match="video's own row"):
        KuaiFormer(config_of(), config_of().spec().without(["item_video_id"]))


def test_a_label_tells_sizes_that_are_not_the_presets():
    assert preset_label(preset_config("paper", without=("history_gap",))) == "paper", "the data's doing"
    assert preset_label(preset_config("paper", interests=4)) == "paper, changed: interests 4"
    changed = KuaiFormerConfig.from_dict({**preset_config("tiny").to_dict(), "layers": 4, "windows": [8]})
    assert preset_label(changed) == "tiny, changed: layers 4, windows (8,)"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_build_and_come_back(preset):
    config = preset_config(preset)
    assert KuaiFormerConfig.from_dict(config.to_dict()) == config
    net = KuaiFormer(config, config.spec()).eval()
    assert net(torch.zeros(1, 16, config.spec().width("history_rows")), torch.ones(1, 16)).shape[1] == config.interests


def test_without_windows_there_is_no_layer_for_them():
    assert not any("window" in name for name in net_of(config_of("raw")).state_dict())
    assert any("window" in name for name in net_of(config_of("odd")).state_dict())


# --- parity


@pytest.mark.parametrize(
    ("plan", "held"),
    [
        ("paper", [0, 1, 48, 49, 65, 130, 256]),
        ("raw", [0, 1, 2, 13, 20]),
        ("odd", [*range(0, 24, 2), 23]),
        ("ones", [*range(7)]),
    ],
)
def test_it_equals_the_slow_reference(plan, held):
    config = config_of(plan, normalise=plan != "ones")
    encoder = net_of(config).encoder
    rows, mask = histories(config, held)
    found = encoder(rows, mask)
    for b in range(len(held)):
        np.testing.assert_allclose(found[b], slow.encoder(encoder, rows[b], mask[b]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_every_length_the_encoder_takes_equals_the_slow_reference(plan):
    config = config_of(plan)
    encoder = net_of(config).encoder
    for length in config.lengths[:: max(1, len(config.lengths) // 9)]:
        rows, mask = histories(config, [length - 1], length)
        np.testing.assert_allclose(
            encoder(rows, mask)[0], slow.encoder(encoder, rows[0], mask[0]), rtol=1e-4, atol=1e-5
        )


def test_holes_in_a_history_are_padding_too():
    """Nothing asks for padding to come first: an item that isn't there leaves a place empty, no more."""
    config = config_of("odd")
    encoder = net_of(config).encoder
    rows, mask = histories(config, [23])
    mask[0, [0, 1, 2, 3, 4, 9, 12, 17, 21]] = 0.0
    np.testing.assert_allclose(encoder(rows, mask)[0], slow.encoder(encoder, rows[0], mask[0]), rtol=1e-4, atol=1e-5)


# --- invariance


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_what_stands_in_the_padding_does_not_matter(plan):
    config = config_of(plan)
    net = net_of(config)
    rows, mask = histories(config, [*range(0, config.length + 1, max(1, config.length // 9))])
    other = torch.where(mask[..., None] > 0, rows, 50 * torch.randn_like(rows))
    assert torch.equal(net(rows, mask), net(other, mask))


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_padding_that_is_cut_away_does_not_matter(plan):
    """A history as an input of every length that holds it."""
    config = config_of(plan)
    net = net_of(config)
    for held in sorted({0, config.latest - 1, config.latest + 1}):
        rows, mask = histories(config, [held])
        whole = net(rows, mask)
        for length in (n for n in config.lengths if n >= held):
            cut = net(rows[:, -length:], mask[:, -length:])
            torch.testing.assert_close(
                cut, whole, rtol=1e-4, atol=1e-5, msg=lambda text, at=(held, length): f"{at} {text}"
            )


def test_where_a_short_history_stands_among_raw_slots_does_not_matter():
    """Positions are relative: the same items further from the input's front, padding behind cut away or masked."""
    config = config_of("raw")
    net = net_of(config)
    rows, _ = histories(config, [6], length=6)
    answer = net(rows, torch.ones(1, 6))
    for before in (1, 5, 14):
        padding = torch.randn(1, before, rows.shape[-1])
        moved = net(torch.cat([padding, rows], dim=1), torch.cat([torch.zeros(1, before), torch.ones(1, 6)], dim=1))
        torch.testing.assert_close(moved, answer, rtol=1e-4, atol=1e-5)


def test_order_and_company_in_the_batch_do_not_matter():
    config = config_of("paper")
    net = net_of(config)
    rows, mask = histories(config, [3, 256, 90, 0, 48])
    together = net(rows, mask)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(net(rows[order], mask[order]), together[order], rtol=1e-4, atol=1e-5)
    for i in range(5):
        torch.testing.assert_close(net(rows[i : i + 1], mask[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_every_item_and_the_order_of_raw_items_count(plan):
    config = config_of(plan, normalise=False)
    net = net_of(config)
    rows, mask = histories(config, [config.length])
    answer = net(rows, mask)
    changed = rows + 2.0 * torch.eye(config.length)[:, :, None]  # row i: item i is another
    moved = (net(changed, mask.expand(config.length, -1)) - answer).abs().amax(dim=(1, 2))
    assert float(moved.min()) > 1e-5, f"item {int(moved.argmin())} does not count"
    for a, b in ((config.length - 2, config.length - 1), (0, config.length - 1)):
        swapped = rows.clone()
        swapped[0, [a, b]] = rows[0, [b, a]]
        assert (net(swapped, mask) - answer).abs().max() > 1e-5, (a, b)


def test_the_order_within_a_window_counts():
    """By the rotary positions of the compression layer: its mean alone would not tell."""
    config = config_of("odd", normalise=False)
    net = net_of(config)
    rows, mask = histories(config, [23])
    swapped = rows.clone()
    swapped[0, [1, 3]] = rows[0, [3, 1]]
    assert (net(swapped, mask) - net(rows, mask)).abs().max() > 1e-5


def test_answers_are_unit_vectors_and_finite_for_no_history():
    config = config_of("paper")
    net = net_of(config)
    interests = net(*histories(config, [0, 1, 256]))
    assert interests.shape == (3, config.interests, config.width)
    torch.testing.assert_close(interests.norm(dim=-1), torch.ones(3, config.interests))
    items = net.item_vector(torch.randn(5, config.spec().width("item_rows")))
    torch.testing.assert_close(items.norm(dim=-1), torch.ones(5))


def test_normalising_is_a_switch():
    config = config_of("paper", normalise=False)
    net = net_of(config)
    assert (net.item_vector(torch.randn(5, config.spec().width("item_rows"))).norm(dim=-1) - 1).abs().max() > 1e-3
    assert (net(*histories(config, [9])).norm(dim=-1) - 1).abs().max() > 1e-3


def test_weights_that_were_saved_give_the_same_answers(tmp_path):
    from safetensors.torch import load_file, save_file

    config = config_of("odd")
    net, other = net_of(config), net_of(config, seed=1)
    rows, mask = histories(config, [0, 4, 23])
    assert not torch.equal(other(rows, mask), net(rows, mask))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(other(rows, mask), net(rows, mask))


# --- items and scores


def test_an_item_is_its_row_and_its_content():
    config = config_of("paper", normalise=False)
    net, width = net_of(config), config.video_width
    rows = torch.randn(4, config.spec().width("item_rows"))
    video, content = net.item.video(rows[:, :width]), net.item.content(rows[:, width:])
    torch.testing.assert_close(net.item_vector(rows), video + content)
    rows[:, :width] = 0.0
    assert net.item_vector(rows).norm(dim=-1).min() > 0, "an item nobody watched has a vector of its content"


def test_items_without_content_have_their_row_alone():
    spec = config_of().spec()
    content = tuple(f.name for f in spec.fields if f.name.startswith("item_") and f.table != "video")
    config = config_of("paper", without=content)
    net = net_of(config)
    assert not net.item.has_content
    assert net.item_vector(torch.randn(4, config.video_width)).shape == (4, config.width)


def test_score_is_the_best_interest():
    interests, items = torch.randn(2, 3, 4), torch.randn(5, 4)
    scores = score(interests, items)
    for b in range(2):
        for n in range(5):
            assert float(scores[b, n]) == pytest.approx(max(float(u @ items[n]) for u in interests[b]), rel=1e-5)


# --- export


def answers_alike(session, net: KuaiFormer, lengths: tuple[list[int], ...]) -> None:
    for held in lengths:
        rows, mask = histories(net.config, held)
        (interests,) = session({"history_rows": rows.numpy(), "history_mask": mask.numpy()})
        np.testing.assert_allclose(interests, net(rows, mask), atol=1e-5)


BATCHES = ([4], [0, 256], [1, 50, 130, 200, 256])


@pytest.mark.slow  # the exporter's own 20 s; the tracing one below is what conversion falls back on
def test_the_encoder_exports_through_dynamo_with_a_dynamic_batch(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    net = net_of(config_of("paper", layers=1))
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net.encoder,
            histories(net.config, [0, 9, 256]),
            dynamo=True,
            opset_version=20,
            input_names=["history_rows", "history_mask"],
            output_names=["interests"],
            dynamic_shapes=({0: batch}, {0: batch}),
            verbose=False,
        )
        program.save(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    answers_alike(lambda feeds: session.run(None, feeds), net, BATCHES)


@pytest.mark.parametrize("plan", ["paper", "raw"])
def test_the_encoder_exports_by_tracing_with_a_dynamic_batch(tmp_path, plan):
    pytest.importorskip("onnxruntime")
    net = net_of(config_of(plan))
    rows, mask = histories(net.config, [0, 9])
    dynamic = {name: {0: "b"} for name in ("history_rows", "history_mask", "interests")}
    inputs = {"history_rows": rows, "history_mask": mask}
    graph = TorchGraph("encoder", "", net.encoder, inputs, ("interests",), dynamic)
    session = OnnxGraph(export_onnx(graph, tmp_path / "encoder.onnx"))
    length = net.config.length
    lengths = tuple([min(n, length) for n in held] for held in BATCHES)
    answers_alike(lambda feeds: [session.run(feeds)["interests"]], net, lengths)
