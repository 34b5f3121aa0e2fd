"""
Runs mergekit for what we cannot do ourselves, with our rules.

Models are local folders of which it sees only safetensors and text; no remote code, no network;
the result appears whole or not at all.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kinship_daemon.child_process import ChildProcess
from kinship_daemon.durable import hash_file, whole_folder
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.model_files import ADAPTER_CONFIG, CONFIG, GENERATION, INDEX
from kinship_daemon.weights.checkpoint import Checkpoint, read_json
from kinship_daemon.weights.mergekit.child import serve
from kinship_daemon.weights.mergekit.documents import parse, renamed
from kinship_daemon.weights.tokenizer import carry, has_tokenizer, tokenizer_files

__all__ = ["INSTALL", "ask", "available", "run"]

_SETTINGS = frozenset({CONFIG, GENERATION, ADAPTER_CONFIG, INDEX})

INSTALL = "pip install 'kinship-daemon[mergekit]'"


def available() -> bool:
    return find_spec("mergekit") is not None


def ask(text: str) -> None:
    """
    Check a YAML as far as mergekit can without the models.

    Raises:
        UsageError: mergekit does not take it.
    """
    said = _call({"document": parse(text)}, Path.cwd())
    if said is not None:
        raise UsageError(f"mergekit: {said}")


def run(
    text: str, folders: Mapping[str, Path], out: Path, *, device: str, shard_bytes: int
) -> dict[str, str]:
    """
    Make a model with mergekit. It appears under `out` when whole, or not at all.

    Args:
        text: The YAML of one merge.
        folders: Of every model that it names; adapters apart.
        device: `cpu` or `cuda`.

    Returns:
        SHA-256 of every file by name, sorted.

    Raises:
        KinshipError: mergekit fails, `out` exists and is not empty, or the disk refuses.
        ModelError: A source cannot be used.
    """
    with whole_folder(out) as folder:
        # Inside, so that it is on the same disk and goes when the process is killed.
        sources = folder / ".sources"
        names = {name: f"model-{index}" for index, name in enumerate(folders)}
        for name, source in folders.items():
            _show(source.resolve(), sources / names[name])
        options = {
            "device": device,
            "out_shard_size": shard_bytes,
            "lora_merge_cache": str((sources / "merged").absolute()),
            "quiet": not sys.stderr.isatty(),
        }
        document = renamed(parse(text), names)
        said = _call(
            {"document": document, "out": str(folder.absolute()), "options": options}, sources
        )
        if said is not None:
            raise KinshipError(f"mergekit: {_with_names(said, names)}")
        shutil.rmtree(sources)
        _check(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def _call(request: Mapping[str, Any], where: Path) -> str | None:
    """What went wrong in the child, which runs in the folder `where`; None where nothing did."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        # mergekit takes a tokenizer from the first of a set, where no base_model says whose.
        "PYTHONHASHSEED": "0",
    }
    answering = ChildProcess(
        "kinship-mergekit", serve, dict(request), where, environment=environment
    )
    with closing(answering) as child:
        try:
            said: str | None = child.pipe.recv()
        except (EOFError, ConnectionError):
            return f"its process ended ({child.ending()}); is there enough memory?"
        return said


def _show(source: Path, place: Path) -> None:
    """
    Links to a model's weights, and what we read ourselves beside them: no pickles and no code.

    Raises:
        ModelError: It is neither a model of safetensors nor an adapter.
    """
    adapter = (source / ADAPTER_CONFIG).exists() and not (source / CONFIG).exists()
    if not adapter:
        Checkpoint.open(source)
    place.mkdir(parents=True)
    for name in tokenizer_files(source) if has_tokenizer(source) else ():
        carry(source / name, place / name)
    for file in sorted(source.iterdir()):
        if file.name in _SETTINGS:
            settings = read_json(file)
            settings.pop("auto_map", None)
            (place / file.name).write_text(json.dumps(settings), encoding="utf-8")
        elif file.suffix == ".safetensors":
            (place / file.name).symlink_to(file)


def _with_names(said: str, names: Mapping[str, str]) -> str:
    """The message about models instead of the links that mergekit saw."""
    for name, link in reversed([*names.items()]):
        said = said.replace(link, name)
    return said


def _check(folder: Path) -> None:
    Checkpoint.open(folder)
    tokenizer_files(folder)
