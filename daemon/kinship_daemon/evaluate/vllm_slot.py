"""
Where vLLM's engine is held: started once, the weights of each model streamed into it. Worker only.

The engine runs in this process, so that it dies with it, and knows nothing of other models: what
their prompts left in its cache is thrown away.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.vllm_causallms import VLLM

from kinship_daemon.errors import EvaluationFailed, KinshipError, ModelError
from kinship_daemon.evaluate.live import AnswerCount
from kinship_daemon.evaluate.model_slot import fingerprint, unusable, usable_tokenizer
from kinship_daemon.evaluate.settings import Cost, Settings
from kinship_daemon.weights.assembly import Assembly
from kinship_daemon.weights.sidecars import sidecars

__all__ = ["VllmModel", "VllmSlot"]

_log = logging.getLogger(__name__)
# vLLM itself decides what is run together. Not "auto", with which it divides by its bar's time.
_ALL_AT_ONCE = 1_000_000


class VllmModel(VLLM):  # type: ignore[misc]  # lm-eval ships no types
    """
    lm-eval's own vLLM class, told who it is; its attributes are those of `LiveModel`.

    Args:
        folder: Config and tokenizer; weights come by `fill`.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        on_cpu = settings.resolved_device() == "cpu"
        super().__init__(
            pretrained=str(folder),
            dtype=settings.dtype,
            load_format="dummy",
            seed=settings.seed,
            batch_size=_ALL_AT_ONCE,
            max_num_seqs=settings.batch_size,
            gpu_memory_utilization=settings.vllm_memory,
            enforce_eager=on_cpu,  # compiling takes minutes, for nothing that a CPU needs
        )
        self.identity = ""
        self.answered: Callable[[float], None] = lambda _: None
        self.cost = Cost()
        self.cut = 0
        # Whatever no checkpoint fills makes NaN, which the engine refuses.
        self.model.apply_model(_forget)

    def fill(self, assembly: Assembly) -> None:
        """Overwrite the weights in place, tensor by tensor, without a disk."""
        weights = _weights(assembly, self.model.llm_engine.model_config.dtype)
        self.model.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.identity = assembly.identity

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"{self.identity}: its tokenizer has no EOS token, and a task generates text",
                cause="settings",
                setting="evaluate",
            )
        self.set_cache_hook(AnswerCount(self.answered, len(requests)))
        # What is answered depends on these requests alone, in its last bits too.
        self.model.reset_prefix_cache()
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        return answers

    @staticmethod
    def modify_gen_kwargs(
        gen_kwargs: dict[str, Any],
        eos: str | list[str] | None = None,
        default_max_gen_toks: int = 256,
    ) -> tuple[dict[str, Any], list[str], int]:
        """As lm-eval's, but read as it reads transformers: greedy unless told, words alone."""
        settings, until, most = VLLM.modify_gen_kwargs(gen_kwargs, eos, default_max_gen_toks)
        settings.setdefault("temperature", 0.0)  # else vLLM draws at random
        return {**settings, "skip_special_tokens": True}, until, most

    def _model_generate(self, *args: Any, **settings: Any) -> list[Any]:
        try:
            found: list[Any] = super()._model_generate(*args, **settings)
        except Exception as error:
            # The engine is dead after any of them, so no document can be found that is to blame.
            text = " ".join(f"{error}".split())
            if "NaNs detected" in text:
                raise ModelError(
                    f"{self.identity}: its logits are NaN, so no answer of it can be scored; "
                    "its weights or their dtype are unusable"
                ) from error
            raise EvaluationFailed(
                f"{self.identity}: vLLM failed: {type(error).__name__}: {text:.300}",
                setting="evaluate",
            ) from error
        for each in found:
            read = len(each.prompt_token_ids)
            written = sum(len(output.token_ids) for output in each.outputs)
            known = each.num_cached_tokens or 0
            self.cost += Cost(computed=read - known + written, lm_eval=read + written)
        return found


class VllmSlot:
    """Holds at most one engine; models alike in all but their weights take turns in it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._live: VllmModel | None = None
        self._held: Assembly | None = None  # whose weights are in it
        self._fingerprint = ""
        self._folder: TemporaryDirectory[str] | None = None

    def load(self, assembly: Assembly) -> VllmModel:
        """
        The engine with this assembly's weights, config and tokenizer.

        Raises:
            ModelError: It has no usable tokenizer or weights, or does not fit into memory.
        """
        if self._live is not None and assembly == self._held:
            return self._live
        live, self._live = self._live, None  # half-loaded weights are not left behind
        folder: TemporaryDirectory[str] = TemporaryDirectory()
        try:
            sidecars(assembly).write(Path(folder.name))
            alike = fingerprint(Path(folder.name))
            if live is None or alike != self._fingerprint:
                usable_tokenizer(assembly, Path(folder.name), self._settings.apply_chat_template)
                del live
                gc.collect()
                live = VllmModel(Path(folder.name), self._settings)
                self._folder, self._fingerprint = folder, alike
                _log.info("vLLM's engine is started for %s", assembly.identity)
            live.fill(assembly)
        except KinshipError:
            raise
        except OSError as error:  # the disk's fault, not the model's
            raise KinshipError(f"{assembly.identity} could not be read: {error}") from error
        except Exception as error:
            raise unusable(assembly.identity, error, self._settings.batch_size) from error
        self._live, self._held = live, assembly
        return live


def _forget(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.fill_(float("nan"))


def _weights(assembly: Assembly, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by the name that its checkpoint gives it, made as it is asked for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sources = assembly.open()
    for info in sources.tensors:
        blocks = list(sources.blocks(info.name, dtype, device))
        yield info.name, torch.cat([block.reshape(-1) for block in blocks]).view(info.shape)
