"""One live model inside lm-eval, its weights replaced in place from model to model. Worker only."""

import gc
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinship_daemon.errors import EvaluationFailed, KinshipError, ModelError
from kinship_daemon.evaluate.settings import Question
from kinship_daemon.weights.checkpoint import read_json
from kinship_daemon.weights.live_model import live_model, load_into
from kinship_daemon.weights.materialise import Assembly
from kinship_daemon.weights.sidecars import sidecars
from kinship_daemon.weights.tokenizer import load_tokenizer

__all__ = ["LiveModel", "ModelSlot", "is_out_of_memory", "unusable"]

# What torch says on a CPU.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
# Keys of config.json that only tell where the file came from.
_PROVENANCE = ("_name_or_path", "transformers_version")


class _HasLogits(Protocol):
    logits: torch.Tensor


class LiveModel(HFLM):  # type: ignore[misc]  # lm-eval ships no types
    """
    lm-eval's own Hugging Face model class, told who it is and asked to count.

    No BOS is added unless the tokenizer's own settings add it: `add_bos_token` stays None.

    Attributes:
        identity: Weights identity of the model now inside, for messages.
        answered: Called with the share of the running request list that is answered, 0 to 1.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.identity = ""
        self.answered: Callable[[float], None] = lambda _: None
        model.register_forward_hook(self._refuse_nan)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        self._count(requests)
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        self._count(requests)
        answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        self._count(requests)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"{self.identity}: its tokenizer has no EOS token, and a task generates text",
                cause="settings",
                setting="evaluate",
            )
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        return answers

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no question before it."""
        found: int | None = super().prefix_token_id
        if found is None:
            raise ModelError(
                f"{self.identity}: its tokenizer has neither BOS nor EOS, and a task asks for the "
                "likelihood of texts that nothing precedes",
                cause="settings",
                setting="evaluate",
            )
        return found

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """
        As lm-eval's. Where one token spans both and nothing would be left, both are encoded alone.

        lm-eval's assertion would end the evaluation over it.
        """
        question, answer = super()._encode_pair(context, continuation)
        if answer:
            return question, answer
        return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)

    def _count(self, requests: list[Instance]) -> None:
        self.set_cache_hook(_Count(self.answered, len(requests)))

    def _refuse_nan(self, _model: PreTrainedModel, _inputs: object, output: _HasLogits) -> None:
        """One NaN anywhere makes the largest NaN: cheaper than looking at each, and at once."""
        largest = float(output.logits.amax())
        if not largest < float("inf"):
            raise ModelError(
                f"{self.identity}: its logits reach {largest}, so no answer of it can be scored; "
                "its weights or their dtype are unusable"
            )


class _Count(CacheHook):  # type: ignore[misc]
    """lm-eval tells its cache hook of every answer; this one only counts them."""

    def __init__(self, answered: Callable[[float], None], expected: int) -> None:
        super().__init__(None)
        self._answered = answered
        self._expected = expected
        self._count = 0

    def add_partial(self, _kind: object, _request: object, _answer: object) -> None:
        self._count += 1
        self._answered(min(1.0, self._count / self._expected))


class ModelSlot:
    """Holds at most one live model; models alike in all but their weights take turns in it."""

    def __init__(self, *, batch_size: int, device: str, dtype: str, chat_template: bool) -> None:
        self._batch_size = batch_size
        self._device = device
        self._dtype = dtype
        self._chat_template = chat_template
        self._live: LiveModel | None = None
        self._fingerprint = ""

    def load(self, assembly: Assembly) -> LiveModel:
        """
        The live model with this assembly's weights, config and tokenizer.

        Raises:
            ModelError: It has no usable tokenizer or weights, or does not fit into memory.
        """
        live, self._live = self._live, None  # half-loaded weights are not left behind
        try:
            # The very files that would be published.
            with TemporaryDirectory() as folder:
                sidecars(assembly).write(Path(folder))
                fingerprint = _fingerprint(Path(folder))
                tokenizer = _tokenizer(assembly, Path(folder))
            if live is None or fingerprint != self._fingerprint:
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
        self._live, self._fingerprint = live, fingerprint
        return live

    def _build(self, assembly: Assembly, tokenizer: PreTrainedTokenizerBase) -> LiveModel:
        if self._chat_template and not tokenizer.chat_template:
            setting = "evaluate.apply_chat_template"
            raise ModelError(
                f"{assembly.identity}: {assembly.donor.name} has no chat template; "
                f"{setting}: false would work",
                cause="settings",
                setting=setting,
            )
        dtype: torch.dtype = getattr(torch, self._dtype)
        model = live_model(assembly, dtype=dtype, device=self._device)
        return LiveModel(model, tokenizer, self._batch_size)

    def _free(self) -> None:
        """Before another model is built, so that two are never in memory."""
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()


def unusable(
    identity: str, error: Exception, batch_size: int, question: Question | None = None
) -> ModelError:
    """
    One line for whatever went wrong with one model; out of memory names what may help.

    Args:
        question: What it failed at; None where it could not even be loaded.
    """
    where = (
        "loading it"
        if question is None
        else "answering document {1} of task {0!r}".format(*question)
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
    if question is None:
        return ModelError(message, cause="settings", setting="evaluate")
    return EvaluationFailed(message, setting="evaluate", question=question)


def is_out_of_memory(error: Exception) -> bool:
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return memory or any(words in f"{error}" for words in _OUT_OF_MEMORY)


def _tokenizer(assembly: Assembly, folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = load_tokenizer(folder, assembly.donor)
    except ModelError as error:
        raise ModelError(f"{assembly.identity}: {error}") from error
    tokenizer.name_or_path = str(assembly.donor)
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
