"""
YAML of others: the front matter of a README, a task file, a config.

Read twice: once as events, which shows how deep, how many and how long things are and how often
what has an anchor is referred to, before anything is built; then by PyYAML's safe constructors.
"""

from __future__ import annotations

from typing import Any

import yaml

from kinship_daemon.foreign.limits import Limits, Malformed, check
from kinship_daemon.foreign.shown import shown

__all__ = ["Function", "parse_documents", "parse_yaml"]

# libyaml's, ten times faster, where PyYAML was built with it.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST_NUMBER = 30  # characters; base 60 (1:2:3:...) takes a time that grows with their square
_MERGE = "tag:yaml.org,2002:merge"


class Function(str):
    """What a task file writes behind `!function`: the name of code that it would have run."""

    __slots__ = ()


class _Loader(_Safe):  # type: ignore[misc]
    """The safe constructors, for numbers of a length that numbers have, and dates as text."""

    def number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > _LONGEST_NUMBER:
            raise Malformed(f"holds a number of {len(node.value)} characters")
        kind = node.tag.rpartition(":")[2]
        value: int | float = getattr(self, f"construct_yaml_{kind}")(node)
        return value

    def date(self, node: yaml.ScalarNode) -> str:
        self.construct_yaml_timestamp(node)  # 2024-13-45 is none
        return str(node.value)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.date)


class _Task(_Loader):
    """With lm-eval's tag, of which only the name is read."""

    def function(self, node: yaml.Node) -> Function:
        return Function(self.construct_scalar(node))


_Task.add_constructor("!function", _Task.function)


class _Strict(_Loader):
    """Of two values under one name, none is taken."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise Malformed(f"the key '{shown(key.value, 80)}' stands twice, line {line}")
            seen.add((key.tag, key.value))
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def parse_yaml(text: str, limits: Limits, *, strict: bool = False, functions: bool = False) -> Any:
    """
    What one YAML document says, in JSON's kinds of values; mappings have keys of any plain kind.

    Args:
        strict: A key stands once in a mapping.
        functions: It may name code as lm-eval's task files do; the names come as `Function`.

    Raises:
        Malformed: It is no YAML, or breaks the limits.
    """
    found = _parsed(text, limits, _Task if functions else _Strict if strict else _Loader)
    if len(found) > 1:
        raise Malformed("not YAML of one document")
    return found[0] if found else None


def parse_documents(text: str, limits: Limits) -> list[Any]:
    """
    What all documents of a YAML stream say; the limits are those of all together.

    Raises:
        Malformed: As `parse_yaml`.
    """
    return _parsed(text, limits, _Loader)


def _parsed(text: str, limits: Limits, loader: type[_Loader]) -> list[Any]:
    if len(text) > limits.nbytes:
        raise Malformed(f"too long: more than {limits.nbytes} characters")
    try:
        _check_events(text, limits)
        found = list(yaml.load_all(text, Loader=loader))
    except Malformed:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Malformed(f"not YAML ({error.problem}{line})") from error
    except Exception as error:
        # Its constructors raise all kinds over a tag that a value does not suit: KeyError for
        # `!!bool y`, IndexError for `!!int ''`, AttributeError for `!!timestamp y`.
        raise Malformed("not YAML") from error
    for value in found:
        check(value, limits)
    return found


def _check_events(text: str, limits: Limits) -> None:
    """Count what the documents stand for, with everything that is referred to in its place."""
    sizes: dict[str, int] = {}
    # Of every list or mapping that is open: its anchor, and how many items it has so far.
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Safe):
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, 1))
            if anchor is not None:
                sizes.pop(anchor, None)
            if len(open_) - 1 > limits.depth:
                raise Malformed(f"nested more than {limits.depth} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise Malformed(f"*{shown(anchor, 40)} names nothing, or what it is a part of")
            size = sizes[anchor]
        if size and anchor is not None and not isinstance(event, yaml.AliasEvent):
            sizes[anchor] = size
        outer, so_far = open_[-1]
        open_[-1] = outer, so_far + size
        if so_far + size > limits.items:
            raise Malformed(f"holds more than {limits.items} items")
