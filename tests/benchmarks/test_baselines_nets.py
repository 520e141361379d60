"""The baselines' nets: held to loops over their papers' equations, blind to padding, order and what comes later."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.baselines.comirec import route, squash, windows
from benchmarks.baselines.sequences import at_cuts, chosen_interest, left_aligned, positions
from benchmarks.baselines.train import make_net
from contract.errors import InputError
from tests.benchmarks.baseline_toys import BY_HAND, shuffled_weights

WIDTH, SLOTS = 6, 10
KINDS = [
    ("sasrec", {"length": SLOTS, "layers": 2, "heads": 2}),
    ("sasrec", {"length": SLOTS + 5, "layers": 1, "heads": 1}),
    ("gru4rec", {"length": SLOTS}),
    ("comirec-sa", {"length": 4, "interests": 3}),
    ("comirec-sa", {"length": SLOTS + 5, "interests": 2}),
    ("comirec-dr", {"length": 4, "interests": 3}),
    ("comirec-dr", {"length": 4, "interests": 2, "transform": "shared"}),
    ("comirec-dr", {"length": SLOTS + 5, "interests": 3}),
]
IDS = [f"{name}-{'-'.join(str(v) for v in settings.values())}" for name, settings in KINDS]


@pytest.fixture(params=KINDS, ids=IDS)
def named_net(request):
    name, settings = request.param
    return name, shuffled_weights(make_net(name, {"width": WIDTH, **settings}))


@pytest.fixture
def net(named_net):
    return named_net[1]


@pytest.fixture
def histories():
    """Item vectors [5, SLOTS, WIDTH] with noise in the padding, and the mask: lengths 10, 7, 3, 1, 0."""
    tokens_BLD = torch.randn(5, SLOTS, WIDTH, generator=torch.Generator().manual_seed(1))
    mask_BL = torch.zeros(5, SLOTS)
    for row, n in enumerate((10, 7, 3, 1, 0)):
        mask_BL[row, SLOTS - n :] = 1
    return tokens_BLD, mask_BL


def real_cuts(mask_BL, n_cuts):
    return mask_BL[:, -n_cuts:] > 0


def test_the_last_cut_is_what_the_papers_equations_give(named_net, histories):
    name, net = named_net
    tokens_BLD, mask_BL = histories
    with torch.no_grad():
        found_BKD = net(tokens_BLD, mask_BL, 1)[:, 0]
    for row in range(4):
        items = tokens_BLD[row][mask_BL[row] > 0].numpy().astype(np.float64)
        np.testing.assert_allclose(found_BKD[row].numpy(), BY_HAND[name](net, items), rtol=2e-4, atol=2e-5)


@torch.no_grad()
def test_every_cut_is_the_history_that_ended_there(named_net, histories):
    """Places count from the segment's end in SASRec, so its cuts are compared at the places that they have there."""
    name, net = named_net
    tokens_BLD, mask_BL = histories
    all_BPKD = net(tokens_BLD, mask_BL, SLOTS)
    for cut in range(SLOTS):
        if name == "sasrec":
            # What stands behind the cut is there, and is noise.
            later = torch.arange(SLOTS) > cut
            noise = torch.where(later[:, None], torch.full_like(tokens_BLD, 7.0), tokens_BLD)
            one_BKD = net(noise, mask_BL, SLOTS)[:, cut]
        else:
            one_BKD = net(tokens_BLD[:, : cut + 1], mask_BL[:, : cut + 1], 1)[:, 0]
        there = mask_BL[:, cut] > 0
        torch.testing.assert_close(all_BPKD[there, cut], one_BKD[there], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_fewer_cuts_are_the_last_of_many(net, histories):
    tokens_BLD, mask_BL = histories
    torch.testing.assert_close(net(tokens_BLD, mask_BL, 3), net(tokens_BLD, mask_BL, SLOTS)[:, -3:])


@torch.no_grad()
def test_no_cut_sees_what_comes_after_it(net, histories):
    tokens_BLD, mask_BL = histories
    before = net(tokens_BLD, mask_BL, SLOTS)
    for slot in range(SLOTS):
        changed = tokens_BLD.clone()
        changed[:, slot] += 1.0
        after = net(changed, mask_BL, SLOTS)
        moved_P = (after - before).abs()[0].amax(dim=(1, 2))
        assert (moved_P[:slot] < 1e-6).all()
        assert moved_P[slot] > 1e-4, "the cut behind the item does see it"


@torch.no_grad()
def test_padding_never_moves_an_answer(net, histories):
    tokens_BLD, mask_BL = histories
    there = real_cuts(mask_BL, SLOTS)
    before = net(tokens_BLD, mask_BL, SLOTS)[there]
    other_noise = torch.where(mask_BL[..., None] > 0, tokens_BLD, tokens_BLD * -3 + 1)
    torch.testing.assert_close(net(other_noise, mask_BL, SLOTS)[there], before)
    cut_away = net(tokens_BLD[2:, -3:], mask_BL[2:, -3:], 3)[real_cuts(mask_BL[2:], 3)]
    torch.testing.assert_close(cut_away, net(tokens_BLD, mask_BL, 3)[2:][real_cuts(mask_BL[2:], 3)])


@torch.no_grad()
def test_rows_do_not_mix(net, histories):
    tokens_BLD, mask_BL = histories
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = net(tokens_BLD[order], mask_BL[order], 4)
    torch.testing.assert_close(turned, net(tokens_BLD, mask_BL, 4)[order])
    torch.testing.assert_close(net(tokens_BLD[1:2], mask_BL[1:2], 4), net(tokens_BLD, mask_BL, 4)[1:2])


def test_every_weight_is_trained_and_nothing_is_nan(net, histories):
    tokens_BLD, mask_BL = histories
    tokens_BLD.requires_grad_()
    out = net(tokens_BLD, mask_BL, SLOTS)
    assert torch.isfinite(out).all(), "an empty history too"
    (out[mask_BL > 0] * torch.randn(out[mask_BL > 0].shape)).sum().backward()
    assert torch.isfinite(tokens_BLD.grad).all()
    assert not tokens_BLD.grad[mask_BL == 0].any()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_is_for_training_alone():
    tokens_BLD, mask_BL = torch.randn(2, 5, WIDTH), torch.ones(2, 5)
    for name, extra in (("sasrec", {}), ("gru4rec", {}), ("comirec-sa", {}), ("comirec-dr", {})):
        net = make_net(name, {"width": WIDTH, "length": 5, "dropout": 0.5, **extra})
        assert not torch.equal(net(tokens_BLD, mask_BL, 5), net(tokens_BLD, mask_BL, 5)), name
        net.eval()
        assert torch.equal(net(tokens_BLD, mask_BL, 5), net(tokens_BLD, mask_BL, 5)), name


def test_settings_are_checked():
    with pytest.raises(InputError, match="multiple of its heads"):
        make_net("sasrec", {"width": 6, "length": 4, "heads": 4})
    with pytest.raises(InputError, match="unknown transform"):
        make_net("comirec-dr", {"width": 6, "length": 4, "transform": "none"})
    with pytest.raises(InputError, match="not settings of gru4rec"):
        make_net("gru4rec", {"width": 6, "length": 4, "interests": 4})
    with pytest.raises(InputError, match="no such baseline"):
        make_net("mind", {"width": 6, "length": 4})


def test_left_alignment_and_its_inverse():
    mask_BL = torch.tensor([[0.0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    x_BLD = torch.arange(12.0).reshape(3, 4, 1)
    left = left_aligned(x_BLD, mask_BL)
    assert left[..., 0].tolist() == [[2, 3, 0, 0], [4, 5, 6, 7], [0, 0, 0, 0]]
    assert positions(mask_BL).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert at_cuts(left, mask_BL, 3)[..., 0].tolist() == [[0, 2, 3], [5, 6, 7], [0, 0, 0]]


def test_windows_hold_the_last_items_before_each_cut():
    mask_BL = torch.tensor([[0.0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    row_BPW, there_BPW = windows(mask_BL, 4, 3)
    seen = [
        [[int(r) for r, t in zip(rows, there, strict=True) if t] for rows, there in zip(*of_row, strict=True)]
        for of_row in zip(row_BPW, there_BPW, strict=True)
    ]
    assert seen == [[[], [2], [2, 3], [2, 3, 4]], [[5, 6], [5, 6, 7], [6, 7, 8], [7, 8, 9]]]
    assert windows(mask_BL, 1, 50)[0].shape == (2, 1, 5), "no longer than the history"


def test_the_interest_nearest_to_the_target_answers():
    users_TKD = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 2.0]]])
    targets_TD = torch.tensor([[1.0, 0.1], [0.5, 1.0]])
    assert chosen_interest(users_TKD, targets_TD).tolist() == [[[1.0, 0.0]], [[0.0, 2.0]]]


def test_capsules_stay_in_the_unit_ball_and_nothing_votes_for_nothing():
    votes_XKWD = torch.randn(2, 3, 5, WIDTH) * 10
    there_XW = torch.tensor([[1.0] * 5, [0.0] * 5])
    capsules_XKD = route(votes_XKWD, there_XW)
    assert (capsules_XKD[0].norm(dim=-1) < 1).all()
    assert not capsules_XKD[1].any()
    # Votes of one mind leave every capsule its share; random ones may leave a capsule without any.
    of_one_mind_XKD = route(torch.full_like(votes_XKWD, 10.0), there_XW)
    assert (of_one_mind_XKD[0].norm(dim=-1) > 0.9).all(), "long sums are squashed to almost one"


def test_the_gradient_runs_through_the_last_round_alone(monkeypatch):
    """With the weights of the last round held as numbers, the same capsules and the same gradient."""
    votes_XKWD = torch.randn(2, 3, 4, WIDTH, requires_grad=True)
    there_XW = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    seen, softmax = [], torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, dim: seen.append(softmax(x, dim=dim)) or seen[-1])
    routed = route(votes_XKWD, there_XW)
    assert len(seen) == 3
    weights_XKW = (seen[-1] * there_XW[:, None]).detach()
    held = squash(torch.einsum("xkw,xkwd->xkd", weights_XKW, votes_XKWD))
    torch.testing.assert_close(routed, held)
    direction = torch.randn(routed.shape)
    (gradient,) = torch.autograd.grad((routed * direction).sum(), votes_XKWD)
    torch.testing.assert_close(gradient, torch.autograd.grad((held * direction).sum(), votes_XKWD)[0])
    assert gradient[1, :, 2:].abs().max() == 0, "nobody is there"
