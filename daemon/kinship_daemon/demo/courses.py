"""How a demo model learns: what it is shown, for how long, and the loop that shows it."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import MistralConfig, MistralForCausalLM

from kinship_daemon.demo.build import CONFIG
from kinship_daemon.demo.skills import SKILLS, Example, examples
from kinship_daemon.demo.text import IGNORED, encode

__all__ = ["FINETUNES", "FOUNDATION", "Course", "accuracy", "model_of", "study", "weights_of"]

BATCH = 128  # examples a step
_WARM_UP = 20  # steps


@dataclass(frozen=True)
class Course:
    """One training run."""

    name: str
    shares: Mapping[str, float]  # of each skill in a batch, in any unit
    steps: int
    rate: float  # AdamW's learning rate, after the warm-up
    settle: float  # the last part of the steps, over which the rate falls to a tenth
    seed: int

    @property
    def own_share(self) -> float:
        """The share, from 0 to 1, of the skill that the course is named after."""
        return self.shares[self.name] / sum(self.shares.values())


# Arithmetic is harder than letters and gets more of the base's time. The rate falls at the end:
# otherwise the first thing that every fine-tune learns is the same quietening down, and all look
# like close kin.
FOUNDATION = Course(
    name="base",
    shares={"add": 2, "reverse": 0.6, "sort": 0.6, "max": 1.5, "subtract": 2, "sequence": 2},
    steps=450,
    rate=3e-3,
    settle=0.4,
    seed=1,
)


def _finetune(skill: str, own_share: float, steps: int, rate: float) -> Course:
    """Mostly its own skill; the rest evenly of the others, so that it does not forget them."""
    other_share = (1 - own_share) / (len(SKILLS) - 1)
    return Course(
        name=skill,
        shares={other: own_share if other == skill else other_share for other in SKILLS},
        steps=steps,
        rate=rate,
        settle=0.3,
        seed=100 + SKILLS.index(skill),
    )


# The one that is held back has seen more of everything: it must be worth having when the others
# have long been merged.
FINETUNES = tuple(
    _finetune(skill, own_share=0.7, steps=240, rate=1e-3)
    if skill == "sequence"
    else _finetune(skill, own_share=0.8, steps=180, rate=8e-4)
    for skill in SKILLS
)


def study(model: MistralForCausalLM, course: Course, step: Callable[[], None]) -> None:
    """Trains a model in place, float32 on the CPU; `step` is called after every step."""
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    batches = _batches(course)
    model.train()
    for done in range(course.steps):
        for group in optimiser.param_groups:
            group["lr"] = _rate(course, done)
        tokens, targets = encode(next(batches))
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step()
    model.train(mode=False)


def _rate(course: Course, done: int) -> float:
    rate = course.rate * min(1.0, (done + 1) / _WARM_UP)
    left = (course.steps - done) / (course.settle * course.steps)
    return rate * min(1.0, 0.1 + 0.9 * left)


def _batches(course: Course) -> Iterator[list[Example]]:
    rng = random.Random(course.seed)  # noqa: S311 - examples, not secrets
    drawn = {skill: examples(skill, "training", course.seed) for skill in course.shares}
    shares = list(course.shares.values())
    while True:
        skills = rng.choices(list(course.shares), shares, k=BATCH)
        yield [next(drawn[skill]) for skill in skills]


@torch.inference_mode()
def accuracy(model: MistralForCausalLM, documents: tuple[Example, ...]) -> float:
    """The share of documents whose whole answer, terminator too, is what the model would write."""
    tokens, targets = encode(documents)
    written = model(input_ids=tokens[:, :-1], use_cache=False).logits.argmax(dim=-1)
    right = (written == targets[:, 1:]) | (targets[:, 1:] == IGNORED)
    return float(right.all(dim=1).double().mean())


def model_of(weights: Mapping[str, Tensor] | None = None) -> MistralForCausalLM:
    """A float32 model with these weights; with the base's random first ones if there are none."""
    settings = {key: value for key, value in CONFIG.items() if key not in {"dtype", "model_type"}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**settings))
    if weights is not None:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.train(mode=False)
    return model


def weights_of(model: MistralForCausalLM) -> dict[str, Tensor]:
    """The model's tensors as its repo has them: rounded to bfloat16 once."""
    return {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
