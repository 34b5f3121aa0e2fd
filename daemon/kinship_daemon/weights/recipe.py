"""
Recipes, and their collapse to coefficients over the base and the leaves.

A span merge, and a merge of such merges, is per tensor one linear combination of b and the
deltas: w = base * b + sum_i deltas_i * d_i. What a method needs to know about its parents (norms,
angles) are inner products, which follow from the ledger; no weights are read.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.methods.method import MergeMethod, Parameter, needs_inputs
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.parameters import check_setting, per_tensor

__all__ = [
    "NEGLIGIBLE",
    "Coefficients",
    "Recipe",
    "base_itself",
    "check",
    "combine",
    "leaf",
    "resolve",
]

# Coefficients are float64: below this share of the others, one is their rounding.
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Recipe:
    """
    How a merge is made.

    Attributes:
        method: Name of an installed merge method.
        parents: Names, in the order the method takes them.
        parameters: A setting (see `parameters`) by name; where the method takes one per model, a
            list of settings in the order of the parents, or one setting for all.
    """

    method: str
    parents: tuple[str, ...]
    parameters: Mapping[str, Any]

    def identity(self, parents: Sequence[str]) -> str:
        """
        Name the merge by what determines its weights.

        Args:
            parents: Weights identities, in the order of `self.parents`.
        """
        facts = {
            "method": self.method,
            "parameters": _canonical(self.parameters),
            "parents": list(parents),
        }
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return "recipe:" + hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "method": self.method,
            "parents": list(self.parents),
            "parameters": _plain(self.parameters),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Recipe":
        """
        Read what `to_json` gave.

        Raises:
            UsageError: It is not a recipe.
        """
        match value:
            case {"method": str(name), "parents": list(parents), "parameters": dict(parameters)}:
                if all(isinstance(parent, str) for parent in parents):
                    return cls(name, tuple(parents), parameters)
        raise UsageError(f"not a recipe (method, parents, parameters): {str(value)[:200]}")


@dataclass(frozen=True, eq=False)
class Coefficients:
    """
    A model as a combination of the base and the leaves, per tensor of the ledger (T of them).

    Attributes:
        rows: Leaf identities, sorted, whatever their order in the ledger.
        base: Coefficient of b, (T,) float64.
        deltas: Coefficients of d_i, (T, rows) float64.
    """

    rows: tuple[str, ...]
    base: Tensor
    deltas: Tensor


def leaf(ledger: Ledger, identity: str) -> Coefficients:
    """
    A checkpoint of the ledger, or the base itself where the identity is the base's.

    Raises:
        UsageError: The ledger has no such row.
    """
    if identity == ledger.base:
        return base_itself(ledger)
    if identity not in ledger.rows:
        raise UsageError(f"the ledger has no row of the weights {identity}; add them first")
    ones = torch.ones(len(ledger.names), dtype=torch.float64)
    return Coefficients((identity,), ones, ones[:, None])


def base_itself(ledger: Ledger) -> Coefficients:
    """The base: no deltas."""
    tensors = len(ledger.names)
    return Coefficients(
        (),
        torch.ones(tensors, dtype=torch.float64),
        torch.zeros(tensors, 0, dtype=torch.float64),
    )


def check(recipe: Recipe, names: Sequence[str], *, texts: bool = False) -> None:
    """
    Check that a recipe can be carried out on a model of these tensors, before anything is read.

    Args:
        texts: Whether there are texts of each parent's task.

    Raises:
        UsageError: The method, a parameter or the number of parents is wrong.
    """
    merge, _ = resolve(recipe, names)
    if needs_inputs(merge) and not texts:
        raise UsageError(
            f"{recipe.method} needs texts of each parent's task, which only "
            "`kinship-daemon merge --texts` takes"
        )


def combine(ledger: Ledger, recipe: Recipe, parents: Sequence[Coefficients]) -> Coefficients:
    """
    The child as one combination of the base and the leaves.

    The result depends on the recipe and its leaves alone, to the last bit: not on what else is in
    the ledger.

    `parents` are in the order of the recipe's.

    Raises:
        UsageError: The method, a parameter or the number of parents is wrong.
    """
    merge, parameters = resolve(recipe, ledger.names)
    if merge.kind != "span":
        raise UsageError(f"{recipe.method} is no span method: its child has to be made first")
    if len(parents) != len(recipe.parents):
        raise UsageError(f"a recipe of {len(recipe.parents)} parents was given {len(parents)}")
    rows = tuple(sorted({row for parent in parents for row in parent.rows}))
    models = _over(rows, parents)
    factors = merge(_dots(ledger, rows, models, needed=merge.uses_dots), parameters)
    child = (factors[:, None, :] @ models)[:, 0]
    used = child[:, 1:].any(0)
    kept = tuple(row for row, keep in zip(rows, used.tolist(), strict=True) if keep)
    return Coefficients(kept, child[:, 0], child[:, 1:][:, used])


def _dots(ledger: Ledger, rows: Sequence[str], models: Tensor, *, needed: bool) -> Tensor:
    """Inner products of full weights over {b, d of rows}; zeros where nobody looks at them."""
    if not needed:
        return models.new_zeros(len(models), models.shape[1], models.shape[1])
    # Over {b, d_1 .. d_n}: without the ledger's first row, ones.
    places = torch.tensor([1, *(ledger.rows.index(row) + 2 for row in rows)])
    gram = ledger.gram.index_select(1, places).index_select(2, places)
    return models @ gram @ models.transpose(1, 2)


def _over(rows: tuple[str, ...], parents: Sequence[Coefficients]) -> Tensor:
    """The full weights of {b, parents} over {b, d of rows}, (T, 1 + parents, 1 + rows)."""
    tensors = len(parents[0].base)
    models = torch.zeros(tensors, 1 + len(parents), 1 + len(rows), dtype=torch.float64)
    models[:, 0, 0] = 1
    for index, parent in enumerate(parents, start=1):
        models[:, index, 0] = parent.base
        places = torch.tensor([1 + rows.index(row) for row in parent.rows], dtype=torch.int64)
        models[:, index].index_copy_(1, places, parent.deltas)
    return models


def resolve(recipe: Recipe, names: Sequence[str]) -> tuple[MergeMethod, dict[str, Tensor]]:
    """The method, and all its parameters as (T,), or (T, parents) where they are per model."""
    merge = method(recipe.method)
    fewest, most = merge.parents
    given = len(recipe.parents)
    if given < fewest or (most is not None and given > most):
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most or 'any number'}"
        raise UsageError(f"{recipe.method} takes {wanted} parents, not {given}")
    known = [parameter.name for parameter in merge.parameters]
    for name in recipe.parameters:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise UsageError(
                f"{recipe.method} has no parameter {name!r}{hint}; it has {', '.join(known)}"
            )
    return merge, {p.name: _resolve_one(recipe, p, names) for p in merge.parameters}


def _resolve_one(recipe: Recipe, parameter: Parameter, names: Sequence[str]) -> Tensor:
    setting = recipe.parameters.get(parameter.name, parameter.default)
    if setting is None:
        raise UsageError(f"{recipe.method} needs the parameter {parameter.name!r}")
    boolean = isinstance(parameter.default, bool)
    if not parameter.per_model:
        return _values(parameter.name, setting, names, boolean=boolean)
    count = len(recipe.parents)
    if not isinstance(setting, list | tuple):
        setting = [setting] * count
    if len(setting) != count:
        raise UsageError(
            f"{recipe.method}: {parameter.name} has {len(setting)} values for {count} parents"
        )
    columns = [_values(parameter.name, one, names, boolean=boolean) for one in setting]
    return torch.stack(columns, 1)


def _values(name: str, setting: object, names: Sequence[str], *, boolean: bool) -> Tensor:
    """As `per_tensor` has it, soon for plain numbers and for settings that came before."""
    check_setting(name, setting)
    if isinstance(setting, bool | int | float):
        value = bool(setting) if boolean else float(setting)  # an int may exceed torch's
        return torch.full((len(names),), value, dtype=torch.bool if boolean else torch.float64)
    text = json.dumps(_plain(setting))
    # A copy: a method may do with its parameters what it likes.
    return _varying(name, text, tuple(names), boolean).clone()


@lru_cache(maxsize=256)
def _varying(name: str, setting: str, names: tuple[str, ...], boolean: bool) -> Tensor:
    """As `per_tensor` has it, of a setting as JSON, which tells 1 from 1.0 and from true."""
    return per_tensor(name, json.loads(setting), names, boolean=boolean)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _canonical(value: object) -> object:
    """Plain values in which 1 and 1.0 are the same."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
