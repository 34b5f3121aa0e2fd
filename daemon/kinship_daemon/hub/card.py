"""The model card of a merge: everything that a reader needs to trust it, or to make it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from kinship_daemon.hub.licence import hub_fields

__all__ = ["CardFacts", "GateFacts", "Kin", "Node", "Result", "Source", "model_card"]

_Z = 1.959963984540054  # 95 % of a normal distribution lies within this many standard errors

Split = Literal["selection", "validation"]


@dataclass(frozen=True)
class Result:
    """
    One model's score on one task.

    Attributes:
        model: The child's name or a parent's.
        stderr: Standard error of the score; NaN where there is none.
        n: Documents.
        task_version: The harness's.
    """

    model: str
    task: str
    split: Split
    metric: str
    score: float
    stderr: float
    n: int
    task_version: str = ""


@dataclass(frozen=True)
class GateFacts:
    """
    The test that the merge passed.

    Attributes:
        gain: Over the best parent, mean over validation tasks.
        low, high: Ends of the gain's interval.
        confidence: Of that interval, such as 0.95.
        n: Paired validation documents.
    """

    passed: bool
    parent: str
    gain: float
    low: float
    high: float
    confidence: float
    n: int
    reason: str


@dataclass(frozen=True)
class Node:
    """One ancestor, or the model itself, in the family tree."""

    name: str
    kind: str
    generation: int
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kin:
    """Kinship of two models; None where it is undefined."""

    a: str
    b: str
    value: float | None


@dataclass(frozen=True)
class Source:
    """
    One checkpoint whose bytes went in.

    Attributes:
        files: (path, sha256) of its weight files.
    """

    repo: str
    revision: str
    licence: str | None
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CardFacts:
    """
    All that the card says. Nothing else goes in, no date either: equal facts, equal text.

    Attributes:
        name: The child's name in the lineage.
        repo: Where it is published.
        base: Repo of the common base.
        licence: Normalised, see `licence.most_restrictive`.
        base_models: Repos for the front matter: parents that can be found on the hub, and in
            place of an unpublished parent its own ancestors that can.
        parents: The child's parents' names, in recipe order.
        why: The policy's reason for this merge.
        results: The child's and every parent's.
        family: The child and all its ancestors.
        metric: What the kinships are measured in.
        made, collapsed: mergekit's YAML.
        made_file, collapsed_file: Names of the files that hold them, in the same repo.
        settings: Evaluation settings in the order to show them.
        version: kinship-daemon's.
        hub_url: Where repos can be looked at, such as https://huggingface.co; None for a folder.
    """

    name: str
    repo: str
    base: str
    licence: str
    base_models: tuple[str, ...]
    parents: tuple[str, ...]
    why: str
    results: tuple[Result, ...]
    gate: GateFacts | None
    family: tuple[Node, ...]
    metric: str
    kinships: tuple[Kin, ...]
    sources: tuple[Source, ...]
    made: str
    collapsed: str
    version: str
    made_file: str = "recipe.yml"
    collapsed_file: str = "mergekit_config.yml"
    settings: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    hub_url: str | None = None


def model_card(facts: CardFacts) -> str:
    """README.md: front matter as the Hub wants it, then the card."""
    sections = [
        f"# {facts.repo.rpartition('/')[2]}",
        _introduction(facts),
        "## Results",
        _verdict(facts.gate),
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
    tags = ("merge", "mergekit", "kinship-daemon", *facts.tags)
    front: dict[str, Any] = {
        **hub_fields(facts.licence),
        "base_model": list(facts.base_models),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(tags)),
    }
    if results := [_index_entry(row) for row in _of(facts, facts.name)]:
        name = facts.repo.rpartition("/")[2]
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _index_entry(row: Result) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"type": row.task, "name": row.task, "split": row.split},
        "metrics": [
            {
                "type": row.metric,
                "value": round(row.score, 6),
                "name": f"{row.metric} ({row.split} documents)",
            }
        ],
    }


def _of(facts: CardFacts, model: str, split: Split | None = None) -> list[Result]:
    """One model's results, validation first, then by task."""
    rows = [r for r in facts.results if r.model == model and split in {None, r.split}]
    return sorted(rows, key=lambda row: (row.split != "validation", row.task, row.metric))


