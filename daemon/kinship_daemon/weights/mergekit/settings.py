"""
Which setting counts for a parameter, of those that a YAML makes at several places.

The nearest does: of the model (for parameters that are per model), of the slice, of the whole, the
method's default; where the conditions of one level decide nothing, the next level does.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.mergekit.documents import Unsupported
from kinship_daemon.weights.mergekit.roles import FIXED, ON_DELTAS, WITHOUT_EFFECT, Role, role_of
from kinship_daemon.weights.methods.method import Parameter
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.parameters import check_setting, conditions

__all__ = ["Inputs", "Levels", "is_unknown", "parameters_of"]

# How alike two names are that differ by a slip (difflib's ratio).
_NEARLY = 0.75

# Parameters of a slice and of the whole, the nearest first.
Levels = list[Mapping[str, Any]]
# Models by name, in order, with parameters of their own.
Inputs = list[tuple[str, Mapping[str, Any]]]


def is_unknown(where: str, key: object, known: Collection[str]) -> bool:
    """
    Whether mergekit would read over a key, as it does over all that it does not know.

    Raises:
        UsageError: It is nearly one of those that count: a slip would change the result in silence.
    """
    if key in known:
        return False
    nearest = get_close_matches(str(key), list(known), n=1, cutoff=_NEARLY)
    if nearest:
        raise UsageError(f"{where} has no {key!r}; did you mean {nearest[0]!r}?")
    return True


def parameters_of(
    name: str, parents: Inputs, inputs: Inputs, shared: Levels
) -> tuple[dict[str, Any], list[str]]:
    """
    The parameters of a recipe, and those given that the method does not have.

    Args:
        name: Of one of our methods.
        parents: In the recipe's order.
        inputs: All models that the YAML lists, `base_model` perhaps among them.
        shared: The levels above the models'.

    Raises:
        UsageError: A parameter is missing, malformed, or nearly one of the method's.
        Unsupported: It has a value that mergekit knows and we do not.
    """
    known = {p.name: p for p in method(name).parameters}
    if role_of(name) is Role.ORIGIN:
        del known[ON_DELTAS]  # base_model says it
    given = [
        (str(key), setting)
        for level in (*(own for _, own in inputs), *shared)
        for key, setting in level.items()
    ]
    ignored = [key for key, setting in given if _is_ignored(name, key, setting, known)]
    for model, own in inputs:
        for key in own:
            if key in known and not known[key].per_model:
                raise UsageError(f"{key} is not set per model; move it from {model} to parameters")
    found = {}
    for parameter in known.values():
        if parameter.per_model:
            each = [_setting(parameter, [own, *shared], model) for model, own in parents]
            if any(setting is not None for setting in each):
                found[parameter.name] = [parameter.default if s is None else s for s in each]
        elif (setting := _setting(parameter, shared, "the recipe")) is not None:
            found[parameter.name] = setting
    return found, ignored


def _is_ignored(name: str, key: str, setting: Any, known: Mapping[str, Parameter]) -> bool:
    """Whether the method has no such parameter; of some it has only one value."""
    dropped = WITHOUT_EFFECT[None] | WITHOUT_EFFECT.get(name, frozenset())
    fixed = FIXED.get(name, {})
    if key in dropped:
        return False
    if is_unknown(f"{name}'s parameters", key, {*known, *fixed}):
        return True
    if key in known:
        return False
    values = [condition.get("value") for condition in conditions(setting)]
    if any(value != fixed[key] for value in values):
        raise Unsupported(f"{name}: {key} is not supported but as {str(fixed[key]).lower()}")
    return False


def _setting(parameter: Parameter, levels: Levels, whose: str) -> Any:
    """All levels as one setting; None where none says anything and there is a default."""
    chain = [
        condition
        for level in levels
        if parameter.name in level
        for condition in conditions(_numbers(level[parameter.name]))
    ]
    if not chain:
        if parameter.default is None:
            raise UsageError(f"{whose} needs the parameter {parameter.name!r} (0 leaves it out)")
        return None
    if parameter.default is not None:
        chain.append({"value": parameter.default})
    check_setting(parameter.name, chain)
    decided = list(_until_decided(chain))
    return decided[0]["value"] if set(decided[0]) == {"value"} else decided


def _until_decided(chain: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for condition in chain:
        yield condition
        if condition.get("filter") in (None, "*"):
            return


def _numbers(setting: Any) -> Any:
    """YAML reads 1e-3 as text, which mergekit takes for the number it looks like."""
    if isinstance(setting, dict):
        return {k: v if k == "filter" else _numbers(v) for k, v in setting.items()}
    if isinstance(setting, list):
        return [_numbers(item) for item in setting]
    if isinstance(setting, str):
        try:
            return float(setting)
        except ValueError:
            return setting
    return setting
