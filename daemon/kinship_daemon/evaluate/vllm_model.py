"""
A model in vLLM's engine, as lm-eval asks it; its weights are streamed into it. Worker only.

The engine runs in this process, so that it dies with it, and knows nothing of other models: what
their prompts left in its cache is thrown away.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.vllm_causallms import VLLM

from kinship_daemon.errors import EvaluationFailed, ModelError
from kinship_daemon.evaluate.live import AnswerCount
from kinship_daemon.evaluate.settings import Cost, Settings
from kinship_daemon.weights.assembly import Assembly
from kinship_daemon.weights.sidecars import sidecars

__all__ = ["VllmModel"]

_log = logging.getLogger(__name__)
# vLLM itself decides what is run together. Not "auto", with which it divides by its bar's time.
_ALL_AT_ONCE = 1_000_000


class VllmModel(VLLM):  # type: ignore[misc]  # lm-eval ships no types
    """
    lm-eval's own vLLM class, told who it is; its attributes are those of `LiveModel`.

    Args:
        assembly: Whose config and tokenizer it has; weights come by `fill`.
    """

    def __init__(self, assembly: Assembly, settings: Settings) -> None:
        on_cpu = settings.resolved_device() == "cpu"
        self._kept = TemporaryDirectory()  # the engine may read it again
        sidecars(assembly).write(Path(self._kept.name))
        super().__init__(
            pretrained=self._kept.name,
            dtype=settings.dtype,
            load_format="dummy",
            seed=settings.seed,
            batch_size=_ALL_AT_ONCE,
            max_num_seqs=settings.batch_size,
            gpu_memory_utilization=settings.vllm_memory,
            enforce_eager=on_cpu,  # compiling takes minutes, for nothing that a CPU needs
        )
        self.identity = assembly.identity
        self._made_on = torch.device(settings.resolved_device())
        self.answered: Callable[[float], None] = lambda _: None
        self.cost = Cost()
        self.cut = 0
        # Whatever no checkpoint fills makes NaN, which the engine refuses.
        self.model.apply_model(_forget)

    @classmethod
    def of(cls, settings: Settings, assembly: Assembly, _tokenizer: object) -> "VllmModel":
        """With the assembly's weights; the engine reads the tokenizer's files itself."""
        live = cls(assembly, settings)
        live.fill(assembly)
        _log.info("vLLM's engine is started for %s", assembly.identity)
        return live

    def fill(self, assembly: Assembly) -> None:
        weights = _weights(assembly, self.model.llm_engine.model_config.dtype, self._made_on)
        self.model.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

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


def _forget(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.fill_(float("nan"))


def _weights(
    assembly: Assembly, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by the name that its checkpoint gives it, made as it is asked for."""
    sources = assembly.open()
    for info in sources.tensors:
        blocks = list(sources.blocks(info.name, dtype, device))
        yield info.name, torch.cat([block.reshape(-1) for block in blocks]).view(info.shape)
