"""Words for what was refused: which, what it was, and what would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

__all__ = ["complaint", "nearest"]


def nearest(word: str, words: Iterable[str]) -> str:
    """`; nearest: x` for the known word most like this one; nothing if none is like it."""
    known = {name.lower(): name for name in sorted(words, reverse=True)}
    close = get_close_matches(word.lower(), known, n=1)
    return f"; nearest: {known[close[0]]}" if close else ""


def complaint(model: type[BaseModel], error: ValidationError) -> str:
    """One line per refused setting, joined: `k is 1; it must be an integer of at least 2`."""
    properties = model.model_json_schema().get("properties", {})
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"][:1]) or "the settings"
        allowed = _allowed(properties.get(key, {}))
        if problem["type"] in {"value_error", "assertion_error"} or not allowed:
            lines.append(f"{key}: {problem['msg']}")
        else:
            lines.append(f"{key} is {problem['input']!r}; it must be {allowed}")
    return "; ".join(dict.fromkeys(lines))  # a union's branches complain about one value each


def _allowed(schema: Mapping[str, Any]) -> str:
    """The values a property's JSON schema allows, in words; empty if it says nothing simple."""
    if "anyOf" in schema:
        parts = [_allowed(part) for part in schema["anyOf"]]
        return " or ".join(parts) if all(parts) else ""
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    kinds = {
        "integer": "an integer",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    kind = kinds.get(schema.get("type", ""), "")
    return f"{kind} {_range(schema)}".strip() if kind else ""


def _range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    bounds = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    return " and ".join(
        f"{word} {schema[name]:g}" for name, word in bounds.items() if name in schema
    )
