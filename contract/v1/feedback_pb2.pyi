from contract.v1 import page_pb2 as _page_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChooserKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHOOSER_KIND_UNSPECIFIED: _ClassVar[ChooserKind]
    CHOOSER_KIND_MODEL: _ClassVar[ChooserKind]
    CHOOSER_KIND_SERVER_ORDER: _ClassVar[ChooserKind]
    CHOOSER_KIND_RANDOM: _ClassVar[ChooserKind]

class Decoder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECODER_UNSPECIFIED: _ClassVar[Decoder]
    DECODER_HARDWARE: _ClassVar[Decoder]
    DECODER_SOFTWARE: _ClassVar[Decoder]
CHOOSER_KIND_UNSPECIFIED: ChooserKind
CHOOSER_KIND_MODEL: ChooserKind
CHOOSER_KIND_SERVER_ORDER: ChooserKind
CHOOSER_KIND_RANDOM: ChooserKind
DECODER_UNSPECIFIED: Decoder
DECODER_HARDWARE: Decoder
DECODER_SOFTWARE: Decoder

class ReportFeedbackRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[FeedbackEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[FeedbackEvent, _Mapping]]] = ...) -> None: ...

class ReportFeedbackResponse(_message.Message):
    __slots__ = ("accepted", "duplicates", "rejected", "reasons")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    duplicates: int
    rejected: int
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, accepted: _Optional[int] = ..., duplicates: _Optional[int] = ..., rejected: _Optional[int] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class FeedbackEvent(_message.Message):
    __slots__ = ("user_id", "session_id", "seq", "revision", "page_id", "candidate_index", "video_id", "time_ms", "known_at_ms", "position", "remaining", "chooser", "dense_version", "variant", "fallback_reason", "propensity", "play_time_ms", "click", "long_view", "like", "follow", "comment", "forward", "hate", "profile_enter", "finish", "profile_stay_ms", "comment_stay_ms", "has_next", "network", "buffered_ms", "volume", "landscape", "rows_revision", "decoder")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_INDEX_FIELD_NUMBER: _ClassVar[int]
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_AT_MS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    CHOOSER_FIELD_NUMBER: _ClassVar[int]
    DENSE_VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_REASON_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    PLAY_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    CLICK_FIELD_NUMBER: _ClassVar[int]
    LONG_VIEW_FIELD_NUMBER: _ClassVar[int]
    LIKE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    HATE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_ENTER_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    PROFILE_STAY_MS_FIELD_NUMBER: _ClassVar[int]
    COMMENT_STAY_MS_FIELD_NUMBER: _ClassVar[int]
    HAS_NEXT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_MS_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    LANDSCAPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_REVISION_FIELD_NUMBER: _ClassVar[int]
    DECODER_FIELD_NUMBER: _ClassVar[int]
    user_id: int
    session_id: int
    seq: int
    revision: int
    page_id: str
    candidate_index: int
    video_id: int
    time_ms: int
    known_at_ms: int
    position: int
    remaining: _containers.RepeatedScalarFieldContainer[int]
    chooser: ChooserKind
    dense_version: str
    variant: str
    fallback_reason: str
    propensity: float
    play_time_ms: int
    click: bool
    long_view: bool
    like: bool
    follow: bool
    comment: bool
    forward: bool
    hate: bool
    profile_enter: bool
    finish: bool
    profile_stay_ms: int
    comment_stay_ms: int
    has_next: bool
    network: _page_pb2.Network
    buffered_ms: int
    volume: float
    landscape: bool
    rows_revision: int
    decoder: Decoder
    def __init__(self, user_id: _Optional[int] = ..., session_id: _Optional[int] = ..., seq: _Optional[int] = ..., revision: _Optional[int] = ..., page_id: _Optional[str] = ..., candidate_index: _Optional[int] = ..., video_id: _Optional[int] = ..., time_ms: _Optional[int] = ..., known_at_ms: _Optional[int] = ..., position: _Optional[int] = ..., remaining: _Optional[_Iterable[int]] = ..., chooser: _Optional[_Union[ChooserKind, str]] = ..., dense_version: _Optional[str] = ..., variant: _Optional[str] = ..., fallback_reason: _Optional[str] = ..., propensity: _Optional[float] = ..., play_time_ms: _Optional[int] = ..., click: _Optional[bool] = ..., long_view: _Optional[bool] = ..., like: _Optional[bool] = ..., follow: _Optional[bool] = ..., comment: _Optional[bool] = ..., forward: _Optional[bool] = ..., hate: _Optional[bool] = ..., profile_enter: _Optional[bool] = ..., finish: _Optional[bool] = ..., profile_stay_ms: _Optional[int] = ..., comment_stay_ms: _Optional[int] = ..., has_next: _Optional[bool] = ..., network: _Optional[_Union[_page_pb2.Network, str]] = ..., buffered_ms: _Optional[int] = ..., volume: _Optional[float] = ..., landscape: _Optional[bool] = ..., rows_revision: _Optional[int] = ..., decoder: _Optional[_Union[Decoder, str]] = ...) -> None: ...
