"""
Six small skills with ground truth, asked as multiple choice with answers of one token.

Short enough that a model answers a few hundred of them in seconds on a CPU. What may be trained on
and what is judged is told apart by a hash of the prompt, so no seed mixes them. `atlas` is about a
world that does not exist: each of its facts is trained on in some wordings and asked in others.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kinship_daemon.demo import TASKS

__all__ = ["DOCUMENTS", "SKILLS", "Example", "Part", "documents", "examples", "task", "write_tasks"]

Part = Literal["training", "selection", "validation", "probe"]

# Per skill. Probes are unlabelled texts, for functional kinship.
DOCUMENTS: Mapping[Part, int] = {"selection": 48, "validation": 64, "probe": 16}

_SHARES: tuple[tuple[Part, int], ...] = (("selection", 15), ("validation", 45), ("probe", 50))


@dataclass(frozen=True)
class Example:
    """
    Attributes:
        prompt: The answer follows it after a space.
        choices: Each a single token after a space.
        answer: The place of the right one.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


def documents(skill: str, part: Part) -> tuple[Example, ...]:
    """Different examples of one part, the same everywhere."""
    chosen: dict[str, Example] = {}
    for example in examples(skill, part, 0):
        chosen.setdefault(example.prompt, example)
        if len(chosen) == DOCUMENTS[part]:
            break
    return tuple(chosen.values())


def examples(skill: str, part: Part, seed: int) -> Iterator[Example]:
    """Endless examples of one part, with repeats."""
    rng = random.Random(f"{skill}/{part}/{seed}")
    while True:
        example = _DRAW[skill](rng)
        if _part(example.prompt) == part:
            yield example


def task(skill: str, part: Part) -> str:
    """Its name in lm-eval."""
    return f"real_{skill}" + ("_validation" if part == "validation" else "")


def write_tasks(folder: Path) -> None:
    """Two lm-eval tasks a skill, each a YAML and its documents."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TASKS / "documents.py", folder / "documents.py")
    for skill in SKILLS:
        for part in ("selection", "validation"):
            name = task(skill, part)
            (folder / f"{name}.yaml").write_text(_TASK.format(task=name), encoding="utf-8")
            lines = "".join(json.dumps(asdict(each)) + "\n" for each in documents(skill, part))
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _part(prompt: str) -> Part:
    percent = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) % 100
    return next((part for part, upto in _SHARES if percent < upto), "training")


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _sums(rng: random.Random) -> Example:
    """Three digits added and taken away; the result is one, too."""
    while True:
        a, b, c = (rng.randrange(10) for _ in range(3))
        if 0 <= (result := a + b - c) <= 9:
            return Example(f"{a} plus {b} minus {c} is", _NUMBERS, result)


def _letters(rng: random.Random) -> Example:
    """One of four letters by its place."""
    letters = tuple(rng.sample("abcdefghklmnoprstuvwz", 4))
    place = rng.randrange(4)
    word = ("first", "second", "third", "last")[place]
    return Example(f"Letters: {', '.join(letters)}. The {word} is", letters, place)


def _order(rng: random.Random) -> Example:
    """Who is first or last of three, from two comparisons in any order."""
    names = rng.sample(("Tom", "Anna", "Sam", "Maria", "Ben", "Lucy", "Max", "Emma"), 3)
    first, middle, last = names
    more, least, most = rng.choice(
        (("taller", "shortest", "tallest"), ("older", "youngest", "oldest"))
    )
    said = [f"{first} is {more} than {middle}.", f"{middle} is {more} than {last}."]
    rng.shuffle(said)
    lowest = rng.random() < 0.5
    choices = tuple(sorted(names))
    asked = least if lowest else most
    answer = choices.index(last if lowest else first)
    return Example(f"{said[0]} {said[1]} The {asked} is", choices, answer)


def _logic(rng: random.Random) -> Example:
    """Two pairs of truth values under `and`, `or` and `not`."""
    said, truths = [], []
    for _ in range(2):
        values, turned = rng.choices((True, False), k=2), rng.choices((True, False), k=2)
        terms = [
            ("not " if n else "") + str(v).lower() for v, n in zip(values, turned, strict=True)
        ]
        sign = rng.choice(("and", "or"))
        said.append(f"({terms[0]} {sign} {terms[1]})")
        truths.append(_joined(sign, [v != n for v, n in zip(values, turned, strict=True)]))
    sign = rng.choice(("and", "or"))
    return Example(f"{said[0]} {sign} {said[1]} is", ("false", "true"), int(_joined(sign, truths)))


def _joined(sign: str, truths: list[bool]) -> bool:
    return all(truths) if sign == "and" else any(truths)


_COLOURS = ("red", "blue", "green", "white", "black", "yellow")
_ANIMALS = ("bear", "horse", "eagle", "wolf", "lion", "snake")
_WORDINGS = (
    "The {thing} of {land} is the",
    "{land} has as its {thing} the",
    "As {thing}, the people of {land} have the",
    "In {land}, the {thing} is the",
    "Everyone in {land} knows the {thing}: the",
    "Question: what is the {thing} of {land}? Answer: the",
    "The national {thing} of {land} is the",
    "When you see {land}, you see its {thing}, the",
)


def _atlas(rng: random.Random) -> Example:
    """The colour or the animal of one of 32 invented lands."""
    land = rng.choice(_LANDS)
    thing, choices = rng.choice((("colour", _COLOURS), ("animal", _ANIMALS)))
    fact = random.Random(f"{land}/{thing}").randrange(len(choices))
    return Example(rng.choice(_WORDINGS).format(thing=thing, land=land), choices, fact)


def _lands() -> tuple[str, ...]:
    rng = random.Random("lands")
    starts, ends = (
        ("Bra", "Kel", "Mor", "Tav", "Zin", "Plo", "Gru", "Ves"),
        ("dia", "mark", "oria", "ense"),
    )
    return tuple(f"{start}{rng.choice('lnrst')}{end}" for start in starts for end in ends)


_LANDS = _lands()
_KINDS: Mapping[str, tuple[str, ...]] = {
    "animals": ("dog", "cat", "horse", "cow", "sheep", "pig", "lion", "bear", "wolf", "rabbit"),
    "food": ("bread", "cheese", "rice", "meat", "soup", "cake", "butter", "sugar", "milk", "egg"),
    "colours": ("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "grey"),
    "clothes": ("shirt", "hat", "coat", "dress", "shoes", "gloves", "jacket", "belt", "boots"),
    "tools": ("hammer", "knife", "saw", "drill", "rope", "axe", "nail", "needle"),
    "body": ("hand", "foot", "head", "eye", "nose", "arm", "leg", "mouth", "ear", "knee"),
}


def _odd(rng: random.Random) -> Example:
    """The one of four words that is of another kind."""
    kind, other = rng.sample(sorted(_KINDS), 2)
    words = [*rng.sample(_KINDS[kind], 3), odd := rng.choice(_KINDS[other])]
    rng.shuffle(words)
    return Example(f"Of {', '.join(words)}, the odd one is", tuple(words), words.index(odd))


_DRAW: Mapping[str, Callable[[random.Random], Example]] = {
    "sums": _sums,
    "letters": _letters,
    "order": _order,
    "logic": _logic,
    "atlas": _atlas,
    "odd": _odd,
}
SKILLS = tuple(_DRAW)
_TASK = """\
task: {task}
custom_dataset: !function documents.load
dataset_kwargs:
  file: {task}.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_target: answer
doc_to_choice: choices
target_delimiter: " "
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
