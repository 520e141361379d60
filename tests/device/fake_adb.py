"""An adb server over a real socket, in this process: answers what a test wants, in adb's own protocol.

It serves the few requests that the driver makes: version, devices, connect, a transport, shell in version 2.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from collections.abc import Callable

GROUP = 4711  # the process group of every script
Reply = tuple[bytes, bytes, int | None]  # standard output, standard error, status; None: the connection breaks first


class FakeAdb:
    """Context manager. devices: serial -> state. shell: script -> Reply; marks are filled in as a device's shell does.

    `port` after entering. scripts: what was run. connected: addresses it was told to connect; refuse: none answers.
    """

    def __init__(self, devices: dict[str, str], shell: Callable[[str], Reply] = lambda script: (b"", b"", 0)):
        self.devices, self.shell, self.scripts = devices, shell, list[str]()
        self.connected, self.refuse = list[str](), False

    def __enter__(self) -> FakeAdb:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):  # a driver that waited long enough hangs up
                    while (request := self.request_text()) is not None and outer.answer(request, self.wfile.write):
                        pass

            def request_text(self) -> str | None:
                head = self.rfile.read(4)
                return self.rfile.read(int(head, 16)).decode() if len(head) == 4 else None

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: str, write: Callable[[bytes], object]) -> bool:
        """One request; whether another may follow on this connection."""
        if request == "host:version":
            write(b"OKAY" + block("0029"))
        elif request == "host:devices":
            write(b"OKAY" + block("".join(f"{serial}\t{state}\n" for serial, state in self.devices.items())))
        elif request.startswith("host:connect:"):
            write(b"OKAY" + block(self._connect(request.removeprefix("host:connect:"))))
        elif request.startswith("host:tport:serial:"):
            return self._transport(request.removeprefix("host:tport:serial:"), write)
        elif request.startswith("shell,v2"):
            self._shell(request.partition(":")[2], write)
        else:
            write(b"FAIL" + block(f"unknown request {request}"))
        return False

    def _connect(self, address: str) -> str:
        self.connected.append(address)
        if self.refuse:
            return f"failed to connect to {address}: Connection refused"
        self.devices[address] = "device"
        return f"connected to {address}"

    def _transport(self, serial: str, write: Callable[[bytes], object]) -> bool:
        state = self.devices.get(serial)
        if state == "device":
            write(b"OKAY" + bytes(8))
        else:
            write(b"FAIL" + block(f"device '{serial}' not found" if state is None else f"device {state}"))
        return state == "device"

    def _shell(self, script: str, write: Callable[[bytes], object]) -> None:
        mark = re.match(r"echo ([0-9a-f]+):", script)
        self.scripts.append(script)
        write(b"OKAY")
        if mark is None:
            return
        name = mark.group(1).encode()
        write(packet(1, name + b":%d\n" % GROUP))
        stdout, stderr, status = self.shell(script)
        write(packet(1, stdout) + packet(2, stderr))
        if status is not None:
            write(packet(1, name + b"=%d\n" % status))
            write(packet(3, b"\0"))


def block(text: str) -> bytes:
    return f"{len(text):04x}{text}".encode()


def packet(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + len(content).to_bytes(4, "little") + content
