"""Leaves: models whose weights are their own, and who rests on whom."""

from __future__ import annotations

from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["dependents", "first_leaf", "is_leaf", "leaves", "source"]


def is_leaf(model: Model) -> bool:
    """Whether its weights are its own: a fine-tune, or a merge that algebra cannot make."""
    from kinship_daemon.weights.methods.registry import is_span  # noqa: PLC0415 - imports torch

    return model.recipe is None or not is_span(model.recipe["method"])


def leaves(lineage: Lineage) -> dict[str, Model]:
    """
    Fine-tunes that are admitted, or that a living merge rests on, by weights identity.

    Of several with the same weights, the best source of the bytes.
    """
    merges = lineage.models("merge", ("admitted", "proposed"))
    above = _ancestors(lineage) if merges else {}
    needed = frozenset().union(*(above[merge.id] for merge in merges))
    found: dict[str, Model] = {}
    for leaf in lineage.models("finetune"):
        if leaf.weights is not None and (leaf.status == "admitted" or leaf.id in needed):
            known = found.get(leaf.weights)
            if known is None or (leaf.status == "admitted" and known.status != "admitted"):
                found[leaf.weights] = leaf
    return found


def dependents(lineage: Lineage, leaf: str) -> list[Model]:
    """
    Living merges that rest on a model's weights, in the order of generations.

    None where a copy of it is in use: that one's bytes will do.
    """
    weights = lineage.require(leaf).weights
    copies = () if weights is None else lineage.by_weights(weights)
    if any(copy.status == "admitted" and copy.id != leaf for copy in copies):
        return []
    names = {leaf, *(copy.id for copy in copies)}
    above = _ancestors(lineage)
    return [
        merge
        for merge in lineage.models("merge", ("admitted", "proposed"))
        if names & above[merge.id]
    ]


def _ancestors(lineage: Lineage) -> dict[str, frozenset[str]]:
    """Ids of everyone that each model descends from; parents come before their children."""
    found: dict[str, frozenset[str]] = {}
    for model in lineage.models():
        above = (found.get(parent, frozenset()) for parent in model.parents)
        found[model.id] = frozenset(model.parents).union(*above)
    return found


def source(lineage: Lineage, weights: str) -> Model:
    """The model that the bytes of these weights are best had from."""
    return lineage.by_weights(weights)[0]


def first_leaf(lineage: Lineage, model: Model) -> Model:
    """Whose tokenizer and templates a merge carries on: its first parent's, and so on up."""
    while model.recipe is not None:
        model = lineage.require(model.parents[0])
    return model
