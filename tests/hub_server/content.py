"""The bytes of a stored file: in memory, or on disk and read by blocks."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

Content = bytes | Path

CHUNK = 1 << 18
ON_DISK_FROM = 8 << 20  # files of a folder from this size on are not read into memory
LFS_FROM = 10 << 20
_LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".gguf", ".pt", ".pth", ".onnx", ".h5")


@dataclass(frozen=True)
class Blob:
    """One version of one file. Its hashes are made once, when first asked for."""

    path: str
    content: Content

    @functools.cached_property
    def size(self) -> int:
        content = self.content
        return content.stat().st_size if isinstance(content, Path) else len(content)

    @functools.cached_property
    def lfs(self) -> bool:
        return is_lfs(self.path, self.size)

    @functools.cached_property
    def sha256(self) -> str:
        if isinstance(self.content, Path):
            return _hash_file(self.content, self.content.stat().st_mtime_ns, self.size)
        return hashlib.sha256(self.content).hexdigest()

    @functools.cached_property
    def pointer(self) -> bytes:
        """What git itself holds of a large file."""
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @functools.cached_property
    def oid(self) -> str:
        """git's name of it: of a large file, that of its pointer."""
        return blob_id(self.pointer if self.lfs else self.whole())

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def whole(self) -> bytes:
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content[start:end]
            return
        with self.content.open("rb") as file:
            file.seek(start)
            while start < end and (data := file.read(min(CHUNK, end - start))):
                start += len(data)
                yield data

    def lfs_fields(self, key: str) -> dict:
        return {key: self.sha256, "size": self.size, "pointerSize": len(self.pointer)}


@functools.lru_cache(maxsize=4096)
def _hash_file(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs(path: str, size: int = 0) -> bool:
    return path.endswith(_LFS_SUFFIXES) or size >= LFS_FROM


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def folder_content(folder: Path) -> dict[str, Content]:
    """A folder's files as they are now; the large ones stay where they lie."""
    return {
        path.relative_to(folder).as_posix(): (
            path if path.stat().st_size >= ON_DISK_FROM else path.read_bytes()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def parameters(blobs: Mapping[str, Blob]) -> dict | None:
    """What the Hub says of a repo's safetensors: parameters by dtype, and in all."""
    found: dict[str, int] = {}
    for path, blob in sorted(blobs.items()):
        if path.endswith(".safetensors"):
            for dtype, count in _counts(blob):
                if not isinstance(dtype, str):
                    return None
                found[dtype] = found.get(dtype, 0) + count
    return {"parameters": found, "total": sum(found.values())} if found else None


def _counts(blob: Blob) -> Iterator[tuple[str, int]]:
    length = int.from_bytes(b"".join(blob.chunks(0, 8)), "little")
    if length > min(blob.size, 100 << 20):
        return
    try:
        header = json.loads(b"".join(blob.chunks(8, 8 + length)))
        yield from (
            (entry["dtype"], prod(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
