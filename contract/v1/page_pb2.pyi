from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RowEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_ENCODING_UNSPECIFIED: _ClassVar[RowEncoding]
    ROW_ENCODING_INT8: _ClassVar[RowEncoding]
    ROW_ENCODING_FLOAT16: _ClassVar[RowEncoding]
    ROW_ENCODING_FLOAT32: _ClassVar[RowEncoding]

class Network(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NETWORK_UNSPECIFIED: _ClassVar[Network]
    NETWORK_OFFLINE: _ClassVar[Network]
    NETWORK_2G: _ClassVar[Network]
    NETWORK_3G: _ClassVar[Network]
    NETWORK_4G: _ClassVar[Network]
    NETWORK_5G: _ClassVar[Network]
    NETWORK_WIFI: _ClassVar[Network]

class RefusalReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_REASON_UNSPECIFIED: _ClassVar[RefusalReason]
    REFUSAL_REASON_BAD_REQUEST: _ClassVar[RefusalReason]
    REFUSAL_REASON_OVERLOADED: _ClassVar[RefusalReason]
    REFUSAL_REASON_NO_CANDIDATES: _ClassVar[RefusalReason]
    REFUSAL_REASON_INTERNAL: _ClassVar[RefusalReason]

class RowsStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROWS_STATUS_UNSPECIFIED: _ClassVar[RowsStatus]
    ROWS_STATUS_OK: _ClassVar[RowsStatus]
    ROWS_STATUS_NO_LIVE_VERSION: _ClassVar[RowsStatus]
    ROWS_STATUS_SPEC_MISMATCH: _ClassVar[RowsStatus]
    ROWS_STATUS_NOT_NEEDED: _ClassVar[RowsStatus]

class RowOwner(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_OWNER_UNSPECIFIED: _ClassVar[RowOwner]
    ROW_OWNER_USER: _ClassVar[RowOwner]
    ROW_OWNER_CANDIDATE: _ClassVar[RowOwner]
    ROW_OWNER_WATCHED: _ClassVar[RowOwner]
ROW_ENCODING_UNSPECIFIED: RowEncoding
ROW_ENCODING_INT8: RowEncoding
ROW_ENCODING_FLOAT16: RowEncoding
ROW_ENCODING_FLOAT32: RowEncoding
NETWORK_UNSPECIFIED: Network
NETWORK_OFFLINE: Network
NETWORK_2G: Network
NETWORK_3G: Network
NETWORK_4G: Network
NETWORK_5G: Network
NETWORK_WIFI: Network
REFUSAL_REASON_UNSPECIFIED: RefusalReason
REFUSAL_REASON_BAD_REQUEST: RefusalReason
REFUSAL_REASON_OVERLOADED: RefusalReason
REFUSAL_REASON_NO_CANDIDATES: RefusalReason
REFUSAL_REASON_INTERNAL: RefusalReason
ROWS_STATUS_UNSPECIFIED: RowsStatus
ROWS_STATUS_OK: RowsStatus
ROWS_STATUS_NO_LIVE_VERSION: RowsStatus
ROWS_STATUS_SPEC_MISMATCH: RowsStatus
ROWS_STATUS_NOT_NEEDED: RowsStatus
ROW_OWNER_UNSPECIFIED: RowOwner
ROW_OWNER_USER: RowOwner
ROW_OWNER_CANDIDATE: RowOwner
ROW_OWNER_WATCHED: RowOwner

class GetPageRequest(_message.Message):
    __slots__ = ("user_id", "session_id", "page_size", "held_models", "watched", "exclude_video_ids", "row_encoding", "network", "client_time_ms")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    HELD_MODELS_FIELD_NUMBER: _ClassVar[int]
    WATCHED_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_VIDEO_IDS_FIELD_NUMBER: _ClassVar[int]
    ROW_ENCODING_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    user_id: int
    session_id: int
    page_size: int
    held_models: _containers.RepeatedCompositeFieldContainer[HeldModel]
    watched: _containers.RepeatedCompositeFieldContainer[WatchedVideo]
    exclude_video_ids: _containers.RepeatedScalarFieldContainer[int]
    row_encoding: RowEncoding
    network: Network
    client_time_ms: int
    def __init__(self, user_id: _Optional[int] = ..., session_id: _Optional[int] = ..., page_size: _Optional[int] = ..., held_models: _Optional[_Iterable[_Union[HeldModel, _Mapping]]] = ..., watched: _Optional[_Iterable[_Union[WatchedVideo, _Mapping]]] = ..., exclude_video_ids: _Optional[_Iterable[int]] = ..., row_encoding: _Optional[_Union[RowEncoding, str]] = ..., network: _Optional[_Union[Network, str]] = ..., client_time_ms: _Optional[int] = ...) -> None: ...

class HeldModel(_message.Message):
    __slots__ = ("dense_version", "spec_fingerprint")
    DENSE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    dense_version: str
    spec_fingerprint: str
    def __init__(self, dense_version: _Optional[str] = ..., spec_fingerprint: _Optional[str] = ...) -> None: ...

class WatchedVideo(_message.Message):
    __slots__ = ("video_id", "play_time_ms", "like", "long_view", "shown_at_ms")
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    PLAY_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    LIKE_FIELD_NUMBER: _ClassVar[int]
    LONG_VIEW_FIELD_NUMBER: _ClassVar[int]
    SHOWN_AT_MS_FIELD_NUMBER: _ClassVar[int]
    video_id: int
    play_time_ms: int
    like: bool
    long_view: bool
    shown_at_ms: int
    def __init__(self, video_id: _Optional[int] = ..., play_time_ms: _Optional[int] = ..., like: _Optional[bool] = ..., long_view: _Optional[bool] = ..., shown_at_ms: _Optional[int] = ...) -> None: ...

class GetPageResponse(_message.Message):
    __slots__ = ("page", "refusal")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    page: Page
    refusal: PageRefusal
    def __init__(self, page: _Optional[_Union[Page, _Mapping]] = ..., refusal: _Optional[_Union[PageRefusal, _Mapping]] = ...) -> None: ...

class PageRefusal(_message.Message):
    __slots__ = ("reason", "message", "retry_after_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: RefusalReason
    message: str
    retry_after_ms: int
    def __init__(self, reason: _Optional[_Union[RefusalReason, str]] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Page(_message.Message):
    __slots__ = ("page_id", "server_time_ms", "soft_ttl_ms", "hard_ttl_ms", "dense_version", "rows_revision", "spec_fingerprint", "rows_status", "fetch_version", "retrieval_version", "ranker_version", "candidates", "user", "row_tables", "row_indexes")
    PAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    SOFT_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    HARD_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    DENSE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_REVISION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ROWS_STATUS_FIELD_NUMBER: _ClassVar[int]
    FETCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RANKER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ROW_TABLES_FIELD_NUMBER: _ClassVar[int]
    ROW_INDEXES_FIELD_NUMBER: _ClassVar[int]
    page_id: str
    server_time_ms: int
    soft_ttl_ms: int
    hard_ttl_ms: int
    dense_version: str
    rows_revision: int
    spec_fingerprint: str
    rows_status: RowsStatus
    fetch_version: str
    retrieval_version: str
    ranker_version: str
    candidates: CandidateColumns
    user: UserColumns
    row_tables: _containers.RepeatedCompositeFieldContainer[RowTable]
    row_indexes: _containers.RepeatedCompositeFieldContainer[RowIndex]
    def __init__(self, page_id: _Optional[str] = ..., server_time_ms: _Optional[int] = ..., soft_ttl_ms: _Optional[int] = ..., hard_ttl_ms: _Optional[int] = ..., dense_version: _Optional[str] = ..., rows_revision: _Optional[int] = ..., spec_fingerprint: _Optional[str] = ..., rows_status: _Optional[_Union[RowsStatus, str]] = ..., fetch_version: _Optional[str] = ..., retrieval_version: _Optional[str] = ..., ranker_version: _Optional[str] = ..., candidates: _Optional[_Union[CandidateColumns, _Mapping]] = ..., user: _Optional[_Union[UserColumns, _Mapping]] = ..., row_tables: _Optional[_Iterable[_Union[RowTable, _Mapping]]] = ..., row_indexes: _Optional[_Iterable[_Union[RowIndex, _Mapping]]] = ...) -> None: ...

class CandidateColumns(_message.Message):
    __slots__ = ("video_ids", "author_ids", "duration_ms", "upload_age_days", "tag_counts", "tags", "pxtr_heads", "pxtr", "pxtr_present")
    VIDEO_IDS_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_IDS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_AGE_DAYS_FIELD_NUMBER: _ClassVar[int]
    TAG_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PXTR_HEADS_FIELD_NUMBER: _ClassVar[int]
    PXTR_FIELD_NUMBER: _ClassVar[int]
    PXTR_PRESENT_FIELD_NUMBER: _ClassVar[int]
    video_ids: _containers.RepeatedScalarFieldContainer[int]
    author_ids: _containers.RepeatedScalarFieldContainer[int]
    duration_ms: _containers.RepeatedScalarFieldContainer[int]
    upload_age_days: _containers.RepeatedScalarFieldContainer[int]
    tag_counts: _containers.RepeatedScalarFieldContainer[int]
    tags: _containers.RepeatedScalarFieldContainer[int]
    pxtr_heads: _containers.RepeatedScalarFieldContainer[str]
    pxtr: bytes
    pxtr_present: bytes
    def __init__(self, video_ids: _Optional[_Iterable[int]] = ..., author_ids: _Optional[_Iterable[int]] = ..., duration_ms: _Optional[_Iterable[int]] = ..., upload_age_days: _Optional[_Iterable[int]] = ..., tag_counts: _Optional[_Iterable[int]] = ..., tags: _Optional[_Iterable[int]] = ..., pxtr_heads: _Optional[_Iterable[str]] = ..., pxtr: _Optional[bytes] = ..., pxtr_present: _Optional[bytes] = ...) -> None: ...

class UserColumns(_message.Message):
    __slots__ = ("activity", "register_days", "hour", "profile")
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    REGISTER_DAYS_FIELD_NUMBER: _ClassVar[int]
    HOUR_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    activity: int
    register_days: int
    hour: int
    profile: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, activity: _Optional[int] = ..., register_days: _Optional[int] = ..., hour: _Optional[int] = ..., profile: _Optional[_Iterable[float]] = ...) -> None: ...

class RowTable(_message.Message):
    __slots__ = ("name", "width", "encoding", "values", "scales")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    name: str
    width: int
    encoding: RowEncoding
    values: bytes
    scales: bytes
    def __init__(self, name: _Optional[str] = ..., width: _Optional[int] = ..., encoding: _Optional[_Union[RowEncoding, str]] = ..., values: _Optional[bytes] = ..., scales: _Optional[bytes] = ...) -> None: ...

class RowIndex(_message.Message):
    __slots__ = ("owner", "feature", "table", "rows", "counts")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    owner: RowOwner
    feature: str
    table: str
    rows: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, owner: _Optional[_Union[RowOwner, str]] = ..., feature: _Optional[str] = ..., table: _Optional[str] = ..., rows: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...
