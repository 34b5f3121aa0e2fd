"""`kinship --sample --ancestry`: who is no descendant of the base, and who is a merge of whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kinship_daemon.ancestry import ancestry_words, composition_facts, departure_facts
from kinship_daemon.cli.figures import short
from kinship_daemon.weights.sample.ancestry import composition, departure
from kinship_daemon.weights.sample.sketch import sketch
from kinship_daemon.weights.sample.take import BaseSample, Sample

__all__ = ["origin_lines", "origins"]


def origins(samples: Mapping[str, Sample], base: BaseSample) -> list[dict[str, Any]]:
    """Of each model, what --format json says: how far from the base, and which others are in it."""
    vectors = {name: sketch(sample) for name, sample in samples.items()}
    found = []
    for name, sample in samples.items():
        far = departure(sample, base)
        made = composition(vectors[name], {n: v for n, v in vectors.items() if n != name})
        found.append({"model": name, **departure_facts(far), **composition_facts(made)})
    return found


def origin_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each model."""
    models = [each["model"] for each in found]
    names = dict(zip(models, short(models), strict=True))
    for each in found:
        yield f"{names[each['model']]}: {ancestry_words(each, names)}"
