"""The family drawn: as a tree of text, as mermaid, as dot; from the lineage's export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kinship_daemon.layout import longest, shortened

__all__ = ["ancestry", "dot", "mermaid", "tree"]

Export = Mapping[str, Any]

_SHOWN = {"admitted", "proposed"}
_STEM = 8  # columns before a name
_READABLE = 20  # characters; for shorter ones the repo's name goes


def tree(export: Export, focus: str | None = None, width: int | None = None) -> str:
    """
    Who was made in which generation, from whom, how it did.

    Args:
        focus: Only this model and its ancestors.
        width: Columns that there are; names become shorter, then parents fewer. None for any.
    """
    models = _shown(export, focus)
    best = export["best"] or {}  # of the whole family, not of what is shown
    lines = [f"{export['base']} (base)"]
    generations = sorted({model["generation"] for model in models if model["kind"] != "base"})
    for i, generation in enumerate(generations):
        last = i == len(generations) - 1
        members = [m for m in models if m["generation"] == generation and m["kind"] != "base"]
        title = "founders" if generation == 0 else f"generation {generation}"
        lines.append(f"{'└── ' if last else '├── '}{title}")
        stem = "    " if last else "│   "
        for j, model in enumerate(members):
            branch = "└── " if j == len(members) - 1 else "├── "
            lines.append(f"{stem}{branch}{_leaf(model, best, width)}")
    return "\n".join(lines)


def mermaid(export: Export, focus: str | None = None) -> str:
    """A mermaid flowchart, edges from parent to child."""
    models = _shown(export, focus)
    number = {model["id"]: f"m{i}" for i, model in enumerate(models)}
    lines = ["flowchart TD"]
    for model in models:
        lines.append(f'    {number[model["id"]]}["{_label(model)}"]')
    for parent, child in _edges(models, export["base"]):
        lines.append(f"    {number[parent]} --> {number[child]}")
    return "\n".join(lines)


def dot(export: Export, focus: str | None = None) -> str:
    """A Graphviz digraph, edges from parent to child."""
    models = _shown(export, focus)
    lines = ["digraph family {", "    node [shape=box];"]
    for model in models:
        lines.append(f'    "{model["id"]}" [label="{_label(model)}"];')
    for parent, child in _edges(models, export["base"]):
        lines.append(f'    "{parent}" -> "{child}";')
    return "\n".join([*lines, "}"])


def _shown(export: Export, focus: str | None) -> list[Mapping[str, Any]]:
    if focus is not None:
        return ancestry(export, focus)
    return [m for m in export["models"] if m["status"] in _SHOWN or m["kind"] == "base"]


def ancestry(export: Export, focus: str) -> list[Mapping[str, Any]]:
    """A model, its ancestors and the base, in the export's order."""
    models = {model["id"]: model for model in export["models"]}
    wanted: set[str] = set()
    waiting = [focus]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += models[name]["parents"]
    return [m for m in models.values() if m["id"] in wanted or m["kind"] == "base"]


def _edges(models: list[Mapping[str, Any]], base: str) -> list[tuple[str, str]]:
    shown = {model["id"] for model in models}
    edges = []
    for model in models:
        parents = model["parents"] or ([base] if model["id"] != base else [])
        edges += [(parent, model["id"]) for parent in parents if parent in shown]
    return edges


def _leaf(model: Mapping[str, Any], best: Mapping[str, Any], width: int | None) -> str:
    value, share = model["score"], model["stopped_after"]
    facts = "" if value is None else f"  {value:.4f}"
    facts += "" if share is None else f"  stopped after {100 * share:.0f} %"
    facts += f"  best on {best['split']}" if model["id"] == best.get("model") else ""
    parents, repo = list(model["parents"]), model["published"]
    if width is None:
        return _line(model["id"], parents, 0, facts, repo)
    room = width - _STEM
    # What goes once names are as short as they may be: the repo's name, then parents.
    for repo_shown, kept in [(repo, len(parents)), *(("", n) for n in range(len(parents), 0, -1))]:
        names = [model["id"], *parents[:kept], *([repo_shown] if repo_shown else [])]
        hidden, shown = len(parents) - kept, repo_shown if repo else None
        empty = _line("", [""] * kept, hidden, facts, shown and " ")
        most = longest(names, room - len(empty))
        own, *short = [shortened(name, most) for name in names]
        line = _line(own, short[:kept], hidden, facts, short[-1] if repo_shown else shown)
        if len(line) <= room and (not repo_shown or most >= _READABLE):
            break
    return line


def _line(name: str, parents: Sequence[str], hidden: int, facts: str, repo: str | None) -> str:
    more = f" + {hidden} more" if hidden else ""
    made = f" = {' + '.join(parents)}{more}" if parents else ""
    published = "" if repo is None else f"  published as {repo}" if repo else "  published"
    return f"{name}{made}{facts}{published}"


def _label(model: Mapping[str, Any]) -> str:
    value = model["score"]
    return model["id"] if value is None else f"{model['id']} {value:.4f}"
