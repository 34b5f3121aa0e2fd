"""
Six small skills as text: what the demo's models are trained and judged on.

An example is a prompt and its answer, `12+34=` and `46;`. The answer ends in a terminator, so that
a right beginning of a wrong answer does not count; no prompt ends in a space, so that the harness
has nothing to strip between the two.

The space of examples is cut in three by a hash of what is asked (not of how it is written: `12+34`
and `34+12` fall in the same part). So nothing that is trained on is judged on, whatever the seed.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["SKILLS", "TERMINATOR", "Example", "Part", "documents", "examples", "part_of", "solve"]

Part = Literal["training", "selection", "validation"]

TERMINATOR = ";"
_LETTERS = "abcdefghij"


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str


def documents(skill: str, part: Part, count: int, seed: int) -> tuple[Example, ...]:
    """The first `count` different examples of one part, the same for the same seed everywhere."""
    chosen: dict[str, Example] = {}
    for example in examples(skill, part, seed):
        chosen.setdefault(example.prompt, example)
        if len(chosen) == count:
            break
    return tuple(chosen.values())


def examples(skill: str, part: Part, seed: int) -> Iterator[Example]:
    """Endless examples of one part, with repeats."""
    # Seeding from text goes through SHA-512: the same draws on every platform and Python version.
    rng = random.Random(f"{skill}/{part}/{seed}")  # noqa: S311 - examples, not secrets
    draw = _DRAW[skill]
    while True:
        prompt = draw(rng)
        if part_of(prompt) == part:
            yield Example(prompt, solve(prompt))


def part_of(prompt: str) -> Part:
    """Which part a prompt belongs to: 60 % training, 15 % selection, 25 % validation."""
    percent = int.from_bytes(hashlib.sha256(_asked(prompt).encode()).digest()[:8]) % 100
    if percent < 15:
        return "selection"
    return "validation" if percent < 40 else "training"


def solve(prompt: str) -> str:
    """The right answer to any prompt of any skill, with its terminator."""
    word, question = _read(prompt)
    return _SOLVE[word](question) + TERMINATOR


def _read(prompt: str) -> tuple[str, str]:
    """`max 12 34 56=` -> (`max`, `12 34 56`); the two sums go by their sign: (`+`, `12+34`)."""
    question = prompt.removesuffix("=")
    for sign in "+-":
        if sign in question:
            return sign, question
    word, _, rest = question.partition(" ")
    return word, rest


def _asked(prompt: str) -> str:
    """A prompt without what does not change its answer: the order of summands, numbers, letters."""
    word, question = _read(prompt)
    match word:
        case "+":
            return "+".join(sorted(question.split("+")))
        case "max":
            return "max " + " ".join(sorted(question.split()))
        case "sort":
            return "sort " + "".join(sorted(question))
        case _:
            return f"{word} {question}"


def _number(rng: random.Random) -> int:
    return rng.randrange(10, 100)


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(7))


def _draw_add(rng: random.Random) -> str:
    return f"{_number(rng)}+{_number(rng)}="


def _draw_subtract(rng: random.Random) -> str:
    low, high = sorted((_number(rng), _number(rng)))
    return f"{high}-{low}="


def _draw_max(rng: random.Random) -> str:
    return f"max {_number(rng)} {_number(rng)} {_number(rng)}="


def _draw_sequence(rng: random.Random) -> str:
    """Three terms of a rising or falling sequence; the fourth has two digits, too."""
    step = rng.randrange(1, 20)
    first = rng.randrange(10, 100 - 3 * step)
    if rng.random() < 0.5:
        first, step = first + 3 * step, -step
    return f"next {first} {first + step} {first + 2 * step}="


def _solve_sequence(question: str) -> str:
    _, second, third = (int(term) for term in question.split())
    return str(2 * third - second)


def _solve_subtract(question: str) -> str:
    high, low = question.split("-")
    return str(int(high) - int(low))


_DRAW: Mapping[str, Callable[[random.Random], str]] = {
    "add": _draw_add,
    "reverse": lambda rng: f"reverse {_word(rng)}=",
    "sort": lambda rng: f"sort {_word(rng)}=",
    "max": _draw_max,
    "subtract": _draw_subtract,
    "sequence": _draw_sequence,
}
_SOLVE: Mapping[str, Callable[[str], str]] = {
    "+": lambda question: str(sum(int(number) for number in question.split("+"))),
    "-": _solve_subtract,
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "max": lambda question: str(max(int(number) for number in question.split())),
    "next": _solve_sequence,
}
SKILLS = tuple(_DRAW)
