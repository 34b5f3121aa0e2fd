"""The second port: where large files lie and are uploaded to, behind signed URLs that expire."""

import hashlib
import hmac
import re
from urllib.parse import urlencode

from hub_server.connection import Connection
from hub_server.content import Blob

_SECRET = b"the storage's own"


def signed(base: str, path: str, expires: int) -> str:
    query = urlencode({"Expires": expires, "Signature": _signature(path, expires)})
    return f"{base}{path}?{query}&Key-Pair-Id=TESTS"


def _signature(path: str, expires: int) -> str:
    return hmac.new(_SECRET, f"{path} {expires}".encode(), "sha256").hexdigest()


class Storage(Connection):
    """It never asks for a token, and must never get one; the log has it if one came."""

    name = "storage"

    def answer(self) -> None:
        if (why := self._refusal()) is not None:
            return self._denied(why)
        if self.command == "PUT":
            return self._put(self.where.rpartition("/")[2])
        return self.blob()

    def blob(self) -> None:
        oid = self.where.rpartition("/")[2]
        if self.command not in {"GET", "HEAD"} or oid not in self.hub.lfs:
            return self._denied("Access Denied")
        # A CDN that may compress gives the whole; it does so for many ranges, too.
        return self.ranged(self.hub.lfs_blob(oid), whole=self._may_compress())

    def _refusal(self) -> str | None:
        """Why a URL is not taken: its signature, then its time."""
        expires = self.query.get("Expires", ["0"])[0]
        given = self.query.get("Signature", [""])[0]
        if not expires.isdigit() or given != _signature(self.where, int(expires)):
            return "Access Denied"
        laid = self.fault is not None and self.fault.action == "expire"
        return "Request has expired" if laid or self.hub.clock() >= int(expires) else None

    def _denied(self, why: str) -> None:
        body = f"<Error><Code>AccessDenied</Code><Message>{why}</Message></Error>"
        self.send(403, body.encode(), [("Content-Type", "application/xml")])

    def _may_compress(self) -> bool:
        if not self.hub.gzip_ignores_range:
            return False
        allowed = self.headers.get("Accept-Encoding", "").lower()
        return re.search(r"(gzip|br|\*)(?!\s*;\s*q=0(\.0*)?\s*(,|$))", allowed) is not None

    def _put(self, oid: str) -> None:
        # Hashing the body is the client's proof; S3 does as much with its checksums.
        blob = Blob("upload.bin", self.stored)
        if blob.sha256 != oid:
            return self.error(400, "content is not what was announced")
        self.hub.keep(oid, self.stored)
        return self.send(200, b"", [("ETag", f'"{hashlib.md5(oid.encode()).hexdigest()}"')])
