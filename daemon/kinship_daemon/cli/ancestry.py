"""`kinship --sample --ancestry`: who is no descendant of the base, and who is a merge of whom."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kinship_daemon.cli.figures import short
from kinship_daemon.weights.sample.ancestry import composition, departure
from kinship_daemon.weights.sample.sketch import sketch
from kinship_daemon.weights.sample.take import BaseSample, Sample

__all__ = ["origin_lines", "origins"]


def origins(samples: Mapping[str, Sample], base: BaseSample) -> list[dict[str, Any]]:
    """Of each model, what --format json says: how far from the base, and which others are in it."""
    vectors = {name: sketch(sample) for name, sample in samples.items()}
    return [_origin(name, sample, base, vectors) for name, sample in samples.items()]


def origin_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each model."""
    names = dict(
        zip((each["model"] for each in found), short([e["model"] for e in found]), strict=True)
    )
    for each in found:
        yield f"{names[each['model']]}: {_standing(each)}; {_making(each, names)}"


def _origin(
    name: str, sample: Sample, base: BaseSample, vectors: Mapping[str, bytes]
) -> dict[str, Any]:
    far = departure(sample, base)
    made = composition(vectors[name], {n: v for n, v in vectors.items() if n != name})
    return {
        "model": name,
        "likeness": _plain(far.likeness),
        "distance": _plain(far.distance),
        "matrices": far.matrices,
        "unlike": far.unlike,
        "stranger": far.stranger,
        "parts": [asdict(part) for part in made.parts],
        "rest": _plain(made.rest),
        "merge": made.is_merge(),
    }


def _standing(origin: Mapping[str, Any]) -> str:
    if not origin["matrices"]:
        return "no matrix to compare with the base's"
    figures = f"cosine with the base {origin['likeness']:.3f}"
    if origin["unlike"]:
        figures += f", {origin['unlike']} of {origin['matrices']} matrices unlike its"
    return f"no descendant ({figures})" if origin["stranger"] else figures


def _making(origin: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if origin["rest"] is None:
        return "no different from the base"
    if not origin["parts"]:
        return "not made of the others"
    parts = ", ".join(
        f"{part['coefficient']:.3f} ± {part['error']:.1g} {names[part['model']]}"
        for part in origin["parts"]
    )
    kind = "a merge" if origin["merge"] else "related"
    return f"{kind}: {parts}; rest {100 * origin['rest']:.1f} %"


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
