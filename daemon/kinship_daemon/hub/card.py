"""The model card of a merge: everything that a reader needs to trust it, or to make it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from kinship_daemon.hub.licence import hub_fields
from kinship_storage.records import File, Model, Score, Split

__all__ = ["CardFacts", "interval", "model_card"]

_Z = 1.959963984540054  # 95 % of a normal distribution lies within this many standard errors


@dataclass(frozen=True)
class CardFacts:
    """
    All that the card says. Nothing else goes in, no date either: equal facts, equal text.

    Attributes:
        model: The merge.
        repo: Where it is published.
        base: Repo of the common base.
        licence: Normalised, see `licence.most_restrictive`.
        base_models: Repos for the front matter: parents that can be found on the hub, and in
            place of an unpublished parent its own ancestors that can.
        scores: The merge's and every parent's, by id, on the documents that each was asked.
        documents: How many there are in all, by split and task.
        verdict: The gate's, in words.
        family: All its ancestors.
        called: What models are called where others can find them, by id: their repo, or the id of
            a merge that is not published.
        metric: What the kinships are measured in.
        kinships: (id, id, value) of pairs; None where it is undefined.
        sources: Every checkpoint whose bytes went in, and its weight files.
        factors: (group of tensors, leaf, mean factor) of a merge that is one combination of leaves.
        made, collapsed: mergekit's YAML.
        lacking: Methods of `collapsed` that mergekit does not have.
        made_file, collapsed_file, factors_file: Names of the files that hold them all, in the same
            repo.
        settings: Evaluation settings in the order to show them.
        version: kinship-daemon's.
        hub_url: Where repos can be looked at, such as https://huggingface.co; None for a folder.
    """

    model: Model
    repo: str
    base: str
    licence: str
    base_models: tuple[str, ...]
    scores: Mapping[str, Sequence[Score]]
    verdict: str | None
    family: tuple[Model, ...]
    called: Mapping[str, str]
    metric: str
    kinships: tuple[tuple[str, str, float | None], ...]
    sources: tuple[tuple[Model, tuple[File, ...]], ...]
    made: str
    collapsed: str
    version: str
    factors: tuple[tuple[str, str, float], ...] = ()
    lacking: tuple[str, ...] = ()
    made_file: str = "recipe.yml"
    collapsed_file: str = "mergekit_config.yml"
    factors_file: str = "factors.csv"
    documents: Mapping[tuple[Split, str], int] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    hub_url: str | None = None

    def name(self, model: str) -> str:
        """What to call a model in the card."""
        return self.called.get(model, model)


def model_card(facts: CardFacts) -> str:
    """README.md: front matter as the Hub wants it, then the card."""
    sections = [
        f"# {facts.repo.rpartition('/')[2]}",
        _introduction(facts),
        "## Results",
        _verdict(facts),
        _results(facts, "validation"),
        _results(facts, "selection"),
        "## Family tree",
        _tree(facts),
        "## Kinship",
        _kinships(facts),
        "## Recipe",
        _recipe(facts),
        "## Sources",
        _sources(facts),
        "## Evaluation settings",
        _settings(facts),
        "## Make it again",
        _again(facts),
    ]
    front = yaml.safe_dump(
        _front_matter(facts), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return f"---\n{front}---\n\n" + "\n\n".join(text for text in sections if text) + "\n"


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    front: dict[str, Any] = {
        **hub_fields(facts.licence),
        "base_model": list(facts.base_models),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "mergekit", "kinship-daemon"],
    }
    if results := [_index_entry(facts, row) for row in _of(facts, facts.model.id)]:
        name = facts.repo.rpartition("/")[2]
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _index_entry(facts: CardFacts, row: Score) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"type": row.task, "name": row.task, "split": row.split},
        "metrics": [
            {
                "type": row.metric,
                "value": round(row.score, 6),
                "name": f"{row.metric} ({_asked(facts, row)} {row.split} documents)",
            }
        ],
    }


def _of(facts: CardFacts, model: str, split: Split | None = None) -> list[Score]:
    """One model's scores, validation first, then by task."""
    rows = [row for row in facts.scores.get(model, ()) if split in {None, row.split}]
    return sorted(rows, key=lambda row: (row.split != "validation", row.task, row.metric))


def _introduction(facts: CardFacts) -> str:
    parents = [facts.name(parent) for parent in facts.model.parents]
    return (
        f"A merge of {_and(parents)}, descendants of {_link(facts, facts.base)}, "
        "made without training by kinship-daemon, which merges models by *model kinship*, the "
        "similarity of their weight changes (arXiv 2410.12613).\n\n"
        f"Why this merge was tried: {_cell(facts.model.why or '')}"
    )


def _verdict(facts: CardFacts) -> str:
    if facts.verdict is None:
        return "It was published without a gate."
    return (
        "The gate holds a merge against all that it must be better than, document by document, "
        f"until the answers decide. It {facts.verdict}."
    )


def _results(facts: CardFacts, split: Split) -> str:
    """Child against every parent, a row per task, with 95 % intervals."""
    models = [facts.model.id, *facts.model.parents]
    scores = {
        (model, row.task, row.metric): row for model in models for row in _of(facts, model, split)
    }
    own = _of(facts, facts.model.id, split)
    if not own:
        return ""
    rows = [
        [_versioned(row), row.metric, _asked(facts, row)]
        + [_interval(scores.get((model, row.task, row.metric)), row.n) for model in models]
        for row in own
    ]
    title = {
        "validation": "Validation documents, which only the gate has seen:",
        "selection": "Selection documents, by which parents are chosen (so these flatter):",
    }[split]
    parents = [facts.name(parent) for parent in facts.model.parents]
    header = ["task", "metric", "documents", f"**{facts.model.id}**", *parents]
    return f"{title}\n\n{_table(header, rows)}\n\n{_meaning(facts, split, scores.values())}"


