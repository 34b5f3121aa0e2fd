"""A live model as lm-eval asks it, its prompts sharing what they have in common. Worker only."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinship_daemon.errors import ModelError
from kinship_daemon.evaluate.prefix_plan import Tokens, cut, width
from kinship_daemon.evaluate.settings import Cost, Settings
from kinship_daemon.evaluate.shared_generation import SharedPrompt, generate
from kinship_daemon.evaluate.shared_prefix import Likelihood, Scorer, why_not
from kinship_daemon.weights.assembly import Assembly
from kinship_daemon.weights.live_model import live_model, load_into

__all__ = ["AnswerCount", "LiveModel"]

_log = logging.getLogger(__name__)

# lm-eval's: the texts of question and answer, and their tokens.
_Request = tuple[tuple[str, str], list[int], list[int]]


class _HasLogits(Protocol):
    logits: torch.Tensor


class LiveModel(HFLM):  # type: ignore[misc]  # lm-eval ships no types
    """
    lm-eval's own Hugging Face model class, told who it is, and sparing with tokens.

    No BOS is added unless the tokenizer's own settings add it: `add_bos_token` stays None.

    Attributes:
        identity: Weights identity of the model now inside, for messages.
        answered: Called with the share of the running request list that is answered, 0 to 1.
        cost: Of everything asked since it was last set.
        cut: Prompts since then that were longer than what the model reads.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> None:
        # Sums of bfloat16 log-probabilities, its default, are off by half a unit at 100.
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype=torch.float32,
        )
        self.identity = ""
        self.answered: Callable[[float], None] = lambda _: None
        self.cost = Cost()
        self.cut = 0
        self._said: set[str] = set()
        self._prompt = SharedPrompt()
        # A cache of fixed size is for compiled models, and could hold nothing from before.
        model.generation_config.cache_implementation = None
        model.register_forward_hook(self._refuse_nan)

    @classmethod
    def of(
        cls, settings: Settings, assembly: Assembly, tokenizer: PreTrainedTokenizerBase
    ) -> "LiveModel":
        """With the assembly's weights, on the device of the settings."""
        dtype: torch.dtype = getattr(torch, settings.dtype)
        model = live_model(assembly, dtype=dtype, device=settings.resolved_device())
        return cls(model, tokenizer, settings.batch_size)

    def fill(self, assembly: Assembly) -> None:
        """Overwrite the weights in place, block by block, without a disk."""
        load_into(self.model, assembly, device=self.device)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[Likelihood]:
        self._count(requests)
        answers: list[Likelihood] = super().loglikelihood(requests, disable_tqdm)
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
        self._prompt = SharedPrompt()  # what is answered depends on these requests alone
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

    def _loglikelihood_tokens(
        self,
        requests: Sequence[_Request],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        """As lm-eval's, but for what requests share; of `loglikelihood_rolling` they share none."""
        answers = [answer for _, _, answer in requests]
        prompts = [self._read(question, answer) for _, question, answer in requests]
        theirs = sum(len(prompt) for prompt in {tuple(prompt) for prompt in prompts})
        roots = cut(prompts, answers)
        if override_bs is not None or self._refuses_to_share(width(roots)):
            self.cost += Cost(computed=theirs, lm_eval=theirs)
            found: list[Likelihood] = super()._loglikelihood_tokens(
                requests, disable_tqdm, override_bs
            )
            return found

        def answered(number: int, likelihood: Likelihood) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[number][0], likelihood)

        scorer = Scorer(self.model, self.batch_size, answered)
        found = scorer.score(roots, answers)
        self.cost += Cost(computed=scorer.computed, lm_eval=theirs)
        return found

    def _read(self, question: Tokens, answer: Tokens) -> Tokens:
        """What the model reads: not the answer's last token, and no more than it can."""
        if not 0 < len(answer) <= self.max_length:
            raise ValueError(
                f"an answer takes {len(answer)} tokens; it must take 1 to {self.max_length}, which "
                "is as much as the model reads"
            )
        whole = [*question, *answer]
        self.cut += len(whole) > self.max_length + 1
        return whole[-(self.max_length + 1) : -1]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As lm-eval's, which cuts prompts of texts to be written; they are counted."""
        tokens, real = super().tok_batch_encode(strings, padding_side, None, truncation)
        if left_truncate_len:
            self.cut += int((real.sum(dim=1) > left_truncate_len).sum())
            tokens, real = tokens[:, -left_truncate_len:], real[:, -left_truncate_len:]
        return tokens, real

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> torch.Tensor:
        """As lm-eval's; a greedy batch shares its beginning, and a stop string ends its row."""
        own = self.model.generation_config.num_beams
        beams = settings.get("num_beams", own) or 1
        if settings.get("do_sample") or settings.get("temperature") or beams > 1:
            drawn: torch.Tensor = super()._model_generate(context, max_length, stop, **settings)
            return drawn
        settings = {name: value for name, value in settings.items() if name != "temperature"}
        share = not self._refuses_to_share(max_length)
        made, cost = generate(
            self.model,
            self.tokenizer,
            context,
            settings.pop("attention_mask"),
            stop=stop,
            shared=self._prompt if share else None,
            settings={**settings, "do_sample": False, "max_length": max_length},
        )
        self.cost += cost
        return made

    def _refuses_to_share(self, places: int) -> bool:
        """Whether the model's cache cannot be shared, which is said once a model."""
        reason = why_not(self.model, places)
        if reason is not None and reason not in self._said:
            self._said.add(reason)
            _log.warning("%s: every prompt is computed whole, for %s", self.identity, reason)
        return reason is not None

    def _count(self, requests: list[Instance]) -> None:
        self.set_cache_hook(AnswerCount(self.answered, len(requests)))

    def _refuse_nan(self, _model: PreTrainedModel, _inputs: object, output: _HasLogits) -> None:
        """One NaN anywhere makes the largest NaN: cheaper than looking at each, and at once."""
        largest = float(output.logits.amax())
        if not largest < float("inf"):
            raise ModelError(
                f"{self.identity}: its logits reach {largest}, so no answer of it can be scored; "
                "its weights or their dtype are unusable"
            )


class AnswerCount(CacheHook):  # type: ignore[misc]
    """lm-eval tells its cache hook of every answer; this one only counts them."""

    def __init__(self, answered: Callable[[float], None], expected: int) -> None:
        super().__init__(None)
        self._answered = answered
        self._expected = expected
        self._count = 0

    def add_partial(self, _kind: object, _request: object, _answer: object) -> None:
        self._count += 1
        self._answered(min(1.0, self._count / self._expected))
