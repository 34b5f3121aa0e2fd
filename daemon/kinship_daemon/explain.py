"""Why a model was made, on which facts, how it did, why it was published: from the lineage."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kinship_daemon import exclusion, forgetting
from kinship_daemon.ancestry import ancestry_words
from kinship_daemon.evaluate.race import stop_words
from kinship_daemon.evaluate.verdict import life_words
from kinship_daemon.layout import compared
from kinship_daemon.report import count
from kinship_policies.policy import Decision, Population
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Partial, Score

__all__ = [
    "chapters",
    "evolution_words",
    "explain",
    "latest_scores",
    "opens_again",
    "partial_of",
    "returns",
    "set_aside_words",
]


_WIDTH = 80

# What stands in a setting's place where a command keeps a model out.
_RETURNS = {exclusion.COMMAND: "when its pattern goes", forgetting.COMMAND: None}


def explain(lineage: Lineage, name: str) -> str:
    """
    The whole story of one model, a few lines a chapter.

    Raises:
        LineageError: there is no such model.
    """
    told = chapters(lineage, lineage.require(name))
    return "\n\n".join("\n".join(lines) for lines in told.values() if lines)


def chapters(lineage: Lineage, model: Model) -> dict[str, list[str]]:
    """The lines of `explain`: origin, choice, selection, validation, fate; some may have none."""
    return {
        "origin": _origin(lineage, model),
        "choice": _choice(lineage, model),
        "selection": _scores(lineage, model, "selection"),
        "validation": _scores(lineage, model, "validation"),
        "fate": _fate(lineage, model),
    }


def evolution_words(lineage: Lineage) -> str:
    """Whether the evolution goes on, or why it stopped."""
    last = lineage.last_generation()
    if last is None:
        return "not begun"
    if last.stop is None:
        return "going on"
    kind = "" if str(last.stop_kind) in last.stop else f" ({last.stop_kind})"
    return f"stopped{kind}: {last.stop}"


def _origin(lineage: Lineage, model: Model) -> list[str]:
    if model.recipe is None:
        source = f"{model.repo} at revision {model.revision}"
        lines = [f"{model.id}: a {model.kind} from {source}, licence {model.license or 'unknown'}"]
    else:
        method = model.recipe["method"]
        settings = ", ".join(f"{k} {v}" for k, v in sorted(model.recipe["parameters"].items()))
        parents = " and ".join(model.parents)
        lines = [f"{model.id}: {method} ({settings}) of {parents}, generation {model.generation}"]
    if model.weights:
        lines.append(f"weights {model.weights}")
    lines += [
        f"file {f.path} ({f.size:,} bytes) sha256 {f.sha256}" for f in lineage.files(model.id)
    ]
    candidate = lineage.candidate(model.id)
    if candidate is not None and candidate.ancestry is not None:
        lines.append(f"ancestry, by a sample: {ancestry_words(candidate.ancestry)}")
    children = [m.id for m in lineage.models(kind="merge") if model.id in m.parents]
    if children:
        lines.append(f"parent of {', '.join(children)}")
    if model.reason:
        lines.append(f"{model.status}: {model.reason}")
    if model.cause is not None:
        lines.append(f"opens again: {opens_again(model)}")
    return lines


def opens_again(model: Model) -> str:
    """What would bring back a model that was set aside."""
    by_hand = f"`kinship-daemon retry {model.id}`"
    if model.cause == "model":
        return f"never for these bytes; by hand with {by_hand}"
    itself = returns(model)
    return f"{itself}, or by {by_hand}" if itself else f"by {by_hand}"


def returns(model: Model) -> str | None:
    """What brings it back with nobody's hand; None where nothing does."""
    if model.cause == "settings":
        return _RETURNS.get(str(model.setting), f"when {model.setting} changes")
    if model.cause == "world":
        return f"by itself at {model.retry_at}" if model.retry_at else "when its hub has it again"
    return None


def set_aside_words(reason: str | None, cause: str | None, again: str | None) -> str:
    """Why a model was set aside, the cause, and what opens it again (`returns`)."""
    opens = again or "by `retry`"
    return f"{reason or 'no reason on record'} ({cause}; opens again {opens})"


def _choice(lineage: Lineage, model: Model) -> list[str]:
    decisions = lineage.generations()
    decision = next((d for d in decisions if d.generation == model.generation), None)
    told = None if decision is None else lineage.facts(decision.number)
    if model.recipe is None or decision is None or told is None:
        return []
    facts = Population.from_json(told)
    lines = [f"why: {model.why} (policy {decision.policy}, seed {decision.seed})"]
    for a, b in zip(model.parents, model.parents[1:], strict=False):
        kinships = ", ".join(
            f"{metric} {value:.4f}"
            for metric in ("pcc", "cosine", "euclidean")
            if (value := lineage.kinship(metric, a, b)) is not None
        )
        lines.append(f"kinship of {a} and {b}: {kinships or 'undefined'}")
    lines += [
        f"then: {name} scored {facts[name].score:.4f}, {_rank(facts, name)} of {len(facts.members)}"
        for name in model.parents
    ]
    lines.append(f"the top then: {', '.join(Decision.from_json(decision.decision).top)}")
    return lines


