"""What is wrong in a configuration, in words that say what would work."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from kinship_daemon.evaluate.settings import Task

__all__ = ["explained"]

# How keys begin whose values are never shown.
_SECRETS = ("web.token", "notify.use.")
# Keys of older versions, and what to write instead.
_REPLACED = {
    "gate.confidence": (
        "the gate holds the share of luck among all that is ever published; "
        "write `gate.fdr: 0.10` instead"
    )
}
# What pydantic says of a value of the wrong type, in plain words.
_PLAIN = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "must be keys with values"),
    "string_type": "must be text",
}


def explained(problem: ErrorDetails, config: type[BaseModel]) -> str:
    """
    One of pydantic's findings as one line; an unknown key with the nearest known one.

    Args:
        config: What the whole configuration is.
    """
    key = ".".join(str(part) for part in problem["loc"])
    if key in _REPLACED:
        return f"{key} is no more: {_REPLACED[key]}"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1], config)
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0)
        return f"unknown key '{key}'; nearest: '{near[0]}'; known: {', '.join(known)}"
    got = "" if key.startswith(_SECRETS) else f" (got {problem['input']!r})"
    said = _PLAIN.get(problem["type"]) or _lower(problem["msg"])
    return f"{key}: {said}{got}"


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return message[0].lower() + message[1:]


def _known_keys(location: Sequence[str | int], config: type[BaseModel]) -> list[str]:
    model = config
    for part in location:
        if isinstance(part, int):
            model = Task
        elif part not in {"selection", "validation"}:
            annotation = model.model_fields[part].annotation
            model = annotation  # type: ignore[assignment]  # sections are models, all of them
    return list(model.model_fields)
