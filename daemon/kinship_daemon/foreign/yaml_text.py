"""
YAML of strangers, such as the front matter of a README.

Read twice: once as events, which shows how deep, how many and how long things are and how often
what has an anchor is referred to, before anything is built; then by PyYAML's safe constructors.
"""

from __future__ import annotations

from typing import Any

import yaml

from kinship_daemon.foreign.limits import Limits, Malformed, check
from kinship_daemon.foreign.shown import shown

__all__ = ["parse_yaml"]

# libyaml's, ten times faster, where PyYAML was built with it.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST_NUMBER = 30  # characters; base 60 (1:2:3:...) takes a time that grows with their square


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


def parse_yaml(text: str, limits: Limits) -> Any:
    """
    What one YAML document says, in JSON's kinds of values; mappings have keys of any plain kind.

    Raises:
        Malformed: It is no YAML, or breaks the limits.
    """
    if len(text) > limits.nbytes:
        raise Malformed(f"too long: more than {limits.nbytes} characters")
    try:
        _check_events(text, limits)
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader with limits
    except Malformed:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Malformed(f"not YAML ({error.problem}{line})") from error
    except Exception as error:
        # Its constructors raise all kinds over a tag that a value does not suit: KeyError for
        # `!!bool y`, IndexError for `!!int ''`, AttributeError for `!!timestamp y`.
        raise Malformed("not YAML") from error
    check(value, limits)
    return value


def _check_events(text: str, limits: Limits) -> None:
    """Count what the document stands for, with everything that is referred to in its place."""
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