def _rank(facts: Population, name: str) -> str:
    order = facts.best(len(facts.members))
    return f"number {order.index(name) + 1}"


def _scores(lineage: Lineage, model: Model, split: str) -> list[str]:
    mine = latest_scores(lineage, model, split)
    if not mine:
        return []
    parents = {name: latest_scores(lineage, lineage.require(name), split) for name in model.parents}
    known = [name for name, rows in parents.items() if rows]
    lines = [f"{split} scores ({mine[0].harness}, seed {mine[0].seed})"]
    header = ["task", model.id, *known]
    rows = [
        [row.task, f"{row.score:.4f} ± {row.stderr:.4f} (n {row.n})"]
        + [_score_of(parents[name], row.task) for name in known]
        for row in mine
    ]
    means = [_mean(r) for r in (mine, *(parents[name] for name in known))]
    lines += _columns([header, *rows, ["mean", *(f"{mean:.4f}" for mean in means)]])
    if split == "selection" and (partial := partial_of(lineage, model)) is not None:
        lines.append(_partial_words(partial))
    return lines


def partial_of(lineage: Lineage, model: Model) -> Partial | None:
    """How far a model is that has not answered all selection documents."""
    settings = (lineage.get("settings") or {}).get("selection", "")
    return lineage.partials(settings).get(model.weights or "")


def _partial_words(partial: Partial) -> str:
    if partial.best is None:
        return "more of its documents are to be asked"
    if partial.mean is None:
        return stop_words(partial)
    return f"{stop_words(partial)}; foretold: {partial.mean:.4f} ± {partial.stderr:.4f}"


def latest_scores(lineage: Lineage, model: Model, split: str) -> list[Score]:
    """Scores under the home's latest settings."""
    current = lineage.get("settings") or {}
    if model.weights is None or split not in {"selection", "validation"}:
        return []
    rows = lineage.scores(model.weights, settings=current.get(split), samples=False)
    return [row for row in rows if row.split == split]


def _score_of(rows: Sequence[Score], task: str) -> str:
    return next((f"{row.score:.4f}" for row in rows if row.task == task), "-")


def _mean(rows: Sequence[Score]) -> float:
    return math.fsum(row.score for row in rows) / len(rows)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of 80 columns."""
    table = compared(rows, _WIDTH - 2)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    if hidden := len(rows[0]) - len(table[0]):
        more = count(hidden, "more parent")
        lines.append(f"  and {more}; `lineage --format json` has all scores")
    return lines


def _fate(lineage: Lineage, model: Model) -> list[str]:
    if model.kind != "merge" or model.status != "admitted":
        return []
    settings = (lineage.get("settings") or {}).get("validation", "")
    publication = lineage.publication(model.id)
    gate = lineage.gate(model.id, settings)
    if gate is None and publication is not None:
        # What is published is not judged again under other settings.
        gate = next(iter(lineage.gates_of(model.id)[::-1]), None)
    if gate is None:
        return [_not_judged(lineage, model)]
    lines = [f"gate: {gate.reason}", *filter(None, [life_words(gate)])]
    if publication is not None:
        lines.append(f"published as {publication.repo}, revision {publication.revision}")
        lines.append(f"at {publication.url}")
    elif gate.passed:
        blocked = model.not_published or "waiting; the next run publishes it"
        lines.append(f"not published: {blocked}")
    return lines


def _not_judged(lineage: Lineage, model: Model) -> str:
    if (partial := partial_of(lineage, model)) is not None:
        return f"gate: not judged: {_partial_words(partial)}"
    mine = latest_scores(lineage, model, "selection")
    theirs = {p: latest_scores(lineage, lineage.require(p), "selection") for p in model.parents}
    scored = {p: _mean(rows) for p, rows in theirs.items() if rows}
    if not mine or not scored:
        return "gate: not judged: no selection scores under the present settings"
    best = max(sorted(scored), key=lambda p: scored[p])
    who = f"its parent {best}"
    if _mean(mine) > scored[best]:
        for name in model.parents:
            parent = lineage.require(name)
            in_use = any(m.status == "admitted" for m in lineage.by_weights(parent.weights or ""))
            if not in_use and not latest_scores(lineage, parent, "validation"):
                return f"gate: not judged: {name} is {parent.status} and has no validation scores"
        better = _published_better(lineage, model, _mean(mine))
        if better is None:
            return "gate: not judged yet; the next run judges it"
        best, who = better, f"{better}, which passed before"
        scored[best] = _mean(latest_scores(lineage, lineage.require(best), "selection"))
    return (
        f"gate: not judged: its selection score {_mean(mine):.4f} is not above "
        f"{scored[best]:.4f} of {who}"
    )


def _published_better(lineage: Lineage, model: Model, score: float) -> str | None:
    """The best merge that passed before and did no worse on selection, where that one counts."""
    judgements = lineage.judgements()
    if not judgements or judgements[-1].settings.get("require") != "best":
        return None
    passed = [lineage.require(name) for name in {g.model for g in judgements if g.passed}]
    scores = {
        each.id: _mean(rows)
        for each in passed
        if (each.generation, each.id) < (model.generation, model.id)
        and (rows := latest_scores(lineage, each, "selection"))
    }
    best = max(sorted(scores), key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] >= score else None
