"""One connection: reading requests, logging them, and sending answers, spoilt where one is laid."""

import json
import re
import socket
import struct
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from hub_server.content import CHUNK, Blob, Content
from hub_server.faults import INSTEAD, Fault
from hub_server.replies import Reply, spoil

if TYPE_CHECKING:
    from hub_server.server import HubServer

_SPOOL_FROM = 32 << 20  # bodies from this size on go to disk
_SIGNING = {"Expires", "Signature"}


@dataclass
class Request:
    server: str  # "hub", "storage" or "elsewhere"
    method: str
    path: str  # without the query
    query: dict[str, list[str]]
    headers: dict[str, str]  # lower case names
    body: bytes = b""  # empty where it was large
    status: int = 0  # of the answer; 0: none yet, or none at all


class Connection(BaseHTTPRequestHandler):
    """
    Subclasses say what is answered: `answer` leaves a reply, under the server's lock.

    The lock is not held while anything is sent.
    """

    hub: "HubServer"
    name = ""
    protocol_version = "HTTP/1.1"
    # Without these every small answer takes 44 ms (delayed acknowledgement).
    disable_nagle_algorithm = True
    wbufsize = 65536

    def answer(self) -> None:
        raise NotImplementedError

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        self.raw, self.where = parts.path, unquote(parts.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        self.body = body if isinstance(body, bytes) else b""
        self.stored = body
        self.request_line = Request(
            self.name, self.command, self.where, self.query, headers, self.body
        )
        with self.hub.lock:
            self.hub.log.append(self.request_line)
            self.fault = self._choose()
        self.reply: Reply | None = None
        self.extra: dict[str, str] = {}
        if self.fault is not None and self.fault.action in INSTEAD:
            self._instead(self.fault)
        elif self.admitted():
            with self.hub.lock:
                self.answer()
        if self.reply is not None:
            self._deliver(self.reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815 - http.server's names

    def admitted(self) -> bool:
        """False after a refusal that has nothing to do with what is asked."""
        return True

    def send(
        self,
        status: int,
        body: bytes | tuple[Blob, int, int] = b"",
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.reply = Reply(status, list(headers), body)

    def json(
        self, value: object, headers: Iterable[tuple[str, str]] = (), status: int = 200
    ) -> None:
        named = [("Content-Type", "application/json; charset=utf-8"), *headers]
        self.reply = Reply(status, named, value=value, has_value=True)

    def error(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        said = [("X-Error-Message", message)] + ([("X-Error-Code", code)] if code else [])
        self.json({"error": message}, [*headers, *said], status)

    def ranged(
        self, blob: Blob, headers: Iterable[tuple[str, str]] = (), *, whole: bool = False
    ) -> None:
        """The whole of a blob, or the single range that was asked for."""
        headers = [*headers, ("ETag", f'"{blob.etag}"'), ("Accept-Ranges", "bytes")]
        if f'"{blob.etag}"' in self.headers.get("If-None-Match", ""):
            return self.send(304, b"", headers)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        ignored = self.fault is not None and self.fault.action == "range-ignored"
        other = self.headers.get("If-Range", f'"{blob.etag}"') != f'"{blob.etag}"'
        if whole or ignored or other or asked is None or not (asked[1] or asked[2]):
            return self.send(200, (blob, 0, blob.size), headers)
        if asked[1]:
            start, end = int(asked[1]), min(int(asked[2] or blob.size - 1) + 1, blob.size)
        else:
            start, end = max(blob.size - int(asked[2]), 0), blob.size
        if asked[1] and asked[2] and int(asked[2]) < start:
            return self.send(200, (blob, 0, blob.size), headers)  # no range at all, by RFC 9110
        if start >= blob.size:
            return self.send(416, b"", [*headers, ("Content-Range", f"bytes */{blob.size}")])
        shift = 1 if self.fault is not None and self.fault.action == "wrong-range" else 0
        span = f"bytes {start + shift}-{end - 1 + shift}/{blob.size}"
        return self.send(206, (blob, start, end), [*headers, ("Content-Range", span)])

    def body_object(self) -> dict | None:
        """The JSON object that was sent; None after the answer has been given."""
        try:
            asked = json.loads(self.body)
        except ValueError:
            asked = None
        if isinstance(asked, dict):
            return asked
        self.error(400, "the body is not a JSON object")
        return None

    def form(self) -> Mapping[str, list[str]]:
        """Fields of a form, or of JSON, which the Hub takes as well."""
        if "json" in self.headers.get("Content-Type", ""):
            asked = self.body_object() or {}
            return {k: v if isinstance(v, list) else [v] for k, v in asked.items()}
        return parse_qs(self.body.decode())

    def _body(self, headers: Mapping[str, str]) -> Content:
        length = int(headers.get("content-length", 0))
        if headers.get("expect", "").lower() == "100-continue":
            self.wfile.flush()
        if length < _SPOOL_FROM:
            return self.rfile.read(length) if length else self._chunks(headers)
        with tempfile.NamedTemporaryFile(dir=self.hub.spool, delete=False) as file:
            while length and (data := self.rfile.read(min(length, CHUNK))):
                file.write(data)
                length -= len(data)
        return Path(file.name)

    def _chunks(self, headers: Mapping[str, str]) -> bytes:
        """The body of a request with chunked transfer encoding."""
        if headers.get("transfer-encoding") != "chunked":
            return b""
        body = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(body)

    def _choose(self) -> Fault | None:
        for fault in self.hub.faults:
            if fault.takes(self.name, self.command, self.where):
                return fault
        if self.hub.disorder is None or self.name == "elsewhere":
            return None
        query = urlencode(
            sorted((k, v) for k, v in self.query.items() if k not in _SIGNING), doseq=True
        )
        span = self.headers.get("Range", "")
        return self.hub.disorder.choose(self.name, self.command, self.where, query, span)

    def _instead(self, fault: Fault) -> None:
        """Something other than the answer, or nothing."""
        laid = list(fault.headers.items())
        if fault.action == "stall":
            self.hub.closing.wait(self.hub.stall_seconds)
            self.close_connection = True
        elif fault.action == "reset":
            self._reset()
        elif fault.action == "html":
            self.send(200, b"<html>back soon</html>", [("Content-Type", "text/html"), *laid])
        elif fault.action == "json":
            broken = b'{"id": "org/model", "sha": '
            self.send(200, broken, [("Content-Type", "application/json"), *laid])
        elif fault.action == "redirect":
            status = fault.status if 300 <= fault.status < 400 else 302
            self.send(status, b"", [("Location", self.hub.elsewhere_url + self.path), *laid])
        else:
            self.error(fault.status, "laid fault", headers=laid)

    def _deliver(self, reply: Reply) -> None:
        fault, action = self.fault, self.fault.action if self.fault is not None else ""
        if fault is not None and action == "lost":
            self.error(fault.status, "laid fault", headers=fault.headers.items())
            reply = self.reply or reply
        elif fault is not None and action not in INSTEAD:
            spoil(reply, fault)
        reply.settle()
        self.request_line.status = reply.status
        headers = dict(self.extra) | (fault.headers if fault and action not in INSTEAD else {})
        if action == "lost":
            headers = dict(self.extra)
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name, value)
        if reply.status != 304:
            self.send_header("Content-Length", str(reply.length))
        self.end_headers()
        if self.command != "HEAD" and reply.status != 304:
            self._write(reply, action)
        self.wfile.flush()

    def _write(self, reply: Reply, action: str) -> None:
        half = reply.length // 2
        if action in {"truncate", "stall-body", "reset-body"}:
            self._write_first(reply, half)
            self.close_connection = True
            if action == "stall-body":
                self.hub.closing.wait(self.hub.stall_seconds)
            if action == "reset-body":
                time.sleep(0.02)  # a reset overtakes what the other side has not read yet
                self._reset()
            return
        at = 0
        if action == "flip" and self.fault is not None:
            half = min(int(reply.length * self.fault.place), reply.length - 1)
        for block in reply.blocks():
            if action in {"corrupt", "flip"} and at <= half < at + len(block):
                where = half - at
                block = block[:where] + bytes([block[where] ^ 1]) + block[where + 1 :]
            at += len(block)
            if action == "trickle":
                self._trickle(block)
            else:
                self.wfile.write(block)

    def _write_first(self, reply: Reply, count: int) -> None:
        for block in reply.blocks():
            self.wfile.write(block[:count])
            count -= len(block[:count])
            if not count:
                break
        self.wfile.flush()

    def _trickle(self, block: bytes) -> None:
        for at in range(len(block)):
            self.wfile.write(block[at : at + 1])
            self.wfile.flush()
            if self.hub.closing.wait(0.05):
                return

    def _reset(self) -> None:
        """End the connection with a RST instead of a FIN."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        socket.close(self.connection.detach())

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass
