"""A YAML as one merge, or as several of which later ones use earlier ones by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kinship_daemon.errors import UsageError
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.yaml_text import parse_documents

__all__ = ["Document", "Unsupported", "in_order", "parse", "references", "renamed"]

# Where mergekit looks for a model, and what it takes there for something else.
_MODEL_KEYS = frozenset({"base_model", "model", "source", "tokenizer_source"})
_NO_MODELS = frozenset({"base", "union"})
_LIMITS = Limits(nbytes=1_000_000, items=100_000)


class Unsupported(UsageError):
    """We cannot do that; mergekit, perhaps, can."""


@dataclass(frozen=True)
class Document:
    """
    One merge of a YAML.

    Attributes:
        name: What other merges of the same YAML call its result; None for the last one.
        text: Its own YAML, without that name.
    """

    name: str | None
    text: str


def parse(text: str) -> dict[str, Any]:
    """
    One YAML document as a mapping.

    Raises:
        UsageError: It is none.
    """
    values = _load(text)
    if len(values) != 1 or not isinstance(values[0], dict):
        raise UsageError("not a merge recipe: expected merge_method, models and parameters")
    return values[0]


def in_order(text: str) -> list[Document]:
    """
    The merges of a YAML, each after those that it uses.

    A YAML of one merge is handed on as it stands. Of several, all but one have a `name`; that one
    comes last, and is what the YAML is for. Where all have one, it is the one that no other uses.

    Raises:
        UsageError: It is no YAML, two merges have one name, several have no name or are not used,
            or two use each other.
    """
    values = _load(text)
    if len(values) == 1:
        return [Document(None, text)]
    if not values or not all(isinstance(value, dict) for value in values):
        raise UsageError("not a merge recipe: expected merge_method, models and parameters")
    names = [value.pop("name", None) for value in values]
    for name in names:
        _check_name(name, names)
    if None not in names:
        used = {reference for value in values for reference in _named(value)}
        last = [name for name in names if name not in used]
        names = [None if [name] == last else name for name in names]
    if names.count(None) != 1:
        raise UsageError("of several merges in one YAML, all but the last one made have a name")
    return [
        Document(name, yaml.safe_dump(value, sort_keys=False))
        for name, value in _sorted(dict(zip(names, values, strict=True)))
    ]


def references(text: str) -> tuple[str, ...]:
    """The models that a merge names, in the order of its YAML, each once; adapters apart."""
    found = dict.fromkeys(part for name in _named(parse(text)) for part in name.split("+"))
    return tuple(found)


def renamed(document: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The same merge with other names for its models."""

    def called(reference: str) -> str:
        return "+".join(names[part] for part in reference.split("+"))

    renamed: dict[str, Any] = _walk(document, called)
    return renamed


def _load(text: str) -> list[Any]:
    try:
        return [_plain(value) for value in parse_documents(text, _LIMITS)]
    except Malformed as error:
        raise UsageError(f"not a merge recipe: {error}") from error


def _plain(value: Any, key: str = "") -> Any:
    """A model that is given as a mapping, as mergekit takes it, by its name."""
    if isinstance(value, dict):
        if key in _MODEL_KEYS and _is_reference(value):
            return _one_name(key, value)
        return {k: v if k == "parameters" else _plain(v, str(k)) for k, v in value.items()}
    return [_plain(item, key) for item in value] if isinstance(value, list) else value


def _is_reference(value: Mapping[str, Any]) -> bool:
    """Not what stands for a token, which is at a `source`, too."""
    return "path" in value or ("model" in value and "kind" not in value)


def _one_name(key: str, value: Mapping[str, Any]) -> str:
    """`path@revision+adapter` of {model: {path, revision}, lora: ...} or {path, revision}."""
    whole = value if "model" in value else {"model": value}
    if unknown := {str(k) for k, v in whole.items() if v is not None} - {"model", "lora"}:
        raise Unsupported(f"{key}: {', '.join(sorted(unknown))} of a model is not supported")
    parts = []
    for each in (whole["model"], whole.get("lora")):
        part = {"path": each} if isinstance(each, str) else each
        if part is None:
            continue
        if not isinstance(part, dict) or not isinstance(part.get("path"), str):
            raise UsageError(f"{key}: expected a model's path, not {each!r}")
        revision = part.get("revision")
        parts.append(part["path"] if revision is None else f"{part['path']}@{revision}")
    return "+".join(parts)


def _check_name(name: object, names: Sequence[object]) -> None:
    if name is None:
        return
    # It becomes a folder's.
    if not isinstance(name, str) or not name or name.startswith(".") or {*name} & {*"/\\+@\0"}:
        raise UsageError(f"name: expected a plain name for a merge, not {name!r}")
    if names.count(name) > 1:
        raise UsageError(f"name: two merges are called {name}")


def _sorted(merges: Mapping[str | None, dict[str, Any]]) -> Iterator[tuple[str | None, Any]]:
    """Each after those that it names, the one without a name last."""
    waiting, ready = list(merges), set[str | None]()
    while waiting:
        free = [
            name
            for name in waiting
            if not ({*_named(merges[name])} & {*merges}) - ready
            and (name is not None or len(waiting) == 1)
        ]
        if not free:
            raise UsageError(f"these merges use each other: {', '.join(map(str, waiting))}")
        yield free[0], merges[free[0]]
        ready.add(free[0])
        waiting.remove(free[0])


def _named(document: object) -> list[str]:
    found = []

    def note(reference: str) -> str:
        found.append(reference)
        return reference

    try:
        _walk(document, note)
    except RecursionError as error:
        raise UsageError("not a merge recipe: a part of it contains itself") from error
    return found


def _walk(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """A copy of a YAML's value in which every reference to a model is changed."""
    if isinstance(value, Mapping):
        # What stands under `parameters` are numbers, and under `tokens` a token may be a key.
        return {
            k: v if k == "parameters" else _walk(v, change, "" if key == "tokens" else str(k))
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_walk(item, change, key) for item in value]
    if isinstance(value, str) and key in _MODEL_KEYS and value not in _NO_MODELS:
        return change(value)
    return value
