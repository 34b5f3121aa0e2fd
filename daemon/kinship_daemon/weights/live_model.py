"""Makes an assembly's weights in a live transformers model: for evaluation, without a disk."""

from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from kinship_daemon.errors import ModelError
from kinship_daemon.foreign.shown import shown
from kinship_daemon.model_files import GENERATION
from kinship_daemon.weights.assembly import Makeable
from kinship_daemon.weights.checkpoint import follows_from_config
from kinship_daemon.weights.fit import their_names
from kinship_daemon.weights.places import places
from kinship_daemon.weights.sidecars import sidecars

__all__ = ["live_model", "load_into"]


def load_into(model: PreTrainedModel, assembly: Makeable, *, device: torch.device | str) -> None:
    """
    Overwrite a live model's weights in place, one block of one tensor at a time.

    `device` is where the sums are made; best the model's own.

    Raises:
        ModelError: The assembly's tensors are not those of the model.
    """
    sources = assembly.open()
    free = dict(places(model))
    filled = set()
    called = their_names(free, [info.name for info in sources.tensors])
    for info in sources.tensors:
        place = free.get(called[info.name])
        if place is None or tuple(place.shape) != info.shape:
            raise ModelError(
                f"{assembly.donor}: tensor {info.name} {list(info.shape)} has no place in "
                f"{type(model).__name__}"
            )
        rows, begin = _rows(place), 0
        for block in sources.blocks(info.name, place.dtype, torch.device(device)):
            end = begin + len(block) // max(rows.shape[1], 1)
            rows[begin:end] = block.view(-1, rows.shape[1])
            begin = end
        filled.add(place.data_ptr())
    # Tied weights are one storage under two names, of which the checkpoint has one.
    for name, place in sorted(free.items()):
        computed = follows_from_config(
            name, is_float=place.is_floating_point(), dimensions=place.dim()
        )
        if place.data_ptr() not in filled and not computed:
            raise ModelError(f"{assembly.donor}: its checkpoint lacks the tensor {name}")


def _rows(place: torch.Tensor) -> torch.Tensor:
    """A view (rows, columns) of a tensor, of one column where it has one dimension or none."""
    if place.dim() == 2:
        return place
    return place.view(-1, place.shape[-1] if place.dim() > 2 else 1)


def live_model(
    assembly: Makeable, *, dtype: torch.dtype, device: torch.device | str
) -> PreTrainedModel:
    """
    A model in evaluation mode with the assembly's weights, built without remote code.

    Raises:
        ModelError: The config asks for remote code or is unknown, or the tensors do not fit it.
    """
    with TemporaryDirectory() as folder:
        sidecars(assembly).write_settings(Path(folder))
        config = _config(assembly.donor, Path(folder))
        generation = _generation_config(assembly.donor, Path(folder))
    try:
        with torch.device(device), _without_random_weights():
            # transformers types neither this nor eval().
            build: Any = AutoModelForCausalLM.from_config
            model: PreTrainedModel = build(config, dtype=dtype, trust_remote_code=False)
    except (MemoryError, RuntimeError):
        raise  # too little memory is not the model's fault
    except Exception as error:  # a stranger's config: transformers raises all kinds
        words = _line(error, Path(folder), assembly.donor)
        raise ModelError(f"{assembly.donor}: no model can be built: {words}") from error
    model.tie_weights()
    load_into(model, assembly, device=device)
    model.generation_config = generation or model.generation_config
    model.train(False)
    model.requires_grad_(False)
    return model


def _without_random_weights() -> AbstractContextManager[None]:
    """Billions of random numbers would be drawn, only to be overwritten."""
    # transformers 5 moved it.
    moved = find_spec("transformers.initialization") is not None
    home = import_module("transformers.initialization" if moved else "transformers.modeling_utils")
    context: AbstractContextManager[None] = home.no_init_weights()
    return context


def _config(donor: Path, folder: Path) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a stranger's file: transformers raises all kinds
        words = _line(error, folder, donor)
        raise ModelError(f"{donor}: its config cannot be used: {words}") from error
    config.name_or_path = str(donor)
    return config


def _generation_config(donor: Path, folder: Path) -> GenerationConfig | None:
    if not (folder / GENERATION).exists():
        return None
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        words = _line(error, folder, donor)
        raise ModelError(f"{donor}: its {GENERATION} cannot be used: {words}") from error


def _line(error: Exception, folder: Path, donor: Path) -> str:
    """Its words; the folder that they speak of is gone, and was another's each time."""
    return shown(" ".join(str(error).split()).replace(str(folder), str(donor)))
