from contract.v1 import page_pb2 as _page_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetRowsRequest(_message.Message):
    __slots__ = ("dense_version", "table", "keys", "encoding")
    DENSE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    dense_version: str
    table: str
    keys: _containers.RepeatedScalarFieldContainer[int]
    encoding: _page_pb2.RowEncoding
    def __init__(self, dense_version: _Optional[str] = ..., table: _Optional[str] = ..., keys: _Optional[_Iterable[int]] = ..., encoding: _Optional[_Union[_page_pb2.RowEncoding, str]] = ...) -> None: ...

class GetRowsResponse(_message.Message):
    __slots__ = ("rows_revision", "table", "rows", "missing")
    ROWS_REVISION_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    rows_revision: int
    table: _page_pb2.RowTable
    rows: _containers.RepeatedScalarFieldContainer[int]
    missing: int
    def __init__(self, rows_revision: _Optional[int] = ..., table: _Optional[_Union[_page_pb2.RowTable, _Mapping]] = ..., rows: _Optional[_Iterable[int]] = ..., missing: _Optional[int] = ...) -> None: ...

class UpdateRowsRequest(_message.Message):
    __slots__ = ("dense_version", "table", "keys", "width", "values")
    DENSE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    dense_version: str
    table: str
    keys: _containers.RepeatedScalarFieldContainer[int]
    width: int
    values: bytes
    def __init__(self, dense_version: _Optional[str] = ..., table: _Optional[str] = ..., keys: _Optional[_Iterable[int]] = ..., width: _Optional[int] = ..., values: _Optional[bytes] = ...) -> None: ...

class UpdateRowsResponse(_message.Message):
    __slots__ = ("rows_revision",)
    ROWS_REVISION_FIELD_NUMBER: _ClassVar[int]
    rows_revision: int
    def __init__(self, rows_revision: _Optional[int] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[LiveVersion]
    def __init__(self, versions: _Optional[_Iterable[_Union[LiveVersion, _Mapping]]] = ...) -> None: ...

class LiveVersion(_message.Message):
    __slots__ = ("dense_version", "spec_fingerprint", "rows_revision", "current")
    DENSE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ROWS_REVISION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    dense_version: str
    spec_fingerprint: str
    rows_revision: int
    current: bool
    def __init__(self, dense_version: _Optional[str] = ..., spec_fingerprint: _Optional[str] = ..., rows_revision: _Optional[int] = ..., current: _Optional[bool] = ...) -> None: ...
