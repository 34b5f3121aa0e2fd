"""Makes an assembly's weights where they are needed: in a live model, or on disk."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from kinship_daemon.durable import hash_file, whole_folder
from kinship_daemon.errors import KinshipError, ModelError
from kinship_daemon.weights.assembly import Assembly, Sources, assemble, leaf_assembly
from kinship_daemon.weights.checkpoint import INDEX, SINGLE, read_json
from kinship_daemon.weights.shard import Shard, plan, write_shard

__all__ = [
    "Assembly",
    "assemble",
    "leaf_assembly",
    "live_model",
    "load_into",
    "tokenizer_files",
    "write",
]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_COMPANIONS = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_GENERATION = "generation_config.json"


def load_into(model: PreTrainedModel, assembly: Assembly, *, device: torch.device | str) -> None:
    """
    Overwrite a live model's weights in place, one block of one tensor at a time.

    `device` is where the sums are made; best the model's own.

    Raises:
        ModelError: The assembly's tensors are not those of the model.
    """
    sources = Sources(assembly)
    places = model.state_dict()
    filled = set()
    for info in sources.tensors:
        place = places.get(info.name)
        if place is None or tuple(place.shape) != info.shape:
            raise ModelError(
                f"{assembly.donor}: tensor {info.name} {list(info.shape)} has no place in "
                f"{type(model).__name__}"
            )
        flat, begin = place.view(-1), 0
        for block in sources.blocks(info.name, place.dtype, torch.device(device)):
            flat[begin : begin + len(block)].copy_(block)
            begin += len(block)
        filled.add(place.data_ptr())
    # Tied weights are one storage under two names, of which the checkpoint has one.
    for name in sorted(places):
        if places[name].data_ptr() not in filled:
            raise ModelError(f"{assembly.donor}: its checkpoint lacks the tensor {name}")


def live_model(
    assembly: Assembly, *, dtype: torch.dtype, device: torch.device | str
) -> PreTrainedModel:
    """
    A model in evaluation mode with the assembly's weights, built without remote code.

    Raises:
        ModelError: The config asks for remote code or is unknown, or the tensors do not fit it.
    """
    config = _config(assembly.donor)
    try:
        with torch.device(device), _without_random_weights():
            # transformers types neither this nor eval().
            build: Any = AutoModelForCausalLM.from_config
            model: PreTrainedModel = build(config, dtype=dtype, trust_remote_code=False)
    except (MemoryError, RuntimeError):
        raise  # too little memory is not the model's fault
    except Exception as error:  # a stranger's config: transformers raises all kinds
        raise ModelError(f"{assembly.donor}: no model can be built: {_line(error)}") from error
    model.tie_weights()
    load_into(model, assembly, device=device)
    model.generation_config = _generation_config(assembly.donor) or model.generation_config
    model.train(False)
    model.requires_grad_(False)
    return model


def write(
    assembly: Assembly,
    out: Path,
    *,
    shard_bytes: int = 5_000_000_000,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """
    A model folder that transformers loads. It appears under `out` when whole, or not at all.

    The same assembly gives the same bytes. A weight file exceeds `shard_bytes` only where a single
    tensor does. `dtype` is that of all tensors; when None, each keeps the base's. `progress` is
    called with the weight bytes written since its last call. `extra` are text files to add by name.

    Returns:
        SHA-256 of every file by name, sorted.

    Raises:
        KinshipError: `out` exists and is not empty, or the disk refuses.
        ModelError: A source cannot be read, the donor has no tokenizer, or a value overflows.
    """
    companions = tokenizer_files(assembly.donor)
    config = read_json(assembly.donor / "config.json")
    sources = Sources(assembly)
    shards = plan(sources, dtype, shard_bytes)
    _check_space(out, sum(shard.nbytes for shard in shards))
    hashes = {}
    with whole_folder(out) as folder:
        for shard in shards:
            hashes[shard.file] = write_shard(shard, sources, folder, progress)
        _write_index(shards, folder)
        _write_json(folder / "config.json", _config_to_write(config, shards))
        for file in companions:
            _carry(assembly.donor / file, folder / file)
        for file, text in sorted((extra or {}).items()):
            (folder / file).write_text(text, encoding="utf-8")
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in hashes:
                hashes[path.relative_to(folder).as_posix()] = hash_file(path)
    return dict(sorted(hashes.items()))


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """
    The files beside weights and config that a model needs: tokenizer, templates, generation config.

    Raises:
        ModelError: There is no tokenizer among them.
    """
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise ModelError(f"{folder}: has no tokenizer ({', '.join(_TOKENIZERS)})")
    templates = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.glob("additional_chat_templates/*.jinja")
    )
    named = [file for file in (*_COMPANIONS, _GENERATION) if (folder / file).is_file()]
    return (*named, *templates)


def _without_random_weights() -> AbstractContextManager[None]:
    """Billions of random numbers would be drawn, only to be overwritten."""
    # transformers 5 moved it.
    moved = find_spec("transformers.initialization") is not None
    home = import_module("transformers.initialization" if moved else "transformers.modeling_utils")
    context: AbstractContextManager[None] = home.no_init_weights()
    return context


def _config(donor: Path) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            donor, local_files_only=True, trust_remote_code=False
        )
        return config
    except Exception as error:  # a stranger's file: transformers raises all kinds
        raise ModelError(f"{donor}: its config cannot be used: {_line(error)}") from error


def _generation_config(donor: Path) -> GenerationConfig | None:
    if not (donor / _GENERATION).exists():
        return None
    try:
        return GenerationConfig.from_pretrained(donor, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{donor}: its {_GENERATION} cannot be used: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _check_space(out: Path, nbytes: int) -> None:
    room = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(room).free
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
    _write_json(folder / INDEX, index)


def _config_to_write(config: Mapping[str, Any], shards: list[Shard]) -> dict[str, Any]:
    """The donor's config with the dtype that was written, and without code or local paths."""
    written = {key: config[key] for key in config if key not in ("auto_map", "_name_or_path")}
    sizes: dict[torch.dtype, int] = {}
    for shard in shards:
        for tensor in shard.tensors.values():
            sizes[tensor[0]] = sizes.get(tensor[0], 0) + 1
    most = max(sizes, key=lambda dtype: sizes[dtype])
    key = "dtype" if "dtype" in config else "torch_dtype"
    return written | {key: str(most).removeprefix("torch.")}


def _carry(source: Path, target: Path) -> None:
    """Copy a file; a tokenizer's config loses its reference to code, which is never run."""
    target.parent.mkdir(exist_ok=True)
    if source.name == "tokenizer_config.json":
        config = read_json(source)
        if "auto_map" in config:
            del config["auto_map"]
            _write_json(target, config)
            return
    shutil.copyfile(source, target)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
