"""Where the live model is held: built once, its weights replaced in place. Worker only."""

import gc
import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedTokenizerBase

from kinship_daemon.errors import EvaluationFailed, KinshipError, ModelError
from kinship_daemon.evaluate.live import LiveModel
from kinship_daemon.evaluate.settings import DocumentId
from kinship_daemon.weights.checkpoint import read_json
from kinship_daemon.weights.live_model import live_model, load_into
from kinship_daemon.weights.materialise import Assembly
from kinship_daemon.weights.sidecars import sidecars
from kinship_daemon.weights.tokenizer import load_tokenizer

__all__ = ["ModelSlot", "fingerprint", "is_out_of_memory", "unusable", "usable_tokenizer"]

# What torch says on a CPU.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
# Keys of config.json that only tell where the file came from.
_PROVENANCE = ("_name_or_path", "transformers_version")


class ModelSlot:
    """Holds at most one live model; models alike in all but their weights take turns in it."""

    def __init__(self, *, batch_size: int, device: str, dtype: str, chat_template: bool) -> None:
        self._batch_size = batch_size
        self._device = device
        self._dtype = dtype
        self._chat_template = chat_template
        self._live: LiveModel | None = None
        self._held: Assembly | None = None  # whose weights are in it
        self._fingerprint = ""

    def load(self, assembly: Assembly) -> LiveModel:
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
                alike = fingerprint(Path(folder))
                tokenizer = usable_tokenizer(assembly, Path(folder), self._chat_template)
            if live is None or alike != self._fingerprint:
                del live
                self._free()
                live = self._build(assembly, tokenizer)
            else:
                load_into(live.model, assembly, device=self._device)
        except KinshipError:
            raise
        except OSError as error:  # the disk's fault, not the model's
            raise KinshipError(f"{assembly.identity} could not be read: {error}") from error
        except Exception as error:
            raise unusable(assembly.identity, error, self._batch_size) from error
        live.identity = assembly.identity
        self._live, self._fingerprint, self._held = live, alike, assembly
        return live

    def _build(self, assembly: Assembly, tokenizer: PreTrainedTokenizerBase) -> LiveModel:
        dtype: torch.dtype = getattr(torch, self._dtype)
        model = live_model(assembly, dtype=dtype, device=self._device)
        return LiveModel(model, tokenizer, self._batch_size)

    def _free(self) -> None:
        """Before another model is built, so that two are never in memory."""
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()


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


def usable_tokenizer(
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


def fingerprint(beside: Path) -> str:
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
