"""Golden cases: tensors per graph, and one session that any edge in any language can replay.

The session's scores are those of the shipped files, worked out anew at every swipe from what the contract says (no
cache, no edge code), with rows as a server encodes them and a phone decodes them; so another edge has to agree within
what CPUs differ by. How far the shipped files stray from the float whole net stands in the manifest beside it.
`contract.golden` says what happens at a step.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.beam import BeamPlan, ListReward, beam_search
from contract.events import Events
from contract.features import block_keys, pool_rows
from contract.golden import Ahead, FeedbackStep, GoldenSession, PageStep, Step, SwipeStep, fused_values
from contract.history import HistoryIndex
from contract.page import CANDIDATE, ROWS_OK, USER, Candidates, Page, Rows, encode_page, parse_page
from contract.rows import encode_rows
from contract.spec import FeatureSpec
from contract.user_profile import profiles_at
from contract.vocabulary import DECODERS, MISSING_KEY, NETWORKS, SIGNALS
from contract.watched import WatchedList
from convert.chain import Layout
from convert.phone import Sample, whole_inputs
from convert.source import KirSource

Floats = NDArray[np.float32]
Score = Callable[[Sample], Floats]
Place = Callable[[Sample, Sequence[int]], Floats]  # scores [N, T] after a list of candidates
_OWNERS = {"user_rows": USER, "candidate_rows": CANDIDATE}
SPARE = 2  # candidates left over when the next page comes
PAST_EVICTION = 4  # swipes after the one that fills the list
SEARCH_EVERY = 5
STEADY = 1e-3  # noise on scores that must not turn a search that is told: other processors add up in other orders


def tensor_case(feeds: Mapping[str, Floats], shipped: Mapping[str, Floats], floats: Mapping[str, Floats]) -> bytes:
    """.npz: inputs and the shipped variant's outputs by tensor name; the float file's as "float32.<name>"."""
    arrays = {**feeds, **shipped, **{f"float32.{name}": value for name, value in floats.items()}}
    file = io.BytesIO()
    np.savez_compressed(
        file, allow_pickle=False, **{name: np.ascontiguousarray(value) for name, value in arrays.items()}
    )
    return file.getvalue()


def page_rows(source: KirSource, columns: Mapping[str, Mapping[str, NDArray[Any]]]) -> Rows:
    """De-duplicated rows of user and candidates, as a server sends them. columns: owner -> raw columns."""
    spec, taken, slots, table_of = source.spec, {}, {}, {}
    for block, owner in _OWNERS.items():
        for name, keys in block_keys(spec, block, columns[owner]).items():
            table = next(c.field.table for c in spec.columns(block) if c.field.name == name)
            slots[owner, name] = source.tables.slots(table, keys)
            table_of[owner, name] = table
    all_rows = source.tables.numpy_rows()
    tables = {}
    for table in spec.tables:
        mine = [slots[key] for key, name in table_of.items() if name == table]
        used = np.unique(np.concatenate([np.zeros(1, np.int64), *(s[s >= 0] for s in mine)]))
        taken[table] = used
        tables[table] = encode_rows(all_rows[table][used])
    compact = {}
    for key, found in slots.items():
        place = np.searchsorted(taken[table_of[key]], np.maximum(found, 0))
        compact[key] = np.maximum(place, 0) if found.shape[1] == 1 else np.where(found >= 0, place, -1)
    return Rows(tables, compact, table_of)


def make_page(
    source: KirSource, log: Events, at: NDArray[np.int64], user_event: int, page_id: str, now_ms: int
) -> bytes:
    """Bytes of a page whose candidates are the events `at`, for the user of event `user_event`."""
    candidates = Candidates(
        **{name: log[name][at] for name in ("video_id", "author_id", "tags", "duration_ms", "upload_age_days", "pxtr")}
    )
    one = slice(user_event, user_event + 1)
    index = HistoryIndex.from_events(log, every=True)
    profile = profiles_at(index, log["user_id"][one], np.array([now_ms]), np.array([len(log)]))
    columns = {USER: {"user_id": log["user_id"][one], **profile}, CANDIDATE: vars(candidates)}
    page = Page(
        page_id=page_id,
        candidates=candidates,
        server_time_ms=now_ms,
        dense_version=source.dense_version,
        rows_revision=source.rows_revision,
        spec_fingerprint=source.spec.fingerprint,
        rows_status=ROWS_OK if source.spec.tables else "not_needed",
        user_activity=int(log["user_activity"][user_event]),
        user_register_days=int(log["user_register_days"][user_event]),
        hour=int(log["hour"][user_event]),
        user_profile=profile["user_profile"][0],
        rows=page_rows(source, columns),
    )
    return encode_page(page).SerializeToString(deterministic=True)


class SessionFacts(Protocol):
    """What a session needs to know of a model: a checkpoint's (`KirSource`), or a conversion's."""

    @property
    def spec(self) -> FeatureSpec: ...
    @property
    def capacities(self) -> Mapping[str, Any]: ...
    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def list_reward(self) -> ListReward | None: ...
    @property
    def fusion_weights(self) -> NDArray[np.float32]: ...
    @property
    def layout(self) -> Layout: ...


class SessionReference:
    """The phone of a golden session without any cache: one page, one watched list, everything anew at each swipe."""

    def __init__(self, source: SessionFacts, score: Score, place: Place | None = None):
        self.source, self.score, self.place = source, score, place
        self.watched = WatchedList(int(source.capacities["L"]))
        self.rows: list[Floats] = []
        self.numbers: dict[int, int] = {}
        self.samples: list[Sample] = []

    def open_page(self, raw: bytes) -> None:
        self.page = parse_page(raw)
        self.decoded = self.page.rows.decoded()
        self.left = list(range(len(self.page.candidates)))
        if not self.rows and self.source.spec.width("watched_rows"):
            self.rows = [self._watched_row(None)]

    def _served(self, block: str, n: int) -> Floats:
        spec = self.source.spec
        slots = {c.field.name: self.page.rows.slots[_OWNERS[block], c.field.name] for c in spec.columns(block)}
        return pool_rows(spec, block, self.decoded, slots, np.zeros((n, spec.width(block)), np.float32))

    def _watched_row(self, index: int | None) -> Floats:
        """Row of a candidate as a watched video: the same feature of the same table. None: the start token's."""
        spec = self.source.spec
        twin = {(c.field.feature, c.field.table): c.field.name for c in spec.columns("candidate_rows")}
        slots = {}
        for column in spec.columns("watched_rows"):
            field = column.field
            key = CANDIDATE, twin.get((field.feature, field.table), "")
            known = index is not None and key in self.page.rows.slots
            slots[field.name] = self.page.rows.slots[key][index : index + 1] if known else np.full((1, 1), -1)  # type: ignore[operator]
        out = np.zeros((1, spec.width("watched_rows")), np.float32)
        return pool_rows(spec, "watched_rows", self.decoded, slots, out)[0]

    def swipe(self, at_ms: int, network: int, decoder: int, number: int, buffered_ms: NDArray[np.int32]) -> SwipeStep:
        """buffered_ms: int32 of every candidate of the page. Chooses, then evicts."""
        page, spec = self.page, self.source.spec
        n = len(page.candidates)
        rows = {
            block: self._served(block, m) for block, m in (("user_rows", 1), ("candidate_rows", n)) if spec.width(block)
        }
        if self.rows:
            rows["watched_rows"] = np.stack(self.rows)
        now = {"network": network, "decoder": decoder, "swipe_index": number}
        user = ("user_activity", "user_register_days", "hour")
        sample = whole_inputs(
            spec,
            self.source.capacities,
            user={**{name: np.array([getattr(page, name)]) for name in user}, "user_profile": page.user_profile[None]},
            candidates={**vars(page.candidates), "server_position": page.server_position, "buffered_ms": buffered_ms},
            swipe={name: np.array([value]) for name, value in now.items()},
            watched=self.watched,
            rows=rows,
            now_ms=at_ms,
            number=number,
        )
        self.samples.append(sample)
        scores_NT = self.score(sample)[0][self.left]
        values = fused_values(scores_NT, self.source.fusion_weights)
        best = int(np.argmax(values))
        ids = [int(page.candidates.video_id[i]) for i in self.left]
        step = SwipeStep(
            at_ms=at_ms,
            network=network,
            decoder=decoder,
            swipe_index=number,
            video_ids=ids,
            buffered_ms=[int(buffered_ms[i]) for i in self.left],
            scores=[[float(x) for x in row] for row in scores_NT],
            values=[float(x) for x in values],
            choice=ids[best],
            ahead=self._ahead(sample, scores_NT) if number % SEARCH_EVERY == SEARCH_EVERY - 1 else None,
        )
        self.numbers[step.choice] = number
        del self.left[best]
        dropped = self.watched.evict_if_full().dropped
        del self.rows[1 : 1 + dropped]
        return step

    def _ahead(self, sample: Sample, scores_mT: Floats) -> Ahead | None:
        """The deepest search over what is left; None without a place graph, or when a little noise would turn it."""
        reward, layout = self.source.list_reward, self.source.layout
        if self.place is None or reward is None or not layout.P:
            return None
        plan = BeamPlan(layout.k, layout.P + 1, stability=1.0)
        rng = np.random.default_rng([sample.n_watched, 0x61])

        def expand(lists: Sequence[tuple[int, ...]], noise: float) -> tuple[Floats, Floats]:
            scores = [self._after(sample, items, scores_mT) for items in lists]
            noisy = np.stack(scores) + rng.uniform(-noise, noise, (len(lists), *scores_mT.shape)).astype(np.float32)
            return reward.places(noisy, self.source.tasks)

        m = len(scores_mT)
        found = beam_search(lambda lists: expand(lists, 0.0), m, plan)
        again = [beam_search(lambda lists: expand(lists, STEADY), m, plan).items for _ in range(3)]
        if any(items != found.items for items in again):
            return None
        ids = [int(self.page.candidates.video_id[self.left[item]]) for item in found.items]
        return Ahead(plan.beams, plan.depth, plan.stability, ids, found.reward)

    def _after(self, sample: Sample, items: tuple[int, ...], scores_mT: Floats) -> Floats:
        """Scores [m, T] of what is left, given the list `items` of it."""
        if not items or self.place is None:
            return scores_mT
        return self.place(sample, [self.left[item] for item in items])[self.left]

    def feedback(self, step: FeedbackStep) -> None:
        c = self.page.candidates
        index = int(np.flatnonzero(c.video_id == np.uint64(step.video_id))[0])
        item = {name: getattr(c, name)[index] for name in ("video_id", "author_id", "tags", "duration_ms", "pxtr")}
        signals = [step.signals.get(name, -1) for name in SIGNALS]
        times = {"play_time_ms": step.play_time_ms, "shown_at_ms": step.shown_at_ms}
        self.watched.append({**item, "signals": signals, **times, "number": self.numbers[step.video_id]})
        if self.rows:
            self.rows.append(self._watched_row(index))


