"""Where a live model is held: built once, its weights replaced in place. Worker only."""

import gc
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, Protocol, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from kinship_daemon.errors import EvaluationFailed, KinshipError, ModelError, lacking
from kinship_daemon.evaluate.settings import DocumentId, Settings
from kinship_daemon.weights.assembly import Assembly
from kinship_daemon.weights.checkpoint import read_json
from kinship_daemon.weights.sidecars import sidecars
from kinship_daemon.weights.tokenizer import load_tokenizer

__all__ = ["ModelSlot", "is_out_of_memory", "unusable"]

# What torch says on a CPU.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
# Keys of config.json that only tell where the file came from.
_PROVENANCE = ("_name_or_path", "transformers_version")


class Fillable(Protocol):
    """A model that can be asked, and whose weights can be replaced in place."""

    identity: str

    def fill(self, assembly: Assembly) -> None:
        """Overwrite its weights, tensor by tensor, without a disk."""


L = TypeVar("L", bound=Fillable)


class ModelSlot(Generic[L]):
    """Holds at most one live model; models alike in all but their weights take turns in it."""

    def __init__(
        self,
        settings: Settings,
        build: Callable[[Settings, Assembly, PreTrainedTokenizerBase], L],
    ) -> None:
        self._settings = settings
        self._build = build
        self._live: L | None = None
        self._held: Assembly | None = None  # whose weights are in it
        self._fingerprint = ""

    def load(self, assembly: Assembly) -> L:
        """
        The live model with this assembly's weights, config and tokenizer.

        Raises:
            ModelError: It has no usable tokenizer or weights, or does not fit into memory.
        """
        if self._live is not None and assembly == self._held:
            return self._live
        live, self._live = self._live, None  # half-loaded weights are not left behind
        try:
            # The very files that would be published.
            with TemporaryDirectory() as folder:
                sidecars(assembly).write(Path(folder))
                alike = _fingerprint(Path(folder))
                chat_template = self._settings.apply_chat_template
                tokenizer = _usable_tokenizer(assembly, Path(folder), chat_template)
            if live is None or alike != self._fingerprint:
                del live
                _free()
                live = self._build(self._settings, assembly, tokenizer)
            else:
                live.fill(assembly)
        except KinshipError:
            raise
        except OSError as error:  # the disk's fault, not the model's
            raise KinshipError(f"{assembly.identity} could not be read: {error}") from error
        except Exception as error:
            if (lack := lacking(error)) is not None:
                raise KinshipError(f"{assembly.identity} could not be read: {lack}") from error
            raise unusable(assembly.identity, error, self._settings.batch_size) from error
        live.identity = assembly.identity
        self._live, self._fingerprint, self._held = live, alike, assembly
        return live


def _free() -> None:
    """Before another model is built, so that two are never in memory."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was never used


def unusable(
    identity: str, error: Exception, batch_size: int, document: DocumentId | None = None
) -> ModelError:
    """
    One line for whatever went wrong with one model; out of memory names what may help.

    Args:
        document: What it failed at; None where it could not even be loaded.
    """
    where = (
        "loading it"
        if document is None
        else "answering document {1} of task {0!r}".format(*document)
    )
    text = " ".join(f"{error}".split())
    if is_out_of_memory(error):
        return EvaluationFailed(
            f"{identity}: out of memory while {where}; an evaluate.batch_size below {batch_size} "
            f"or a smaller dtype may work ({text:.120})",
            setting="evaluate.batch_size",
        )
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    message = f"{identity}: the harness failed while {where}: {named:.300}"
    if document is None:
        return ModelError(message, cause="settings", setting="evaluate")
    return EvaluationFailed(message, setting="evaluate", document=document)


def is_out_of_memory(error: Exception) -> bool:
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return memory or any(words in f"{error}" for words in _OUT_OF_MEMORY)


def _usable_tokenizer(
    assembly: Assembly, folder: Path, chat_template: bool
) -> PreTrainedTokenizerBase:
    """
    The tokenizer whose files lie in `folder`.

    Raises:
        ModelError: It cannot be used, or has no chat template where one is wanted.
    """
    try:
        tokenizer = load_tokenizer(folder, assembly.donor)
    except ModelError as error:
        raise ModelError(f"{assembly.identity}: {error}") from error
    tokenizer.name_or_path = str(assembly.donor)
    if chat_template and not tokenizer.chat_template:
        setting = "evaluate.apply_chat_template"
        raise ModelError(
            f"{assembly.identity}: {assembly.donor.name} has no chat template; "
            f"{setting}: false would work",
            cause="settings",
            setting=setting,
        )
    return tokenizer


def _fingerprint(beside: Path) -> str:
    """Hash of all that makes a model answer as it does, but the weights."""
    digest = hashlib.sha256(_without_provenance(beside / "config.json"))
    for path in sorted(beside.rglob("*")):
        if path.is_file() and path.name != "config.json":
            digest.update(path.relative_to(beside).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _without_provenance(config: Path) -> bytes:
    settings = read_json(config)
    kept = {key: value for key, value in settings.items() if key not in _PROVENANCE}
    return json.dumps(kept, sort_keys=True).encode()