def _introduction(facts: CardFacts) -> str:
    return (
        f"A merge of {_and(facts.parents)}, descendants of {_link(facts, facts.base)}, "
        "made without training by kinship-daemon, which merges models by *model kinship*, the "
        "similarity of their weight changes (arXiv 2410.12613).\n\n"
        f"Why this merge was tried: {_cell(facts.why)}"
    )


def _verdict(gate: GateFacts | None) -> str:
    if gate is None:
        return "It was published without a gate."
    outcome = "passed" if gate.passed else "did not pass"
    return (
        f"The gate: on {gate.n} validation documents it gains {gate.gain:+.4f} over its best "
        f"parent, {gate.parent}, with a {gate.confidence:.0%} interval from {gate.low:+.4f} to "
        f"{gate.high:+.4f} (paired bootstrap). It {outcome}: {_cell(gate.reason)}"
    )


def _results(facts: CardFacts, split: Split) -> str:
    """Child against every parent, a row per task, with 95 % intervals."""
    models = [facts.name, *facts.parents]
    scores = {(r.model, r.task, r.metric): r for r in facts.results if r.split == split}
    tasks = [(r.task, r.metric) for r in _of(facts, facts.name, split)]
    if not tasks:
        return ""
    rows = [
        [_versioned(own := scores[facts.name, task, metric]), metric, str(own.n)]
        + [_interval(scores.get((model, task, metric))) for model in models]
        for task, metric in tasks
    ]
    title = {
        "validation": "Validation documents, which only the gate has seen:",
        "selection": "Selection documents, by which parents are chosen (so these flatter):",
    }[split]
    header = ["task", "metric", "documents", f"**{facts.name}**", *facts.parents]
    return f"{title}\n\n{_table(header, rows)}\n\nScore, and its 95 % interval."


def _versioned(row: Result) -> str:
    return f"{row.task} (version {row.task_version})" if row.task_version else row.task


def _interval(row: Result | None) -> str:
    if row is None:
        return "-"
    if not math.isfinite(row.stderr):
        return f"{row.score:.4f}"
    half = _Z * row.stderr
    return f"{row.score:.4f} ({row.score - half:.4f} to {row.score + half:.4f})"


def _tree(facts: CardFacts) -> str:
    """Parents above children; generation 0 are fine-tunes found on the hub."""
    nodes = sorted(facts.family, key=lambda node: (node.generation, node.name))
    marks = {node.name: f"n{i}" for i, node in enumerate(nodes)}
    lines = ["```mermaid", "graph TD"]
    for node in nodes:
        label = _cell(node.name).replace('"', "'")
        lines.append(f'    {marks[node.name]}["{label}<br/>{node.kind}, {node.generation}"]')
    for node in nodes:
        lines += [f"    {marks[p]} --> {marks[node.name]}" for p in node.parents if p in marks]
    return "\n".join([*lines, "```", "", "Each box: name, kind, generation."])


def _kinships(facts: CardFacts) -> str:
    rows = [
        [kin.a, kin.b, "undefined" if kin.value is None else f"{kin.value:.4f}"]
        for kin in sorted(facts.kinships, key=lambda kin: (kin.a, kin.b))
    ]
    if not rows:
        return ""
    return f"Similarity of the weight changes from {facts.base} ({facts.metric}):\n\n" + _table(
        ["model", "model", "kinship"], rows
    )


def _recipe(facts: CardFacts) -> str:
    return (
        f"As it was made, from its parents (`{facts.made_file}`):\n\n"
        f"```yaml\n{facts.made.strip()}\n```\n\n"
        "The same weights as one combination of fine-tunes, which is how they were computed "
        f"(`{facts.collapsed_file}`):\n\n"
        f"```yaml\n{facts.collapsed.strip()}\n```"
    )


def _sources(facts: CardFacts) -> str:
    rows = [
        [_link(facts, s.repo), f"`{s.revision}`", s.licence or "unknown"] for s in facts.sources
    ]
    files = [
        [s.repo, path, f"`{sha256}`"] for s in facts.sources for path, sha256 in sorted(s.files)
    ]
    return _table(["repo", "revision", "licence"], rows) + (
        "\n\n" + _table(["repo", "file", "sha256"], files) if files else ""
    )


def _settings(facts: CardFacts) -> str:
    rows = [[key, str(value)] for key, value in facts.settings.items()]
    return _table(["setting", "value"], rows) if rows else "Not recorded."


def _again(facts: CardFacts) -> str:
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
