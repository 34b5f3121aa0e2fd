"""What a README.md's front matter declares: base models, relation, licence, tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.shown import shown
from kinship_daemon.foreign.yaml_text import parse_yaml

__all__ = ["Relation", "declared_bases", "front_matter", "relation", "tags"]

Relation = Literal["finetune", "adapter", "merge", "quantized"]

_LIMITS = Limits(nbytes=200_000, depth=30, items=50_000, string=50_000)
_LINE_END = re.compile(r"\r\n?|\n")
_QUANTISED = ("gguf", "gptq", "awq", "exl2", "bnb", "bitsandbytes", "mlx", "ggml", "quantized")


def front_matter(text: str) -> tuple[dict[str, Any], str | None]:
    """
    The YAML between the first two `---` lines, and what is wrong with it.

    Returns:
        ({}, None) if there is none; ({}, problem in words) if it cannot be read.
    """
    # Not by splitlines, which also breaks at what no other reader of a card takes for a line's end.
    lines = _LINE_END.split(text.removeprefix("\ufeff").lstrip())
    if lines[0].rstrip() != "---":
        return {}, None
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        return {}, "README.md opens a front matter that has no end"
    block = "\n".join(lines[1:end])
    try:
        # The line break: what is wrong is named by the README's own lines.
        # Strict: of two licences under one name the milder must not be taken by chance.
        data, problem = parse_yaml(f"\n{block}", _LIMITS, strict=True), None
    except Malformed as error:
        data, problem = None, shown(str(error))
    if problem is None and not isinstance(data, dict | None):
        problem = "it is not a mapping"
    if problem is not None:
        return {}, f"README.md's front matter cannot be read: {problem}"
    return {str(key): value for key, value in (data or {}).items()}, None


def declared_bases(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Base models in the order declared."""
    return _strings(card.get("base_model"))


def tags(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Lower case."""
    return tuple(tag.lower() for tag in _strings(card.get("tags")))


def relation(card: Mapping[str, Any], paths: Iterable[str] = ()) -> Relation:
    """
    How a repo relates to its base models: as declared, else guessed as the Hub guesses it.

    Args:
        paths: The repo's files.
    """
    declared = card.get("base_model_relation")
    for known in get_args(Relation):
        if declared == known:
            return known  # type: ignore[no-any-return]
    names = {path.rpartition("/")[2] for path in paths}
    labels = set(tags(card)) | {library.lower() for library in _strings(card.get("library_name"))}
    if "adapter_config.json" in names or "peft" in labels:
        return "adapter"
    if any(name.endswith(".gguf") for name in names) or labels & set(_QUANTISED):
        return "quantized"
    if len(declared_bases(card)) > 1 or labels & {"merge", "mergekit"}:
        return "merge"
    return "finetune"


def _strings(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(item.strip() for item in items if isinstance(item, str) and item.strip())
