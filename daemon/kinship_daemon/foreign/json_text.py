"""JSON of strangers: config.json, indices, tokenizers, headers, and what a hub answers."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

import msgspec

from kinship_daemon.foreign.limits import Limits, Malformed, check

__all__ = ["parse_as", "parse_json"]

_Kind = TypeVar("_Kind")

_DIGITS = 40  # of a whole number: tokenizers say 10 ** 30 for "no limit"
_FLOAT_DIGITS = 400  # of any other: the smallest float has some 330 after its point


def parse_json(text: bytes | str, limits: Limits, *, strict: bool = False) -> Any:
    """
    What a JSON text says.

    Args:
        strict: As other parsers read it: a name stands once in an object, NaN is no number.

    Raises:
        Malformed: It is no JSON, or breaks the limits. Where it is no JSON at all the cause is
            a json.JSONDecodeError or UnicodeDecodeError.
    """
    if len(text) > limits.nbytes:
        raise Malformed(f"too long: more than {limits.nbytes} bytes")
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        _check_count(decoded, limits)
        value = json.loads(
            decoded,
            parse_int=_whole,
            parse_float=_float,
            parse_constant=_no_number if strict else None,
            object_pairs_hook=_once if strict else None,
        )
    except RecursionError:
        raise Malformed(f"nested more than {limits.depth} deep") from None
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise Malformed(f"not JSON ({error.msg}, line {error.lineno})") from error
    check(value, limits)
    return value


def parse_as(content: bytes, kind: type[_Kind], limits: Limits) -> _Kind:
    """
    What a JSON text says, as far as it is asked for; nothing is built of the rest.

    Args:
        kind: A msgspec.Struct, or a type made of plain ones.
        limits: Of these the bytes; and `items` for lists as well as for keys.

    Raises:
        Malformed: It is no JSON, is of another kind, or breaks the limits.
    """
    if len(content) > limits.nbytes:
        raise Malformed(f"too long: more than {limits.nbytes} bytes")
    if max(content.count(b":"), content.count(b"[")) > limits.items:
        raise Malformed(f"holds more than {limits.items} items")
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8") from error
    except msgspec.ValidationError as error:
        raise Malformed(f"not of the kind that is needed ({error})") from error
    except msgspec.DecodeError as error:
        raise Malformed(f"not JSON ({error})") from error


def _check_count(text: str, limits: Limits) -> None:
    """Before anything is built of it. Marks within texts count, so there may be twice as many."""
    if len(text) > limits.items and sum(map(text.count, ",:[")) > 2 * limits.items:
        raise Malformed(f"holds more than {limits.items} items")


def _whole(digits: str) -> int | float:
    if len(digits) > _DIGITS:
        raise Malformed(f"holds a number of {len(digits)} digits")
    # -0 is a float to other parsers.
    return -0.0 if digits == "-0" else int(digits)


def _float(digits: str) -> float:
    if len(digits) > _FLOAT_DIGITS:
        raise Malformed(f"holds a number of {len(digits)} digits")
    return float(digits)


def _no_number(word: str) -> NoReturn:
    raise Malformed(f"{word} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a name appears twice")
    return found
