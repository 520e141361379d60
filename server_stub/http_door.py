"""The HTTP side: the same page and feedback bytes over POST, the published model as static files, /healthz.

POST /v1/page, /v1/feedback   application/x-protobuf in and out; a page's outcome is in the message, the status is 200
GET  /current.json            the CDN's pointer, never cached
GET  /metadata/<file>         signed metadata; timestamp.json never cached, the others carry their version
GET  /<sha256>.current.json   the pointer that they name, immutable
GET  /models/<version>/<file> immutable, with Range
GET  /healthz                 JSON: status, versions, counters
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from contract.errors import InputError
from contract.manifest import METADATA_FOLDER, POINTER_NAME, signed_pointer_path
from server_stub.doors import RETRY_AFTER_MS, Doors, Overloaded

PROTOBUF = "application/x-protobuf"
IMMUTABLE = "public, max-age=31536000, immutable"
log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpDoor:
    """One aiohttp site. health: what /healthz says; its "status" other than "serving" answers 503."""

    def __init__(
        self,
        doors: Doors,
        cdn: Path | None,
        health: Callable[[], dict[str, Any]],
        message_bytes_max: int,
        cors_origin: str = "",
    ):
        self._doors = doors
        self._cdn = cdn.resolve() if cdn else None
        self._health = health
        middlewares = [_cors(cors_origin)] if cors_origin else []
        app = web.Application(client_max_size=message_bytes_max, middlewares=middlewares)
        app.router.add_post("/v1/page", self._page)
        app.router.add_post("/v1/feedback", self._feedback)
        if cors_origin:
            app.router.add_route("OPTIONS", "/v1/{call:page|feedback}", _preflight)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get(f"/{POINTER_NAME}", self._pointer)
        app.router.add_get(f"/{signed_pointer_path('{sha256:[0-9a-f]{64}}')}", self._signed_pointer)
        app.router.add_get(f"/{METADATA_FOLDER}/{{file}}", self._metadata)
        app.router.add_get("/models/{path:.+}", self._model)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0)

    async def start(self, host: str, port: int, tls: tuple[Path, Path] | None) -> int:
        """Bind and serve; the port. Raises InputError when the port is taken or the certificate can't be used."""
        await self._runner.setup()
        try:
            context = None
            if tls is not None:
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(*map(str, tls))
            await web.TCPSite(self._runner, host, port, ssl_context=context).start()
        except OSError as error:  # ssl.SSLError is one
            raise InputError("HTTP can't listen here", where=f"{host}:{port}", got=str(error)) from None
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=await self._doors.page(await _body(request)), content_type=PROTOBUF)

    async def _feedback(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        try:
            return web.Response(body=await self._doors.feedback(body), content_type=PROTOBUF)
        except InputError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except Overloaded:
            headers = {"Retry-After": str(-(-RETRY_AFTER_MS // 1000))}
            raise web.HTTPServiceUnavailable(text="too much at once; try again later", headers=headers) from None

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        health = self._health()
        return web.json_response(health, status=200 if health.get("status") == "serving" else 503)

    async def _pointer(self, request: web.Request) -> web.StreamResponse:
        return self._file(POINTER_NAME, {"Cache-Control": "no-cache"})

    async def _signed_pointer(self, request: web.Request) -> web.StreamResponse:
        return self._file(signed_pointer_path(request.match_info["sha256"]), {"Cache-Control": IMMUTABLE})

    async def _metadata(self, request: web.Request) -> web.StreamResponse:
        file = request.match_info["file"]
        caching = IMMUTABLE if file[:1].isdigit() else "no-cache"
        return self._file(f"{METADATA_FOLDER}/{file}", {"Cache-Control": caching})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        return self._file(f"models/{request.match_info['path']}", {"Cache-Control": IMMUTABLE})

    def _file(self, relative: str, headers: dict[str, str]) -> web.StreamResponse:
        """A file below the CDN directory; anything else, links out of it included, does not exist."""
        parts = relative.split("/")
        bad = any(part in ("", "..") or part.startswith(".") or "\\" in part or "\0" in part for part in parts)
        if self._cdn is None or bad:
            raise web.HTTPNotFound
        try:
            path = (self._cdn / relative).resolve(strict=True)
        except (OSError, ValueError):
            raise web.HTTPNotFound from None
        if not path.is_relative_to(self._cdn) or not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path, headers=headers)


async def _body(request: web.Request) -> bytes:
    """The body; 415 for another content type, 413 (from aiohttp) past the size limit."""
    if request.content_type != PROTOBUF:
        raise web.HTTPUnsupportedMediaType(text=f"send {PROTOBUF}")
    return await request.read()


async def _preflight(request: web.Request) -> web.StreamResponse:
    return web.Response(status=204)


def _cors(origin: str) -> Any:
    """A browser page of another origin may call."""
    allowed = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type, Range",
        "Access-Control-Expose-Headers": "Content-Range, Content-Length",
    }

    @web.middleware
    async def add_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(allowed)
            raise
        response.headers.update(allowed)
        return response

    return add_headers
