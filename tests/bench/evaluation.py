"""Multiple choice in the shapes of four known tasks, asked by us and by lm-eval's HFLM in turns."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from tests.bench.bench import Bench
from tests.bench.table import Row, verdict
from tests.tiny import tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kinship_daemon.evaluate.live import LiveModel

__all__ = ["evaluation"]

# Larger ones take hours on a CPU.
_MOST_PARAMETERS = 135e6
_BATCH = 16
_DOCUMENTS = 8
# Log-probabilities in float32.
_CLOSE = 1e-4

# As lm-eval hands them on: texts that nobody reads here, tokens of question and answer.
_Request = tuple[tuple[str, str], list[int], list[int]]
_Answers = list[tuple[float, bool]]


@dataclass(frozen=True)
class _Shape:
    """
    Ranges of tokens; what a document's choices are is drawn.

    Attributes:
        contexts: Questions of each document that have nothing in common.
        speed, fewer: How many times faster it must be, with how many times fewer tokens.
    """

    name: str
    preamble: int
    question: tuple[int, int]
    choices: int
    answer: tuple[int, int]
    speed: float
    fewer: float = 0.0
    contexts: int = 1

    def requests(self, vocabulary: int) -> list[_Request]:
        draw = random.Random(self.name)

        def tokens(least: int, most: int) -> list[int]:
            return draw.choices(range(3, vocabulary), k=draw.randint(least, most))

        preamble = tokens(self.preamble, self.preamble)
        made: list[_Request] = []
        for _ in range(_DOCUMENTS):
            for _ in range(self.contexts):
                context = preamble + tokens(*self.question)
                made += [(("", ""), context, tokens(*self.answer)) for _ in range(self.choices)]
        return made


_SHAPES = (
    _Shape("6 examples, 5 short choices (truthfulqa_mc2)", 300, (15, 30), 5, (6, 16), 5.0, 10.0),
    _Shape("no examples, 4 long choices (hellaswag)", 0, (60, 100), 4, (15, 35), 1.8),
    _Shape("5 examples, 4 choices of one token (mmlu)", 400, (60, 120), 4, (1, 1), 3.0),
    _Shape("nothing shared (winogrande)", 0, (20, 30), 1, (5, 10), 0.97, contexts=2),
)


def evaluation(bench: Bench) -> list[Row]:
    """A row a shape."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rows(bench)
    finally:
        torch.set_num_threads(threads)


def _rows(bench: Bench) -> list[Row]:
    bench.progress.runs("making a Llama to ask")
    model, words = _model(bench)
    model.train(False).requires_grad_(False)
    theirs = HFLM(pretrained=model, tokenizer=words, batch_size=_BATCH)
    ours = LiveModel(model, words, _BATCH)
    for asked in (theirs, ours):  # the first pass of all is slower
        asked._loglikelihood_tokens([(("", ""), [3], [4])])
    return [_row(bench, shape, theirs, ours) for shape in _SHAPES]


def _row(bench: Bench, shape: _Shape, theirs: HFLM, ours: LiveModel) -> Row:
    bench.progress.runs(f"evaluation: {shape.name}")
    requests = shape.requests(ours.model.config.vocab_size)
    before = ours.cost
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(bench.repeat):
        truth = _timed(
            seconds["peer"], lambda: theirs._loglikelihood_tokens(requests, disable_tqdm=True)
        )
        found = _timed(seconds["ours"], lambda: ours._loglikelihood_tokens(requests))
    computed = (ours.cost.computed - before.computed) // bench.repeat
    whole = (ours.cost.lm_eval - before.lm_eval) // bench.repeat
    apart = max(abs(mine - his) for (mine, _), (his, _) in zip(found, truth, strict=True))
    greedy = all(mine == his for (_, mine), (_, his) in zip(found, truth, strict=True))
    ratio = min(seconds["peer"]) / min(seconds["ours"])
    fewer = whole / computed
    bar = f"{shape.speed:g} times faster" + (f", {shape.fewer:g} fewer" if shape.fewer else "")
    return Row(
        f"evaluation: {shape.name}",
        f"{min(seconds['ours']):.2f} s, {computed} tokens",
        f"{min(seconds['peer']):.2f} s, {whole} tokens lm-eval",
        f"{ratio:.2f} times faster, {fewer:.1f} fewer",
        bar,
        verdict(ratio >= shape.speed, fewer >= shape.fewer, apart <= _CLOSE, greedy),
        notes=(
            f"log-probabilities at most {apart:.1e} apart, greedy flags "
            f"{'the same' if greedy else 'not the same'}; {_DOCUMENTS} documents in float32, "
            f"{ours.model.num_parameters() / 1e6:.0f} million parameters, batches of {_BATCH}, "
            "seconds of CPU on one thread.",
        ),
        facts={**seconds, "computed": computed, "lm_eval": whole, "apart": apart},
    )


def _timed(seconds: list[float], work: Callable[[], _Answers]) -> _Answers:
    """Of CPU, not of the clock: what else runs on the machine is not in it."""
    began = time.process_time()
    found = work()
    seconds.append(time.process_time() - began)
    return found


def _model(bench: Bench) -> tuple[LlamaForCausalLM, AutoTokenizer]:
    """The one that the user has, else one of random weights."""
    if bench.language_model is not None:
        return _read(bench.language_model)
    config = _config(min(bench.parameters, _MOST_PARAMETERS))
    torch.manual_seed(0)
    tokenizer(bench.scratch / "words")
    return LlamaForCausalLM(config), AutoTokenizer.from_pretrained(bench.scratch / "words")


def _read(folder: Path) -> tuple[LlamaForCausalLM, AutoTokenizer]:
    """A folder of transformers' or of one GGUF file, which transformers reads with `gguf`."""
    found = sorted(folder.glob("*.gguf"))
    file = {"gguf_file": found[0].name} if found else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
    return model, AutoTokenizer.from_pretrained(folder, **file)


def _config(parameters: float) -> LlamaConfig:
    """SmolLM2-135M's proportions at about `parameters`."""
    hidden = max(64, round(576 * (parameters / 135e6) ** (1 / 3) / 64) * 64)
    vocabulary = round(49152 * hidden / 576)
    layer = hidden * hidden * (2 + 2 / 3 + 8)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=max(2, round((parameters - vocabulary * hidden) / layer)),
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 192),
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