def make_session(
    source: KirSource, log: Events, score: Score, place: Place | None = None, seed: int = 0
) -> tuple[GoldenSession, list[Sample]]:
    """A session of at least two pages that goes past one eviction, and its swipes as samples.

    log: where candidates and the user come from. score: whole-net inputs of a swipe -> scores [1, N, T]; place: with
    it, every SEARCH_EVERY-th swipe tells a search as well.
    """
    rng = np.random.default_rng([seed, 0x60])
    L, N = int(source.capacities["L"]), max(source.capacities["N"])
    log = log.take(np.flatnonzero(log["video_id"] != MISSING_KEY))
    videos = np.unique(log["video_id"], return_index=True)[1]
    n = min(N, len(videos))
    user_event = int(rng.integers(len(log)))
    reference, steps = SessionReference(source, score, place), list[Step]()
    now, number, seen = max(int(log["time_ms"].max()), 0) + 1000, 0, np.zeros(0, np.int64)
    while number < L + 1 + PAST_EVICTION or len([s for s in steps if isinstance(s, PageStep)]) < 2:
        fresh = np.setdiff1d(videos, seen)
        at = rng.permutation(fresh if len(fresh) >= n else videos)[:n]
        seen = np.union1d(seen, at)
        raw = make_page(source, log, at, user_event, f"golden-{len(steps)}", now)
        steps.append(PageStep(now, raw))
        reference.open_page(raw)
        for _ in range(max(n - SPARE, 1)):
            buffered = rng.integers(-1, 12_000, n, dtype=np.int32)
            now += 700
            network, decoder = int(rng.integers(len(NETWORKS))), int(rng.integers(len(DECODERS)))
            swipe = reference.swipe(now, network, decoder, number, buffered)
            feedback = _feedback(swipe.choice, now, rng)
            reference.feedback(feedback)
            steps += [swipe, feedback]
            now, number = feedback.at_ms, number + 1
            if number > L + PAST_EVICTION + n:
                break
    session = GoldenSession(source.dense_version, source.rows_revision, int(log["user_id"][user_event]), tuple(steps))
    return session, reference.samples


def _feedback(video_id: int, shown_at_ms: int, rng: np.random.Generator) -> FeedbackStep:
    """Play time and some signals; some are left out, one in eight plays is not observed."""
    play = -1 if rng.random() < 0.125 else int(rng.integers(500, 40_000))
    signals = {name: int(rng.random() < 0.3) for name in SIGNALS if rng.random() < 0.8}
    return FeedbackStep(shown_at_ms + max(play, 0) + 200, video_id, shown_at_ms, play, signals)
