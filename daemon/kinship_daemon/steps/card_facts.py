"""What a merge's model card says, gathered from the lineage."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from itertools import combinations
from typing import get_args

from kinship_daemon.context import Context
from kinship_daemon.evaluate.settings import harness_versions
from kinship_daemon.hub.card import CardFacts, GateFacts, Kin, Node, Result, Source
from kinship_daemon.hub.licence import most_restrictive
from kinship_daemon.steps.assemblies import coefficients, kinship_matrix, leaf_models
from kinship_daemon.steps.leaves import is_leaf
from kinship_daemon.steps.scores import scores
from kinship_daemon.weights.checkpoint import DTYPES
from kinship_daemon.weights.mergekit import collapsed_yaml, several_yaml, to_yaml
from kinship_daemon.weights.recipe import Recipe
from kinship_storage.records import Model, Split

__all__ = ["card_facts"]


def card_facts(context: Context, model: Model, repo: str) -> CardFacts:
    """
    Everything the card says about a merge that passed the gate.

    Under the same settings and versions the same merge has the same card.
    """
    family = context.lineage.ancestors(model)
    leaves = [each for each in family if each.recipe is None]
    assert model.recipe is not None
    recipe = Recipe.from_json(model.recipe)
    base = _name(context.base)
    terms = most_restrictive(
        {each.id: each.license for each in (context.base, *leaves)},
        context.config.publish.allow_licenses,
    )
    return CardFacts(
        name=model.id,
        repo=repo,
        base=base,
        licence=terms.licence or "unknown",
        base_models=tuple(dict.fromkeys(_on_hub(context, model))),
        parents=model.parents,
        why=model.why or "",
        results=_results(context, model),
        gate=_gate(context, model),
        family=tuple(
            Node(name=m.id, kind=m.kind, generation=m.generation, parents=m.parents)
            for m in (*family, model)
        ),
        metric=context.config.kinship.metric,
        kinships=_kinships(
            context, [*leaves, *(context.lineage.require(name) for name in model.parents)]
        ),
        sources=tuple(_source(context, each) for each in (context.base, *leaves)),
        made=to_yaml(recipe, _names(context, model), base, _dtype(context)),
        collapsed=_from_leaves(context, model),
        version=version("kinship-daemon"),
        settings=_settings(context),
        hub_url=context.hub.name if "://" in context.hub.name else None,
    )


def _from_leaves(context: Context, model: Model) -> str:
    """
    The merge as it can be made again from fine-tunes alone.

    One document where algebra collapses it; otherwise one for each merge that it rests on, too.
    """
    parts: dict[str, str] = {}
    last = _document(context, model, _dtype(context), parts)
    return several_yaml(parts, last) if parts else last


def _document(context: Context, model: Model, dtype: str, parts: dict[str, str]) -> str:
    """The YAML of one merge; those of the merges that it names are added to `parts` before it."""
    base = _name(context.base)
    assert model.recipe is not None
    if is_leaf(model):
        parents = [context.lineage.require(name) for name in model.parents]
        called = {each.id: _part(context, each, parts) for each in parents}
        return to_yaml(Recipe.from_json(model.recipe), called, base, dtype)
    combination = coefficients(context, model)
    leaves = leaf_models(context, combination)
    names = {weights: _part(context, leaf, parts) for weights, leaf in leaves.items()}
    return collapsed_yaml(context.ledger, combination, names, base, dtype)


def _part(context: Context, model: Model, parts: dict[str, str]) -> str:
    """What to call a model in the YAML: a fine-tune by its repo, a merge by its own document."""
    if model.recipe is None:
        adapter = any(
            file.path == "adapter_config.json" for file in context.lineage.files(model.id)
        )
        return f"{_name(context.base)}+{_name(model)}" if adapter else _name(model)
    if model.id not in parts:
        # A leaf is rounded when it is written; what only passes through is not.
        parts[model.id] = _document(
            context, model, _dtype(context) if is_leaf(model) else "float32", parts
        )
    return model.id


def _name(model: Model) -> str:
    return model.repo or model.id


def _names(context: Context, model: Model) -> dict[str, str]:
    """Parents as others can find them: by repo, published or not yet by the name in the lineage."""
    found = {}
    for name in model.parents:
        publication = context.lineage.publication(name)
        found[name] = publication.repo if publication else _name(context.lineage.require(name))
    return found


def _on_hub(context: Context, model: Model) -> list[str]:
    """The nearest ancestors that stand on the hub."""
    found = []
    for name in model.parents:
        parent, publication = context.lineage.require(name), context.lineage.publication(name)
        if publication is not None:
            found.append(publication.repo)
        elif parent.recipe is None:
            found.append(_name(parent))
        else:
            found += _on_hub(context, parent)
    return found


def _results(context: Context, model: Model) -> tuple[Result, ...]:
    return tuple(
        Result(
            model=each.id,
            task=row.task,
            split=row.split,
            metric=row.metric,
            score=row.score,
            stderr=row.stderr,
            n=len(row.samples),
            task_version=row.task_version,
        )
        for each in (model, *(context.lineage.require(name) for name in model.parents))
        for split in get_args(Split)
        for row in scores(context, each, split)
    )


def _gate(context: Context, model: Model) -> GateFacts | None:
    verdict = context.lineage.gate(model.id, context.settings.fingerprint("validation"))
    if verdict is None:
        return None
    return GateFacts(
        passed=verdict.passed,
        parent=verdict.parent,
        gain=verdict.gain,
        low=verdict.low,
        high=verdict.high,
        confidence=float(verdict.settings["confidence"]),
        n=verdict.n,
        reason=verdict.reason,
    )


def _kinships(context: Context, models: list[Model]) -> tuple[Kin, ...]:
    known = {model.id: model for model in models}
    names = sorted(known)
    values = kinship_matrix(context, [known[n] for n in names], context.config.kinship.metric)
    places = combinations(range(len(names)), 2)
    return tuple(Kin(names[i], names[j], values[i][j]) for i, j in places)


def _source(context: Context, model: Model) -> Source:
    return Source(
        repo=_name(model),
        revision=model.revision or "",
        licence=model.license,
        files=tuple((file.path, file.sha256) for file in context.lineage.files(model.id)),
    )


def _dtype(context: Context) -> str:
    """The dtype that most of the base's tensors have, as mergekit and torch call it."""
    counts = Counter(info.dtype for info in context.base_checkpoint.tensors.values())
    return str(DTYPES[counts.most_common(1)[0][0]]).removeprefix("torch.")


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
