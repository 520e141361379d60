"""Reasons on the real tiny model: what is told is what scoring by hand gives, and nothing is left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import InputError
from contract.spec import FeatureSpec
from contract.vocabulary import MASK_VALUE
from edge import (
    Choice,
    DeviceState,
    EdgeSession,
    Effect,
    Explanation,
    FakeClock,
    Feedback,
    InstalledModel,
)
from tests.edge.test_replay import Republish
from tests.edge.tiny_model import SPEC
from tests.edge.tiny_page import page_bytes, row_of

Open = Callable[[str], InstalledModel]
Keep = Mapping[str, slice]
WIFI = DeviceState(network=6, decoder=1, buffered_ms={101: 4000, 103: 9000})
EFFECT_TOLERANCE = 2e-6  # another bucket is another kernel: float32 sums in another order


def started(model: InstalledModel, clock: FakeClock | None = None, **kwargs: Any) -> EdgeSession:
    session = EdgeSession(5, model, clock=clock or FakeClock(), session_id=77, **kwargs)
    assert session.start() == ""
    return session


def watch(session: EdgeSession, n: int) -> list[Choice]:
    """n swipes with feedback of several kinds."""
    choices = []
    for number in range(n):
        choice = session.next(WIFI)
        session.maintain()
        session.feedback(Feedback(choice.video_id, 2_000 + 9_000 * number, {"like": number % 2 == 0}))
        choices.append(choice)
    return choices


def effects_of(effects: tuple[Effect, ...]) -> dict[str, float]:
    return {effect.name: effect.effect for effect in effects}


def blind(cdn: Path, keep: Keep) -> InstalledModel:
    """kir-a that reads nothing but the columns to keep of each block: its other first weights are zero."""
    from ai_edge_litert import schema_py_generated as schema

    republish = Republish(cdn)
    for graph in republish.manifest.graphs:
        if graph.name in ("page", "watch", "swipe"):
            file = graph.variant().file
            model = schema.ModelT.InitFromPackedBuf((republish.folder / file).read_bytes(), 0)
            _forget(model, {tensor.name for tensor in graph.inputs} - {"query", "candidate_pre", "memory"}, keep)
            republish.file(file, _packed(model))
    return InstalledModel.open_published(cdn)


def _forget(model: Any, blocks: set[str], keep: Keep) -> None:
    graph = model.subgraphs[0]
    for operator in graph.operators:
        block = graph.tensors[operator.inputs[0]].name.decode()
        weights = graph.tensors[operator.inputs[1]] if len(operator.inputs) > 1 else None
        data = None if weights is None else model.buffers[weights.buffer].data
        if block in blocks and data is not None and len(weights.shape) == 2:
            values_OI = np.frombuffer(bytes(data), np.float32).reshape(weights.shape)
            kept_OI = np.zeros_like(values_OI)
            columns = keep.get(block, slice(0))
            kept_OI[:, columns] = values_OI[:, columns]
            model.buffers[weights.buffer].data = np.frombuffer(kept_OI.tobytes(), np.uint8)


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def columns_of(name: str, spec: FeatureSpec = SPEC) -> tuple[str, slice]:
    block = next(field.block for field in spec.fields if field.name == name)
    return block, next(column.slice for column in spec.columns(block) if column.field.name == name)


class TestExplain:
    def test_the_shown_video_is_explained_as_of_its_choice(self, session: EdgeSession) -> None:
        """Also the last one of its page, which has left the pool by then."""
        session.on_page(page_bytes(range(101, 105)))
        for left in (3, 2, 1, 0):
            choice = session.next(WIFI)
            assert len(session.pool) == left
            found = session.explain(choice.video_id)
            assert found.video_id == choice.video_id
            assert found.value == pytest.approx(choice.value, abs=EFFECT_TOLERANCE)
            assert found.explain_us > 0
            session.maintain()
            session.feedback(Feedback(choice.video_id, 4_000, {"like": True}))

    def test_a_candidate_is_explained_as_of_now(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        watch(session, 3)
        ranking = session.ranking(WIFI)
        assert ranking.values is not None
        for video_id, value in zip(ranking.video_ids, ranking.values, strict=True):
            assert session.explain(video_id).value == pytest.approx(value, abs=EFFECT_TOLERANCE)

    def test_every_input_is_told_once_the_largest_first(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        watch(session, 3)
        found = session.explain(session.next(WIFI).video_id)
        features = {field.name: field.group for field in SPEC.fields if field.known != "watch"}
        assert {effect.name: effect.group for effect in found.features} == features
        assert {effect.name for effect in found.groups} == {"user", "video", "server", "device", "watched"}
        for effects in (found.groups, found.features, found.watched):
            sizes = [abs(effect.effect) for effect in effects]
            assert sizes == sorted(sizes, reverse=True)
            assert max(sizes) > 1e-3

    @pytest.mark.parametrize("name", ["video_id", "tags", "pxtr", "server_position"])
    def test_a_candidate_feature_is_set_to_its_pages_mean(self, session: EdgeSession, name: str) -> None:
        """Against the slow way: all candidates with the feature's mean through the session's own bucket."""
        session.on_page(page_bytes(range(101, 109)))
        watch(session, 2)
        choice = session.next(WIFI)
        found = effects_of(session.explain(choice.video_id).features)[name]
        reranker, scored = session._reranker, session.pool.pages[0].scored
        assert reranker is not None
        assert scored is not None
        block, columns = columns_of(name)
        blocks = {key: value.copy() for key, value in scored.features.blocks.items()}
        blocks[block][:, columns] = blocks[block][:, columns].mean(axis=0)
        changed = dataclasses.replace(scored, state=reranker.engine.page(blocks))
        reranker.device(session._last[2] if session._last else 0, WIFI, choice.position, choice.position)
        without_N = reranker.values(reranker.scores(changed, WIFI))
        assert found == pytest.approx(choice.value - without_N[choice.candidate_index], abs=EFFECT_TOLERANCE)

    def test_a_user_row_is_set_to_the_default_row(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109), encoding="float32"))
        choice = session.next(WIFI)
        found = effects_of(session.explain(choice.video_id).features)["user_id"]
        reranker, scored = session._reranker, session.pool.pages[0].scored
        assert reranker is not None
        assert scored is not None
        block, columns = columns_of("user_id")
        user_rows = scored.features.blocks[block].copy()
        user_rows[0, columns] = row_of("kir-a", "user", 0xFFFF_FFFF_FFFF_FFFF, 4)
        changed = dataclasses.replace(scored, state=reranker.engine.page({**scored.features.blocks, block: user_rows}))
        reranker.device(session._last[2] if session._last else 0, WIFI, choice.position, choice.position)
        without_N = reranker.values(reranker.scores(changed, WIFI))
        assert found == pytest.approx(choice.value - without_N[choice.candidate_index], abs=EFFECT_TOLERANCE)

    def test_a_watched_video_is_masked_out(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        watched = watch(session, 3)
        choice = session.next(WIFI)
        found = session.explain(choice.video_id)
        assert {effect.video_id for effect in found.watched} == {shown.video_id for shown in watched}
        told = {effect.video_id: effect.effect for effect in found.watched}
        reranker, scored = session._reranker, session.pool.pages[0].scored
        assert reranker is not None
        assert scored is not None
        for slots, effect in [([2], told[watched[1].video_id]), ([1, 2, 3], effects_of(found.groups)["watched"])]:
            memory = reranker.cache.memory
            memory.memory_mask[0, slots] = MASK_VALUE
            memory.changed()
            without_N = reranker.values(reranker.scores(scored, WIFI))
            memory.memory_mask[0, slots] = 0.0
            memory.changed()
            assert effect == pytest.approx(choice.value - without_N[choice.candidate_index], abs=EFFECT_TOLERANCE)

    def test_what_the_device_did_not_tell_did_nothing(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        silent = effects_of(session.explain(session.next(DeviceState()).video_id).features)
        assert (silent["network"], silent["decoder"]) == (0.0, 0.0)
        assert silent["buffered"] == pytest.approx(0.0, abs=EFFECT_TOLERANCE)
        told = DeviceState(6, 1, dict.fromkeys(range(101, 109), 9_000))
        loud = effects_of(session.explain(session.next(told).video_id).features)
        assert min(abs(loud[name]) for name in ("network", "decoder", "buffered")) > 1e-4

    def test_a_model_that_reads_one_feature_gives_all_to_it(self, cdn: Path) -> None:
        block, columns = columns_of("pxtr")
        session = started(blind(cdn, {block: columns}))
        session.on_page(page_bytes(range(101, 109)))
        watch(session, 3)
        found = session.explain(session.next(WIFI).video_id)
        assert found.features[0].name == "pxtr"
        assert abs(found.features[0].effect) > 1e-2
        others = [*found.features[1:], *found.watched, *(g for g in found.groups if g.name != "server")]
        assert len(others) > 15
        np.testing.assert_allclose([effect.effect for effect in others], 0.0, atol=EFFECT_TOLERANCE)
        assert effects_of(found.groups)["server"] == pytest.approx(found.features[0].effect, abs=EFFECT_TOLERANCE)
        assert [effect.name for effect in found.top(5) if abs(effect.effect) > EFFECT_TOLERANCE] == ["pxtr"]

    def test_a_feature_that_the_model_does_not_read_did_nothing(self, cdn: Path) -> None:
        block, columns = columns_of("pxtr")  # the last of its block
        every = {name: slice(None) for name in SPEC.blocks} | {"position": slice(None)}
        session = started(blind(cdn, {**every, block: slice(0, columns.start)}))
        session.on_page(page_bytes(range(101, 109)))
        watch(session, 3)
        found = effects_of(session.explain(session.next(WIFI).video_id).features)
        assert found.pop("pxtr") == pytest.approx(0.0, abs=EFFECT_TOLERANCE)
        assert min(abs(found[name]) for name in ("video_id", "author_id", "duration", "user_id")) > 1e-4

    def test_a_model_without_rows(self, published: Open) -> None:
        spec = SPEC.without_served()
        session = started(published("kir-pxtr"))
        session.on_page(page_bytes(range(101, 109), "kir-pxtr", status="not_needed", spec=spec))
        watch(session, 2)
        choice = session.next(WIFI)
        found = session.explain(choice.video_id)
        assert found.value == pytest.approx(choice.value, abs=EFFECT_TOLERANCE)
        assert {e.name for e in found.features} == {f.name for f in spec.fields if f.known != "watch"}
        assert effects_of(found.features)["pxtr"] != 0

    def test_it_leaves_nothing_behind(self, published: Open) -> None:
        asked, silent = started(published("kir-a")), started(published("kir-a"))
        for session in (asked, silent):
            session.on_page(page_bytes(range(101, 109)))
        for _ in range(7):
            choices = []
            for session in (asked, silent):
                choice = session.next(WIFI)
                choices.append(choice)
                if session is asked:
                    session.explain(choice.video_id)
                    session.explain(session.ranking().video_ids[-1])
                session.maintain()
                session.feedback(Feedback(choice.video_id, 5_000, {"like": True}))
            assert choices[0].video_id == choices[1].video_id
            assert choices[0].scores_NT is not None
            np.testing.assert_array_equal(choices[0].scores_NT, choices[1].scores_NT)

    def test_top_picks_groups_and_leaves_out_zeros(self) -> None:
        found = Explanation(
            1,
            0.5,
            features=(Effect("user_id", -0.4, "user"), Effect("pxtr", 0.2, "server"), Effect("tags", 0.0, "video")),
            watched=(Effect("watched", -0.3, "watched", 7),),
        )
        assert [effect.name for effect in found.top(3)] == ["user_id", "watched", "pxtr"]
        assert [effect.name for effect in found.top(5, ("server", "video", "watched"))] == ["watched", "pxtr"]

    def test_videos_that_no_model_scores_are_refused(self, published: Open) -> None:
        no_model, session = EdgeSession(5), started(published("kir-a"))
        no_model.start()
        for made in (no_model, session):
            with pytest.raises(InputError, match="no model scores"):
                made.explain(101)
        no_model.on_page(page_bytes(range(101, 109)))
        session.on_page(page_bytes(range(101, 109), "kir-b"))
        for made in (no_model, session):
            with pytest.raises(InputError, match="no model scores this video; got 101"):
                made.explain(101)

    def test_another_model_does_not_explain_the_last_choice(self, published: Open) -> None:
        session = started(published("kir-a"))
        session.on_page(page_bytes([101]))
        choice = session.next(WIFI)
        session.offer(published("kir-b"))
        assert session.on_page(page_bytes(range(201, 209), "kir-b")).activated == "kir-b"
        with pytest.raises(InputError, match="no model scores"):
            session.explain(choice.video_id)
        assert session.explain(201).value
