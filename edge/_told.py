"""A decision as the app, the watched list and the log are told of it, and feedback on its way to the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edge._choice import Decision
from edge._features import watched_item
from edge._history import Applied, Shown
from edge._keeper import Keeper
from edge._pool import PooledPage
from edge._reranker import Reranker, ScoredPage
from edge._types import Choice, DeviceState, Feedback, Outcome
from edge._upload import Event, FeedbackUploader
from edge._wire import Impression, feedback_event


def stages_of(decision: Decision, start_ns: int, settled_ns: int, end_ns: int) -> dict[str, float]:
    """Microseconds per stage of a swipe, as `Choice.stages_us` has them."""
    maintain, features, engine = (settled_ns - start_ns) / 1e3, decision.features_us, decision.engine_us
    total = (end_ns - start_ns) / 1e3
    stages = {"maintain": maintain, "features": features, "engine": engine}
    search_us = 0.0
    if decision.search is not None:
        stages["search"] = search_us = decision.search.search_us
    stages["choice"], stages["total"] = total - maintain - features - engine - search_us, total
    return stages


def choice_of(decision: Decision, position: int, reranker: Reranker | None, stages: Mapping[str, float]) -> Choice:
    """What the app is told, after the candidate left the pool. reranker: of the model at work."""
    page, index = decision.page, decision.index
    by_model = reranker if decision.values_N is not None else None
    # Past `__init__`, which sets each field of a frozen dataclass through `object.__setattr__`, at a tenth of the time.
    choice = object.__new__(Choice)
    choice.__dict__.update(
        video_id=page.video_ids[index],
        page_id=page.page.page_id,
        candidate_index=index,
        chooser=decision.chooser,
        reason=decision.reason,
        position=position,
        considered=decision.considered,
        remaining=tuple(page.remaining),
        scores_NT=decision.scores_NT,
        values_N=decision.values_N,
        dense_version=by_model.dense_version if by_model else "",
        variant=by_model.engine.variant + decision.searched if by_model else "",
        rows_revision=page.page.rows_revision if by_model else 0,
        stages_us=stages,
        search=decision.search,
        relaxed=decision.relaxed,
        value=decision.value,
        best_value=decision.best_value,
    )
    return choice


class Pending(NamedTuple):
    """A choice that was returned and not yet noted. scored: the page's features then, should its model go meanwhile."""

    page: PooledPage
    scored: ScoredPage | None
    choice: Choice
    shown_at_ms: int
    device: DeviceState
    number: int

    def shown(self, user_id: int, session_id: int) -> Shown:
        """The impression, with what it brings into the watched list."""
        page, index = self.page.page, self.choice.candidate_index
        features = None if self.scored is None else self.scored.features
        return Shown(
            Impression(user_id, session_id, self.choice, self.shown_at_ms, self.device),
            watched_item(page, index, self.number, self.device),
            None if features is None else features.watched_rows_nR[index],
            page.dense_version,
            page.rows_revision,
            token_F=None if features is None or features.tokens_nF is None else features.tokens_nF[index],
        )


class Reporter:
    """Feedback to the uploader; where there is a state file, by way of the next `maintain`: saved before it is sent."""

    def __init__(self, uploader: FeedbackUploader | None, keeper: Keeper | None, opted_in: bool):
        self._uploader, self._keeper, self._opted_in = uploader, keeper, opted_in

    def tell(self, applied: Applied, feedback: Feedback, now_ms: int) -> None:
        """Report what was applied; nothing for a video never shown."""
        if applied.shown is None:
            return
        event = self._event(applied, applied.shown, feedback, now_ms) if self._uploader is not None else None
        if self._keeper is not None:
            self._keeper.feedback(applied.shown, event)
        elif event is not None and self._uploader is not None:
            self._uploader.offer(event)

    def _event(self, applied: Applied, shown: Shown, feedback: Feedback, now_ms: int) -> Event:
        told = feedback if applied.outcome is Outcome.STALE else shown.whole(feedback)
        return feedback_event(shown.impression, told, applied.revision, now_ms, self._opted_in)
