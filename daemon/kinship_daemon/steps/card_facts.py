"""What a merge's model card says, gathered from the lineage."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from itertools import combinations
from typing import get_args

from kinship_daemon.context import Context
from kinship_daemon.evaluate.scoring import looks
from kinship_daemon.evaluate.settings import harness_versions
from kinship_daemon.evaluate.verdict import few_documents, life_words, verdict_words
from kinship_daemon.hub.card import CardFacts
from kinship_daemon.hub.licence import most_restrictive
from kinship_daemon.steps.assemblies import coefficients, kinship_matrix, leaf_models
from kinship_daemon.steps.leaves import is_leaf
from kinship_daemon.steps.recipes import Recipes, called
from kinship_daemon.steps.scores import parents_of, scores
from kinship_daemon.weights.mergekit import lacks
from kinship_storage.records import Model, Score, Split

__all__ = ["card_facts", "factors_table"]


def card_facts(context: Context, model: Model, repo: str) -> CardFacts:
    """
    Everything the card says about a merge that passed the gate.

    Under the same settings and versions the same merge has the same card.
    """
    family = context.lineage.ancestors(model)
    leaves = [each for each in family if each.recipe is None]
    parents = parents_of(context, model)
    recipes = Recipes.of(context)
    licences = {each.id: each.license for each in (context.base, *leaves)}
    terms = most_restrictive(licences, context.config.publish.allow_licenses)
    sources = (context.base, *leaves)
    return CardFacts(
        model=model,
        repo=repo,
        base=context.base.name,
        licence=terms.licence or "unknown",
        base_models=tuple(dict.fromkeys(_on_hub(context, model))),
        scores={each.id: _scores(context, each) for each in (model, *parents)},
        documents=_documents(context),
        verdict=_verdict(context, model),
        family=tuple(family),
        called={each.id: called(context.lineage, each) for each in family},
        metric=context.config.kinship.metric,
        kinships=_kinships(context, [*leaves, *parents]),
        sources=tuple((each, tuple(context.lineage.files(each.id))) for each in sources),
        made=recipes.made(model),
        collapsed=recipes.from_leaves(model),
        lacking=_lacking([model, *family]),
        factors=() if is_leaf(model) else _factors(context, model),
        version=version("kinship-daemon"),
        settings=_settings(context),
        hub_url=context.hub.name if "://" in context.hub.name else None,
    )


def _lacking(family: Iterable[Model]) -> tuple[str, ...]:
    """Methods that mergekit does not have, of merges that do not collapse to one it has."""
    made = {each.recipe["method"] for each in family if each.recipe and is_leaf(each)}
    return tuple(sorted(name for name in made if lacks(name)))


def _verdict(context: Context, model: Model) -> str | None:
    """The gate's words, with the other model called as the card calls it, and what they mean."""
    gate = context.lineage.gate(model.id, context.settings.fingerprint("validation"))
    if gate is None:
        return None
    if gate.p is None or gate.alpha is None:
        return gate.reason  # of the gate before schema 4
    words = verdict_words(
        gate.passed,
        gate.gain,
        (gate.low, gate.high),
        gate.n,
        against=called(context.lineage, context.lineage.require(gate.against)),
        p=gate.p,
        alpha=gate.alpha,
        min_gain=gate.settings["min_gain"],
        share=gate.settings.get("share", 1.0),
    )
    few = few_documents(scores(context, model, "validation", samples=False))
    return ". ".join(part for part in (words, life_words(gate), few) if part)


def factors_table(context: Context, model: Model) -> str | None:
    """
    Every tensor's factors as CSV; None of a merge that is no combination of leaves.

    A line per tensor: its name, the factor of the base, and of every leaf's delta.
    """
    if is_leaf(model):
        return None
    made_of = coefficients(context, model)
    leaves = leaf_models(context.lineage, made_of)
    lines = [",".join(["tensor", context.base.id, *(leaf.id for leaf in leaves.values())])]
    for name, base, deltas in zip(
        context.ledger.names, made_of.base.tolist(), made_of.deltas.tolist(), strict=True
    ):
        lines.append(",".join([name, f"{base:.9g}", *(f"{factor:.9g}" for factor in deltas)]))
    return "\n".join(lines) + "\n"


# What tensors are for, by parts of their names; the first that is found says it.
_GROUPS = (
    ("norms", ("norm", "ln_", "layernorm")),
    ("embeddings", ("embed", "wte", "wpe")),
    ("head", ("lm_head",)),
    ("attention", ("attn", "attention")),
    ("feed-forward", ("mlp", "feed_forward", "experts", "ffn")),
)


def _factors(context: Context, model: Model) -> tuple[tuple[str, str, float], ...]:
    """Mean factor of each leaf's delta over the tensors of a group."""
    made_of = coefficients(context, model)
    leaves = leaf_models(context.lineage, made_of)
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(context.ledger.names):
        groups.setdefault(_group(name), []).append(place)
    return tuple(
        (group, leaf.id, float(made_of.deltas[places, column].mean()))
        for group, places in sorted(groups.items())
        for column, leaf in enumerate(leaves.values())
    )


def _group(tensor: str) -> str:
    found = (group for group, marks in _GROUPS if any(mark in tensor.lower() for mark in marks))
    return next(found, "others")


def _scores(context: Context, model: Model) -> tuple[Score, ...]:
    return tuple(
        row for split in get_args(Split) for row in scores(context, model, split, samples=False)
    )


def _documents(context: Context) -> dict[tuple[Split, str], int]:
    settings = context.evaluators.known(context.settings)
    return {
        (split, task): len(ids)
        for split in get_args(Split)
        for task, ids in looks(settings, split)[-1].documents.items()
    }


def _on_hub(context: Context, model: Model) -> list[str]:
    """The nearest ancestors that stand on the hub."""
    found = []
    for name in model.parents:
        parent, publication = context.lineage.require(name), context.lineage.publication(name)
        if publication is not None:
            found.append(publication.repo)
        elif parent.recipe is None:
            found.append(parent.name)
        else:
            found += _on_hub(context, parent)
    return found


def _kinships(context: Context, models: list[Model]) -> tuple[tuple[str, str, float | None], ...]:
    known = {model.id: model for model in models}
    names = sorted(known)
    values = kinship_matrix(context, [known[n] for n in names], context.config.kinship.metric)
    places = combinations(range(len(names)), 2)
    return tuple((names[i], names[j], values[i][j]) for i, j in places)


def _settings(context: Context) -> dict[str, str]:
    settings = context.settings
    return {
        "harness": harness_versions(),
        "seed": str(settings.seed),
        "few-shot examples": ", ".join(
            f"{spec.task} {'default' if spec.num_fewshot is None else spec.num_fewshot}"
            for spec in settings.selection
        ),
        "documents per task": "all" if settings.limit is None else f"at most {settings.limit}",
        "batch size": str(settings.batch_size),
        "dtype": settings.dtype,
        "device": settings.resolved_device(),
        "chat template": "applied" if settings.apply_chat_template else "not applied",
    }
