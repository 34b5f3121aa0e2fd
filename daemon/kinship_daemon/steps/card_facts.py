"""What a merge's model card says, gathered from the lineage."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from itertools import combinations
from typing import get_args

from kinship_daemon.daemon import Daemon
from kinship_daemon.evaluate.records import Split, harness_versions
from kinship_daemon.hub.card import CardFacts, GateFacts, Kin, Node, Result, Source
from kinship_daemon.hub.licence import most_restrictive
from kinship_daemon.steps.assemblies import coefficients, is_leaf, leaf_models
from kinship_daemon.steps.scoring import scores
from kinship_daemon.weights.checkpoint import DTYPES
from kinship_daemon.weights.mergekit import collapsed_yaml, several_yaml, to_yaml
from kinship_daemon.weights.recipe import Recipe
from kinship_storage.records import Model

__all__ = ["card_facts"]


def card_facts(d: Daemon, model: Model, repo: str) -> CardFacts:
    """
    Everything the card says about a merge that passed the gate.

    Under the same settings and versions the same merge has the same card.
    """
    family = d.lineage.ancestors(model)
    leaves = [each for each in family if each.recipe is None]
    assert model.recipe is not None
    recipe = Recipe.from_json(model.recipe)
    base = _name(d.base)
    terms = most_restrictive(
        {each.id: each.license for each in (d.base, *leaves)}, d.config.publish.allow_licenses
    )
    return CardFacts(
        name=model.id,
        repo=repo,
        base=base,
        licence=terms.licence or "unknown",
        base_models=tuple(dict.fromkeys(_on_hub(d, model))),
        parents=model.parents,
        why=model.why or "",
        results=_results(d, model),
        gate=_gate(d, model),
        family=tuple(
            Node(name=m.id, kind=m.kind, generation=m.generation, parents=m.parents)
            for m in (*family, model)
        ),
        metric=d.config.kinship.metric,
        kinships=_kinships(d, [*leaves, *(d.lineage.require(name) for name in model.parents)]),
        sources=tuple(_source(d, each) for each in (d.base, *leaves)),
        made=to_yaml(recipe, _names(d, model), base, _dtype(d)),
        collapsed=_from_leaves(d, model),
        version=version("kinship-daemon"),
        settings=_settings(d),
        hub_url=d.hub.name if "://" in d.hub.name else None,
    )


def _from_leaves(d: Daemon, model: Model) -> str:
    """
    The merge as it can be made again from fine-tunes alone.

    One document where algebra collapses it; otherwise one for each merge that it rests on, too.
    """
    parts: dict[str, str] = {}
    last = _document(d, model, _dtype(d), parts)
    return several_yaml(parts, last) if parts else last


def _document(d: Daemon, model: Model, dtype: str, parts: dict[str, str]) -> str:
    """The YAML of one merge; those of the merges that it names are added to `parts` before it."""
    base = _name(d.base)
    assert model.recipe is not None
    if is_leaf(model):
        parents = [d.lineage.require(name) for name in model.parents]
        called = {each.id: _part(d, each, parts) for each in parents}
        return to_yaml(Recipe.from_json(model.recipe), called, base, dtype)
    combination = coefficients(d, model)
    leaves = leaf_models(d, combination)
    names = {weights: _part(d, leaf, parts) for weights, leaf in leaves.items()}
    return collapsed_yaml(d.ledger, combination, names, base, dtype)


def _part(d: Daemon, model: Model, parts: dict[str, str]) -> str:
    """What to call a model in the YAML: a fine-tune by its repo, a merge by its own document."""
    if model.recipe is None:
        adapter = any(file.path == "adapter_config.json" for file in d.lineage.files(model.id))
        return f"{_name(d.base)}+{_name(model)}" if adapter else _name(model)
    if model.id not in parts:
        # A leaf is rounded when it is written; what only passes through is not.
        parts[model.id] = _document(d, model, _dtype(d) if is_leaf(model) else "float32", parts)
    return model.id


def _name(model: Model) -> str:
    return model.repo or model.id


def _names(d: Daemon, model: Model) -> dict[str, str]:
    """Parents as others can find them: by repo, published or not yet by the name in the lineage."""
    found = {}
    for name in model.parents:
        publication = d.lineage.publication(name)
        found[name] = publication.repo if publication else _name(d.lineage.require(name))
    return found


def _on_hub(d: Daemon, model: Model) -> list[str]:
    """The nearest ancestors that stand on the hub."""
    found = []
    for name in model.parents:
        parent, publication = d.lineage.require(name), d.lineage.publication(name)
        if publication is not None:
            found.append(publication.repo)
        elif parent.recipe is None:
            found.append(_name(parent))
        else:
            found += _on_hub(d, parent)
    return found


def _results(d: Daemon, model: Model) -> tuple[Result, ...]:
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
        for each in (model, *(d.lineage.require(name) for name in model.parents))
        for split in get_args(Split)
        for row in scores(d, each, split)
    )


def _gate(d: Daemon, model: Model) -> GateFacts | None:
    verdict = d.lineage.gate(model.id)
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


def _kinships(d: Daemon, models: list[Model]) -> tuple[Kin, ...]:
    names = sorted({model.id for model in models})
    known = d.lineage.kinships(d.config.kinship.metric)
    return tuple(Kin(a, b, known.get((a, b))) for a, b in combinations(names, 2))


def _source(d: Daemon, model: Model) -> Source:
    return Source(
        repo=_name(model),
        revision=model.revision or "",
        licence=model.license,
        files=tuple((file.path, file.sha256) for file in d.lineage.files(model.id)),
    )


def _dtype(d: Daemon) -> str:
    """The dtype that most of the base's tensors have, as mergekit and torch call it."""
    counts = Counter(info.dtype for info in d.base_checkpoint.tensors.values())
    return str(DTYPES[counts.most_common(1)[0][0]]).removeprefix("torch.")


def _settings(d: Daemon) -> dict[str, str]:
    settings = d.settings
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
