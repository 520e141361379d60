"""Many cuts in one pass: each is the one-target model on the history that ends there, and knows nothing of the rest.

The one-target model of cut p: an encoder with the same weights that is given the history without its last P - 1 - p
items, the windows as they are and so many raw places fewer. At the last cut that is the model that serves.
"""

from __future__ import annotations

import pytest
import torch

from contract.errors import InputError
from tests.training import kuaiformer_reference as slow
from tests.training.kuaiformer_makers import PLANS, config_of, histories, net_of, sibling


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def one_target(encoder, rows, mask, n_away: int):
    """forward() on the history without its last `n_away` places."""
    length = rows.shape[1] - n_away
    shorter = sibling(encoder, latest=encoder.config.latest - n_away)
    return shorter(rows[:, :length], mask[:, :length])


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_every_cut_is_the_one_target_model(plan):
    config = config_of(plan)
    encoder = net_of(config).encoder
    n_cuts = config.latest
    rows, mask = histories(config, [config.length, config.length - 1, config.latest + 1, config.latest // 2 + 1, 1, 0])
    found = encoder.cuts(rows, mask, n_cuts)
    assert found.shape == (6, n_cuts, config.interests, config.width)
    for p in range(n_cuts):
        expected = one_target(encoder, rows, mask, n_cuts - 1 - p)
        torch.testing.assert_close(found[:, p], expected, rtol=0, atol=1e-5, msg=lambda text, p=p: f"cut {p}: {text}")


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_the_last_cut_is_the_model_that_serves(plan):
    """However many cuts stand before it, for every length of input."""
    config = config_of(plan)
    encoder = net_of(config).encoder
    for length in (config.latest, config.length):
        rows, mask = histories(config, [length, length // 2, 0], length)
        for n_cuts in {1, 2, config.latest} & set(range(1, config.latest + 1)):
            last = encoder.cuts(rows, mask, n_cuts)[:, -1]
            torch.testing.assert_close(last, encoder(rows, mask), rtol=0, atol=1e-6)


def test_without_windows_every_cut_is_the_very_encoder_that_serves():
    """No plan to shorten: a history of n items is an input of n slots."""
    config = config_of("raw")
    encoder = net_of(config).encoder
    rows, mask = histories(config, [20, 13])
    found = encoder.cuts(rows, mask, 20)
    for p in range(20):
        torch.testing.assert_close(found[:, p], encoder(rows[:, : p + 1], mask[:, : p + 1]), rtol=0, atol=1e-5)


def test_cuts_equal_the_slow_reference():
    config = config_of("odd")
    encoder = net_of(config).encoder
    rows, mask = histories(config, [23, 15])
    found = encoder.cuts(rows, mask, 7)
    for p in (0, 3, 6):
        shorter = sibling(encoder, latest=p + 1)
        for b in range(2):
            expected = slow.encoder(shorter, rows[b, : 17 + p], mask[b, : 17 + p])
            torch.testing.assert_close(found[b, p], torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_a_cut_at_padding_is_that_of_an_empty_history(plan):
    config = config_of(plan)
    encoder = net_of(config).encoder
    held = config.latest // 2
    rows, mask = histories(config, [held])
    found = encoder.cuts(rows, mask, config.latest)[0]
    empty = encoder(*histories(config, [0], 1))[0]
    for p in range(config.latest - held):
        torch.testing.assert_close(found[p], empty, rtol=0, atol=1e-5)
    if held:
        assert not torch.allclose(found[config.latest - held], empty, atol=1e-3)


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_what_comes_later_never_changes_a_cut(plan):
    """To the bit, whichever of the raw items is another."""
    config = config_of(plan)
    encoder = net_of(config).encoder
    for held in (config.length, config.latest):
        rows, mask = histories(config, [held])
        before = encoder.cuts(rows, mask, config.latest)[0]
        for p in range(config.latest):
            changed = rows.clone()
            changed[0, config.length - config.latest + p] += 3.0
            after = encoder.cuts(changed, mask, config.latest)[0]
            assert torch.equal(after[:p], before[:p]), f"item {p} reached an earlier cut"
            assert not torch.allclose(after[p:], before[p:], atol=1e-4), f"item {p} does not count"


def test_later_items_have_no_gradient_from_an_earlier_cut():
    """The same for training: no derivative by what follows, padding or any other row of the batch."""
    config = config_of("odd")
    encoder = net_of(config).encoder
    rows, mask = histories(config, [23, 12])
    rows.requires_grad_(True)
    encoder.cuts(rows, mask, 7)[1, 2].pow(3).sum().backward()
    reached = rows.grad.abs().amax(dim=-1) > 0
    assert not reached[0].any(), "another row"
    assert reached[1].tolist() == [False] * 11 + [True] * 8 + [False] * 4, "its own 8 items up to the cut, no padding"


def test_queries_reach_neither_items_nor_other_cuts():
    """Gradients of one cut's queries: own cut alone, earlier queries of it alone."""
    config = config_of("odd", layers=3)
    encoder = net_of(config).encoder
    rows, mask = histories(config, [23])
    n_cuts, n_queries = 4, config.interests
    own = encoder.queries.detach().expand(1, n_cuts, n_queries, config.width).clone().requires_grad_(True)

    class Given:  # stands for the parameter, so that each cut's queries have gradients of their own
        def expand(self, *shape):
            assert shape == tuple(own.shape)
            return own

    del encoder.queries
    encoder.queries = Given()
    found = encoder.cuts(rows, mask, n_cuts)
    for p in range(n_cuts):
        for j in range(n_queries):
            (gradient,) = torch.autograd.grad(found[0, p, j].pow(3).sum(), own, retain_graph=True)
            reached = gradient[0].abs().amax(dim=-1) > 0
            expected = torch.zeros(n_cuts, n_queries, dtype=torch.bool)
            expected[p, : j + 1] = True
            assert torch.equal(reached, expected), (p, j)


def test_later_queries_see_earlier_ones_only():
    config = config_of("paper")
    net = net_of(config)
    rows, mask = histories(config, [20, 100])
    answer = net.encoder.cuts(rows, mask, 5)
    net.encoder.queries[1] += 1.0
    changed = net.encoder.cuts(rows, mask, 5)
    assert torch.equal(changed[:, :, 0], answer[:, :, 0])
    assert not torch.allclose(changed[:, :, 1], answer[:, :, 1], atol=1e-3)
    assert not torch.allclose(changed[:, :, 2], answer[:, :, 2], atol=1e-3)


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_cuts_depend_on_no_padding_and_no_company(plan):
    config = config_of(plan)
    encoder = net_of(config).encoder
    rows, mask = histories(config, [config.length, config.latest // 2, 0, config.latest])
    found = encoder.cuts(rows, mask, config.latest)
    other = torch.where(mask[..., None] > 0, rows, 50 * torch.randn_like(rows))
    assert torch.equal(encoder.cuts(other, mask, config.latest), found)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder.cuts(rows[order], mask[order], config.latest), found[order], rtol=0, atol=1e-5)
    for b in range(4):
        alone = encoder.cuts(rows[b : b + 1], mask[b : b + 1], config.latest)
        torch.testing.assert_close(alone, found[b : b + 1], rtol=0, atol=1e-5)


def test_gradients_of_many_cuts_are_the_sum_of_one_target_passes():
    """What training at all cuts learns is what one forward pass per target would learn."""
    config = config_of("odd")
    encoder = net_of(config).encoder.requires_grad_(True)
    rows, mask = histories(config, [23, 9])
    wanted = torch.randn(2, 7, config.interests, config.width)
    (encoder.cuts(rows, mask, 7) * wanted).sum().backward()
    together = {name: weight.grad.clone() for name, weight in encoder.named_parameters()}
    total = {name: torch.zeros_like(gradient) for name, gradient in together.items()}
    for p in range(7):
        shorter = sibling(encoder, latest=p + 1).requires_grad_(True)
        (shorter(rows[:, : 17 + p], mask[:, : 17 + p]) * wanted[:, p]).sum().backward()
        for name, weight in shorter.named_parameters():
            total[name] += weight.grad
    for name, gradient in together.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, total[name], rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_half_precision_keeps_to_the_cuts():
    """Under autocast: near the float32 answer, and still to the bit without what comes later."""
    config = config_of("odd")
    encoder = net_of(config).encoder
    rows, mask = histories(config, [23, 4])
    changed = rows.clone()
    changed[:, -2:] += 3.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, other = encoder.cuts(rows, mask, 7), encoder.cuts(changed, mask, 7)
    assert torch.equal(found[:, :5], other[:, :5])
    assert (found.float() - encoder.cuts(rows, mask, 7)).abs().mean() < 0.02


def test_cuts_stand_behind_raw_items():
    config = config_of("odd")
    encoder = net_of(config).encoder
    for n_cuts in (0, -1, 8):
        with pytest.raises(InputError, match=r"1 … 7"):
            encoder.cuts(*histories(config, [23]), n_cuts)
    with pytest.raises(InputError, match=r"1 … 3"):
        encoder.cuts(*histories(config, [3], 3), 4)
    with pytest.raises(InputError, match="border"):
        encoder.cuts(*histories(config, [8], 8), 1)


def test_kept_windows_answer_as_the_whole_history_does():
    """A server that keeps the windows' tokens and gives the raw items alone, some of them not there yet."""
    config = config_of("odd")
    encoder = net_of(config).encoder
    early = sum(config.windows)
    rows, mask = histories(config, [config.length, config.length - 3, early, 0])
    kept = encoder.compressed(rows[:, :early], mask[:, :early], config.windows)
    for raw in range(1, config.latest + 1):
        upto = early + raw
        expected = one_target(encoder, rows, mask, config.length - upto)
        found = encoder.behind(kept, rows[:, early:upto], mask[:, early:upto])[:, 0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("raw", [0, 8])
def test_raw_items_behind_kept_windows_fit_the_plan(raw):
    config = config_of("odd")
    net = net_of(config)
    with pytest.raises(InputError, match="raw slots"):
        net.encoder.behind(None, torch.zeros(1, raw, net.spec.width("history_rows")), torch.zeros(1, raw))