def _meaning(facts: CardFacts, split: Split, rows: Iterable[Score]) -> str:
    """What the numbers of a table are."""
    said = "Score, and its 95 % interval."
    if all(row.n >= facts.documents.get((split, row.task), row.n) for row in rows):
        return said
    why = {
        "validation": (
            "as soon as they decide the gate asks no more, so a gain that passed early is on "
            "average a little larger here than on all of them, and intervals do not allow for that"
        ),
        "selection": "who could hardly be among the best any more was asked no further",
    }[split]
    return f"{said} Both are of the documents that were asked, not of all: {why}."


def _asked(facts: CardFacts, row: Score) -> str:
    """On how many documents of how many a score was taken."""
    total = facts.documents.get((row.split, row.task), row.n)
    return f"{row.n:,}" if row.n >= total else f"{row.n:,} of {total:,}"


def _versioned(row: Score) -> str:
    return f"{row.task} (version {row.task_version})" if row.task_version else row.task


def interval(row: Score) -> tuple[float, float] | None:
    """The 95 % interval of a score; a share cannot be below 0 or above 1. None if unknown."""
    if not math.isfinite(row.stderr):
        return None
    low, high = row.score - _Z * row.stderr, row.score + _Z * row.stderr
    return (max(0.0, low), min(1.0, high)) if 0 <= row.score <= 1 else (low, high)


def _interval(row: Score | None, documents: int) -> str:
    """Score and interval; on how many documents where it is not so many."""
    if row is None:
        return "-"
    ends = interval(row)
    said = [] if ends is None else [f"{ends[0]:.4f} to {ends[1]:.4f}"]
    if row.n != documents:
        said.append(f"{row.n:,} documents")
    return f"{row.score:.4f}" + (f" ({'; '.join(said)})" if said else "")


def _tree(facts: CardFacts) -> str:
    """Parents above children; generation 0 are fine-tunes found on the hub."""
    models = sorted((*facts.family, facts.model), key=lambda each: (each.generation, each.id))
    marks = {model.id: f"n{i}" for i, model in enumerate(models)}
    lines = ["```mermaid", "graph TD"]
    for model in models:
        label = _cell(facts.name(model.id)).replace('"', "'")
        kind = f"{model.kind}, {model.generation}"
        lines.append(f'    {marks[model.id]}["{label}<br/>{kind}"]')
    for model in models:
        lines += [f"    {marks[p]} --> {marks[model.id]}" for p in model.parents if p in marks]
    return "\n".join([*lines, "```", "", "Each box: name, kind, generation."])


def _kinships(facts: CardFacts) -> str:
    rows = [
        [facts.name(a), facts.name(b), "undefined" if value is None else f"{value:.4f}"]
        for a, b, value in sorted(facts.kinships, key=lambda pair: pair[:2])
    ]
    if not rows:
        return ""
    return f"Similarity of the weight changes from {facts.base} ({facts.metric}):\n\n" + _table(
        ["model", "model", "kinship"], rows
    )


def _recipe(facts: CardFacts) -> str:
    made = (
        f"As it was made, from its parents (`{facts.made_file}`):\n\n"
        f"```yaml\n{facts.made.strip()}\n```\n\n"
    )
    if not facts.factors:
        return made + f"What it takes from fine-tunes alone is in `{facts.collapsed_file}`."
    groups = list(dict.fromkeys(group for group, _, _ in facts.factors))
    leaves = list(dict.fromkeys(leaf for _, leaf, _ in facts.factors))
    known = {(group, leaf): value for group, leaf, value in facts.factors}
    rows = [[group, *(f"{known[group, leaf]:.4f}" for leaf in leaves)] for group in groups]
    return (
        f"{made}The same weights are one combination of fine-tunes, which is how they were "
        f"computed: the base plus these shares of each fine-tune's weight change, here as means "
        f"over the tensors of a group (every tensor's in `{facts.factors_file}`, and as mergekit "
        f"takes them in `{facts.collapsed_file}`):\n\n"
        + _table(["tensors", *(facts.name(leaf) for leaf in leaves)], rows)
    )


def _sources(facts: CardFacts) -> str:
    rows = [
        [_link(facts, m.name), f"`{m.revision or ''}`", m.license or "unknown"]
        for m, _ in facts.sources
    ]
    files = [[m.name, f.path, f"`{f.sha256}`"] for m, some in facts.sources for f in some]
    return _table(["repo", "revision", "licence"], rows) + (
        "\n\n" + _table(["repo", "file", "sha256"], files) if files else ""
    )


def _settings(facts: CardFacts) -> str:
    rows = [[key, str(value)] for key, value in facts.settings.items()]
    return _table(["setting", "value"], rows) if rows else "Not recorded."


def _again(facts: CardFacts) -> str:
    if facts.lacking:
        return (
            f"With kinship-daemon {facts.version}, from the sources at the revisions above "
            f"(mergekit has no {_and(facts.lacking)}):\n\n"
            f"```sh\nkinship-daemon merge {facts.collapsed_file} OUT\n```"
        )
    several = "\n---\n" in facts.collapsed
    mergekit = "mergekit-multi" if several else "mergekit-yaml"
    return (
        f"With kinship-daemon {facts.version}, or with mergekit, from the sources at the "
        "revisions above:\n\n"
        f"```sh\nkinship-daemon merge {facts.collapsed_file} OUT\n"
        f"{mergekit} {facts.collapsed_file} OUT\n```"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Anyone's words, so that they neither end the cell nor become HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _link(facts: CardFacts, repo: str) -> str:
    return f"[{repo}]({facts.hub_url}/{repo})" if facts.hub_url else repo
