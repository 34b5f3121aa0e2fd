"""Writes a model folder from an assembly: weights, config, tokenizer, whole or not at all."""

import hashlib
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from kinship_daemon.durable import hash_file, whole_folder
from kinship_daemon.errors import KinshipError
from kinship_daemon.model_files import INDEX, SINGLE
from kinship_daemon.weights.assembly import Assembly, Makeable, Opened, assemble, leaf_assembly
from kinship_daemon.weights.shard import Made, Shard, plan, write_shard
from kinship_daemon.weights.sidecars import sidecars, write_json
from kinship_daemon.weights.tokenizer import tokenizer_files

__all__ = [
    "Assembly",
    "assemble",
    "leaf_assembly",
    "tokenizer_files",
    "write",
]


def write(
    assembly: Makeable,
    out: Path,
    *,
    shard_bytes: int = 5_000_000_000,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    extra: Mapping[str, str] | None = None,
    made: Made | None = None,
    without_tokenizer: bool = False,
) -> dict[str, str]:
    """
    A model folder that transformers loads. It appears under `out` when whole, or not at all.

    The same assembly gives the same bytes. A weight file exceeds `shard_bytes` only where a single
    tensor does. `dtype` is that of all tensors; when None, each keeps the base's. `progress` is
    called with the weight bytes written since its last call. `extra` are text files to add by name.
    `without_tokenizer` allows that there is none.
    `made` is given every tensor as it was written. Shards that an interrupted call with the same
    arguments had finished are kept.

    Returns:
        SHA-256 of every file by name, sorted.

    Raises:
        KinshipError: `out` exists and is not empty, or the disk refuses.
        ModelError: A source cannot be read, the donor has no tokenizer, or a value overflows.
    """
    sources = assembly.open()
    beside = sidecars(assembly, sources, without_tokenizer=without_tokenizer)
    shards = plan(sources, dtype, shard_bytes)
    hashes = {}
    with whole_folder(out, resume=_content(assembly, sources, shards, extra)) as folder:
        missing = [shard for shard in shards if not (folder / shard.file).exists()]
        _check_space(out, sum(shard.nbytes for shard in missing))
        for shard in shards:
            hashes[shard.file] = write_shard(shard, sources, folder, progress=progress, made=made)
        _write_index(shards, folder)
        beside.write(folder, _most_common_dtype(shards))
        for file, text in sorted((extra or {}).items()):
            (folder / file).write_text(text, encoding="utf-8")
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in hashes:
                hashes[path.relative_to(folder).as_posix()] = hash_file(path)
    return dict(sorted(hashes.items()))


def _content(
    assembly: Makeable, sources: Opened, shards: list[Shard], extra: Mapping[str, str] | None
) -> str:
    """Tells apart any two calls of `write` whose files could differ."""
    opened = [(sources.base.path, sources.base.files)]
    opened += [(leaf.path, leaf.files) for leaf in sources.leaves]
    stats = [(folder / file).stat() for folder, files in opened for file in files]
    stamps = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    # Assemblies are picklable so as to reach the worker; their repr leaves the coefficients out.
    said = pickle.dumps((assembly, opened, stamps, shards, sorted((extra or {}).items())))
    return hashlib.sha256(said).hexdigest()


def _check_space(out: Path, nbytes: int) -> None:
    existing = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise KinshipError(
            f"{out}: needs {nbytes / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; "
            "free some space or write elsewhere"
        )


def _write_index(shards: list[Shard], folder: Path) -> None:
    if [shard.file for shard in shards] == [SINGLE]:
        return
    index = {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": {name: shard.file for shard in shards for name in shard.tensors},
    }
    write_json(folder / INDEX, index)


def _most_common_dtype(shards: list[Shard]) -> torch.dtype:
    dtypes = Counter(tensor[0] for shard in shards for tensor in shard.tensors.values())
    return dtypes.most_common(1)[0][0]
