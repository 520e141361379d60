"""Kept windows as a scorer: what `Encoder.compressed` and `behind` answer, user by user."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from contract.errors import InputError
from contract.window_plan import WindowPlan
from tests.training.kuaiformer_makers import net_of, split_of_sizes, tables_of
from training.kuaiformer import preset_config
from training.retrieval_eval import KuaiFormerScorer
from training.served_windows import ServedScorer

CONFIG = preset_config(
    "tiny", width=16, hidden=24, video_width=8, attribute_width=4, windows=(8, 8, 4, 4), latest=10, interests=2
)


def test_each_user_s_answer_is_that_of_the_windows_that_stand_by_then():
    sizes = [1, 5, 10, 11, 14, 15, 23, 26, 30, 33, 34, 35, 36, 40, 47, 60, 90]
    split = split_of_sizes(sizes)
    net = net_of(CONFIG).eval()
    tables = tables_of(split, CONFIG.spec()).eval()
    served, whole = ServedScorer(net, tables), KuaiFormerScorer(net, tables)
    user, end = np.arange(len(sizes)), split.index.offsets[1:]
    scores = served.scores(split, user, end), whole.scores(split, user, end)
    interests = served.interests(split, user, end)
    seen = set()
    for row, n in enumerate(sizes):
        tail, stand = served.plan.after_each(n)[-1]
        seen.add(stand)
        slots, mask = served._history.window(split.start(user)[[row]], end[[row]], 34)
        rows, last = tables.rows(CONFIG.spec(), "history_rows", slots), 34 - tail
        old = slice(last - sum(stand), last)
        with torch.no_grad():
            kept = net.encoder.compressed(rows[:, old], mask[:, old], stand) if stand else None
            expected = net.encoder.behind(kept, rows[:, last:], mask[:, last:])[0, 0]
        torch.testing.assert_close(interests[row], expected, rtol=0, atol=1e-5)
        same = not stand or (tail == CONFIG.latest and stand == CONFIG.windows)
        assert np.allclose(scores[0][row], scores[1][row], atol=1e-5) == same
    assert seen == {(), (8, 8, 4), (8, 8, 4, 4)}


@pytest.mark.parametrize(
    ("sizes", "made"),
    [((64, 64, 16, 16, 16, 16, 16), 2.0), ((16, 16), 1.0), ((10, 4, 4), 3.5), ((8, 4, 4), 2.0), ((32, 32), 3.2)],
)
def test_items_made_for_each_new_one(sizes, made):
    """Counted over a long life, of windows that hold anything."""
    plan = WindowPlan(sizes, 20)
    states, before, total, first = plan.after_each(40_000), set(), 0, 0
    for n, (tail, stand) in enumerate(states):
        ends = n - tail - np.append(0, np.cumsum(stand[::-1]))[: len(stand)]
        now = {(end, size) for end, size in zip(ends.tolist(), stand[::-1], strict=True) if end > 0}
        if n > 2_000:
            total += sum(size for _, size in now - before)
        elif now:
            first = n
        before = now
    assert total / (40_000 - first) == pytest.approx(made, rel=0.01)
    assert plan.made_per_item == pytest.approx(made)


def test_the_protocol_s_history_is_the_limit():
    """Items before it are not read, however far the windows would reach."""
    split = split_of_sizes([60, 47])
    net, tables = net_of(CONFIG).eval(), tables_of(split, CONFIG.spec()).eval()
    user, end, short = np.arange(2), split.index.offsets[1:], replace(split, history=20)
    expected = ServedScorer(net, tables).scores(short, user, end)
    old = slice(0, int(end[0]) - 20)
    row_P, columns = split.row_P.copy(), {name: column.copy() for name, column in split.index.columns.items()}
    columns["video_id"][old] = columns["video_id"][old][::-1]
    other = replace(short, row_P=row_P, index=replace(split.index, columns=columns))
    np.testing.assert_array_equal(ServedScorer(net, tables).scores(other, user, end), expected)
    assert not np.allclose(ServedScorer(net, tables).scores(split, user, end), expected)


def test_a_model_without_windows_is_refused():
    config = replace(CONFIG, windows=())
    with pytest.raises(InputError, match="plan of windows"):
        ServedScorer(net_of(config), tables_of(split_of_sizes([3]), config.spec()))
