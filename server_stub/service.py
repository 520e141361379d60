"""The gRPC side: PageService, FeedbackService, EmbeddingService, health and reflection on one grpc.aio server.

Pages and feedback are registered on raw bytes, so that garbage gets a refusal and not a framework's error.
Status codes: INVALID_ARGUMENT (mend the request), NOT_FOUND (no such version or table), RESOURCE_EXHAUSTED (try later),
PERMISSION_DENIED (updates from afar), INTERNAL (a bug; the log has it).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from contract.errors import InputError, PageError
from contract.page import ENCODINGS
from contract.rows import INT8, encode_rows
from contract.v1 import embedding_pb2 as pb
from contract.v1 import embedding_pb2_grpc, feedback_pb2, page_pb2
from server_stub.doors import Doors, Overloaded
from server_stub.store import EmbeddingStore

KEYS_MAX = 100_000
PAGE, FEEDBACK, EMBEDDING = "kir.v1.PageService", "kir.v1.FeedbackService", "kir.v1.EmbeddingService"
SERVICES = (PAGE, FEEDBACK, EMBEDDING)
_FILES = (page_pb2, feedback_pb2, pb)  # reflection finds their descriptors in the default pool
_ENCODING_NAMES = {value: name for name, value in ENCODINGS.items()}
log = logging.getLogger(__name__)

Raw = Callable[[bytes], Awaitable[bytes]]


def raw_handler(service: str, method: str, door: Raw) -> grpc.GenericRpcHandler:
    """A unary method on raw bytes; what the door raises becomes a status code."""

    async def handle(data: bytes, context: Any) -> bytes:
        try:
            return await door(data)
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Overloaded:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much at once; try again later")
        except Exception:
            log.exception("%s/%s failed", service, method)
            await context.abort(grpc.StatusCode.INTERNAL, "the server failed; the log has the details")
        raise AssertionError("abort raises")

    return grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(handle)})


class EmbeddingServicer(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Rows by (dense version, table, key). current: tells which version the CDN's pointer names."""

    def __init__(self, store: EmbeddingStore, doors: Doors, current: Callable[[], str], remote_updates: bool = False):
        self._store, self._doors, self._current, self._remote = store, doors, current, remote_updates

    async def GetRows(self, request: pb.GetRowsRequest, context: Any) -> pb.GetRowsResponse:
        return await self._answer(context, self._get, request)

    async def UpdateRows(self, request: pb.UpdateRowsRequest, context: Any) -> pb.UpdateRowsResponse:
        if not self._remote and not _is_local(context.peer()):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, "rows are updated from the server's own machine only"
            )
        return await self._answer(context, self._update, request)

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        current = self._current()
        versions = [
            pb.LiveVersion(
                dense_version=version.dense_version,
                spec_fingerprint=version.spec_fingerprint,
                rows_revision=version.rows_revision,
                current=version.dense_version == current,
            )
            for version in self._store.versions()
        ]
        return pb.ListVersionsResponse(versions=versions)

    async def _answer(self, context: Any, work: Callable[..., Any], request: Any) -> Any:
        try:
            return await self._doors.run(work, request)
        except (InputError, PageError) as error:
            absent = error.what in ("dense version is not live", "no such table", "no live version has this table")
            code = grpc.StatusCode.NOT_FOUND if absent else grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, str(error))
        except Overloaded:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much at once; try again later")
        except Exception:
            log.exception("rows could not be served")
            await context.abort(grpc.StatusCode.INTERNAL, "the server failed; the log has the details")

    def _get(self, request: pb.GetRowsRequest) -> pb.GetRowsResponse:
        keys = _keys(request.keys)
        gathered = self._store.gather(request.dense_version, {request.table: keys})
        rows = gathered.rows[request.table]
        encoded = encode_rows(rows, _ENCODING_NAMES.get(request.encoding, INT8))
        table = page_pb2.RowTable(
            name=request.table,
            width=encoded.width,
            encoding=ENCODINGS[encoded.encoding],
            values=encoded.values,
            scales=encoded.scales,
        )
        slots = np.maximum(gathered.slots[request.table], 0).tolist()
        missing = int((np.asarray(slots) == 0).sum())
        return pb.GetRowsResponse(rows_revision=gathered.rows_revision, table=table, rows=slots, missing=missing)

    def _update(self, request: pb.UpdateRowsRequest) -> pb.UpdateRowsResponse:
        keys, width = _keys(request.keys), request.width
        if len(keys) == 0 or width == 0 or len(request.values) != 4 * len(keys) * width:
            allowed = f"{4 * len(keys) * width} bytes, for at least one key"
            raise InputError("values do not fit keys and width", got=len(request.values), allowed=allowed)
        values = np.frombuffer(request.values, "<f4").reshape(len(keys), width)
        revision = self._store.update(request.dense_version, request.table, keys, values)
        return pb.UpdateRowsResponse(rows_revision=revision)


def _keys(keys: Any) -> np.ndarray[Any, Any]:
    if len(keys) > KEYS_MAX:
        raise InputError("too many keys", got=len(keys), allowed=KEYS_MAX)
    return np.array(keys, np.uint64)


def _is_local(peer: str) -> bool:
    return peer.startswith(("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:"))


class GrpcDoor:
    """One grpc.aio server. Binds in `start`, so that a taken port is a clear error."""

    def __init__(self, doors: Doors, servicer: EmbeddingServicer, message_bytes_max: int):
        options = [
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.so_reuseport", 0),  # two servers on one port would share its calls silently
        ]
        self._server = grpc.aio.server(options=options)
        handlers = (raw_handler(PAGE, "GetPage", doors.page), raw_handler(FEEDBACK, "ReportFeedback", doors.feedback))
        self._server.add_generic_rpc_handlers(handlers)
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(servicer, self._server)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int, tls: tuple[Path, Path] | None) -> int:
        """Bind and serve; the port. Raises InputError when the port is taken or the certificate can't be used."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                bound = self._server.add_insecure_port(address)
            else:
                certificate, key = (path.read_bytes() for path in tls)
                credentials = grpc.ssl_server_credentials([(key, certificate)])
                bound = self._server.add_secure_port(address, credentials)
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError("gRPC can't listen here", where=address, got=str(error)) from None
        if bound == 0:
            raise InputError(
                "gRPC can't listen here", where=address, fix="is the port taken, or the certificate broken?"
            )
        await self._server.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, take no new calls, let those under way finish within the grace."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
