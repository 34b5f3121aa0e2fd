"""What the kept table says: about methods, policies, chance and what tells a gain beforehand."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from tests.real.table import Array, Table, answers

from kinship_policies.simulate.compare import Comparison, compare
from kinship_policies.simulate.evolution import Point, Run
from kinship_policies.simulate.statistics import holm, interval, sign_flip

__all__ = ["Gain", "Scores", "gains", "policies", "predictors", "report", "saturation", "title"]

_RESAMPLES = 2000
# Mean kinship of the top, from arXiv 2410.12613.
_SATURATED = 0.9
SUMMED = ("topk-kinship, task_arithmetic", "topk-greedy, task_arithmetic")


class Scores:
    """Scores of the table by control, parents and recipe."""

    def __init__(self, table: Table) -> None:
        self._rows = {
            (row["control"], tuple(row["parents"]), title(row), row["split"]): row
            for row in table["scores"]
        }
        self.table = table
        self.names = sorted(table["courses"])

    def answers(
        self,
        parents: Sequence[str],
        recipe: str = "",
        control: str = "none",
        split: str = "validation",
    ) -> Array:
        """(skills, documents); KeyError where it was not scored."""
        return answers(self._rows[control, tuple(parents), recipe, split])

    def merges(self, control: str = "none") -> Iterator[tuple[str, tuple[str, ...]]]:
        """Recipe and parents of all that were scored on validation documents."""
        for where, parents, recipe, split in self._rows:
            if where == control and recipe and split == "validation":
                yield recipe, parents

    def best(self, parents: Sequence[str]) -> Array:
        """Answers of the parent that is best on the very documents that a child is judged by."""
        return max((self.answers([parent]) for parent in parents), key=lambda found: found.mean())


def title(row: Mapping[str, Any]) -> str:
    """A recipe in a few words; empty for a model that is no merge."""
    if "method" not in row:
        return ""
    shown = {"lambda": "λ", "density": "density", "t": "t"}
    settings = [f"{shown[k]} {v:g}" for k, v in row["parameters"].items() if k in shown]
    return " ".join([row["method"], *settings])


@dataclass(frozen=True)
class Gain:
    """
    Of one method; means over its merges.

    Attributes:
        score: Of its merges.
        over_mean: Over the mean of all parents, as in arXiv 2410.12613.
        mean, low, high: Over the best parent, with a 95 % interval by bootstrap over merges.
        better, worse: Merges that are so beyond chance, paired by document, 5 % each.
        ahead: Of the reference, a plain mean, on the same parents, with its interval.
        p: Of that, by sign flips over merges, after Holm's correction over methods; None for the
            reference.
    """

    method: str
    merges: int
    score: float
    over_mean: float
    mean: float
    low: float
    high: float
    better: int
    worse: int
    ahead: tuple[float, float, float]
    p: float | None


def gains(scores: Scores, kind: str) -> list[Gain]:
    """
    Every method, the best first; merges share parents, so intervals are somewhat too narrow.

    Args:
        kind: `pairs`, `sets` (of four) or `all` (one merge of all models).
    """
    size = {"pairs": 2, "sets": 4, "all": len(scores.names)}[kind]
    found: dict[str, dict[tuple[str, ...], Array]] = {}
    for recipe, parents in scores.merges():
        if len(parents) == size:
            found.setdefault(recipe, {})[parents] = scores.answers(parents, recipe)
    plain = found.get("slerp t 0.5" if kind == "pairs" else "linear", {})
    ahead = {
        recipe: np.array([made[p].mean() - plain[p].mean() for p in made if p in plain])
        for recipe, made in found.items()
    }
    tested = {name: sign_flip(d, 0) for name, d in ahead.items() if len(d) and d.any()}
    p_values = holm(tested)
    rows = [
        _gain(scores, recipe, made, ahead[recipe], p_values.get(recipe))
        for recipe, made in found.items()
    ]
    return sorted(rows, key=lambda gain: -gain.mean)


def _gain(
    scores: Scores,
    recipe: str,
    made: Mapping[tuple[str, ...], Array],
    ahead: Array,
    p: float | None,
) -> Gain:
    differences = [answers - scores.best(parents) for parents, answers in made.items()]
    each = np.array([difference.mean() for difference in differences])
    score = float(np.mean([answers.mean() for answers in made.values()]))
    middle = np.mean([[scores.answers([p]).mean() for p in parents] for parents in made])
    signs = [_beyond_chance(difference) for difference in differences]
    beyond = signs.count(1), signs.count(-1)
    of_best = float(each.mean()), *interval(each, 0)
    plain = (float(ahead.mean()), *interval(ahead, 0)) if len(ahead) else (math.nan,) * 3
    return Gain(recipe, len(made), score, score - float(middle), *of_best, *beyond, plain, p)


def _beyond_chance(difference: Array) -> int:
    """1, -1, or 0 where the mean over skills may be luck of the documents, (skills, documents)."""
    error = math.sqrt(float(difference.var(1, ddof=1).sum()) / difference.shape[1])
    z = difference.mean(1).sum() / error if error else 0.0
    return int(z > 1.96) - int(z < -1.96)


def policies(
    table: Table, control: str = "none", names: Sequence[str] = ()
) -> tuple[list[Run], list[Comparison]]:
    """The runs of all policies, or of some, from the sets that all of them had; and compared."""
    rows = [row for row in table["runs"] if row["control"] == control]
    runs = [_run(row) for row in rows if not names or row["policy"] in names]
    seeds = [{r.seed for r in runs if r.policy == p} for p in {r.policy for r in runs}]
    common = set.intersection(*seeds) if seeds else set()
    runs = [run for run in runs if run.seed in common]
    return runs, compare(runs, table["budget"], 0) if len(common) > 1 else []


def saturation(table: Table, policy: str) -> list[tuple[float, float]]:
    """
    Of each run whose top became close kin, above 0.9: its gain over the best founder until then,
    and after.
    """
    found = []
    for row in table["runs"]:
        if row["policy"] != policy or row["control"] != "none":
            continue
        near = [at for at, kin in enumerate(row["tops"], 1) if kin is not None and kin > _SATURATED]
        if near:
            before = sum(int(merge["name"].split("-")[1]) < near[0] for merge in row["merges"])
            curve = _run(row).curve
            then = next(point for point in reversed(curve) if point.evaluations <= before)
            found.append((then.worth - curve[0].worth, curve[-1].worth - then.worth))
    return found


def _run(row: Mapping[str, Any]) -> Run:
    curve = [Point(at, str(at), score, true) for at, score, true in row["curve"]]
    return Run(row["policy"], row["seed"], [], row["evaluations"], curve, 0, row["error"])


def predictors(
    scores: Scores, recipe: str, without: Sequence[str] = ()
) -> list[tuple[str, float, float, float]]:
    """
    Spearman's correlation of what is known of a pair with what its merge gains over the better.

    Args:
        without: Models whose pairs are left out.

    Returns:
        Name, correlation, and its 95 % interval by bootstrap over models: pairs share them.
    """
    pairs, facts, gained = [], [], []
    made = set(scores.merges())
    for row in scores.table["pairs"]:
        parents = tuple(row["parents"])
        if (recipe, parents) in made and not set(parents) & set(without):
            pairs.append(tuple(scores.names.index(name) for name in parents))
            facts.append({**_numbers(row), **_of_answers(scores, parents)})
            gained.append(float((scores.answers(parents, recipe) - scores.best(parents)).mean()))
    if not facts:
        return []
    draw = np.random.default_rng(0).multinomial
    models = draw(len(scores.names), np.full(len(scores.names), 1 / len(scores.names)), _RESAMPLES)
    first, second = np.array(pairs).T
    # A pair is there as often as its two models together were drawn; the first row is the truth.
    weights = np.vstack([np.ones(len(pairs)), models[:, first] * models[:, second]])
    y, found = stats.rankdata(gained), []
    for name in facts[0]:
        x = stats.rankdata([fact[name] for fact in facts])
        r, *resampled = _correlation(x, y, weights)
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        found.append((name, float(r), float(low), float(high)))
    return sorted(found, key=lambda row: -abs(row[1]))


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    """Pearson's r under each row of weights; NaN where one of the two does not vary."""
    share = weights / np.maximum(weights.sum(1, keepdims=True), 1)
    a, b = x - (share @ x)[:, None], y - (share @ y)[:, None]
    both, one, other = ((share * product).sum(1) for product in (a * b, a * a, b * b))
    size = np.sqrt(one * other)
    return np.where(size > 0, both / np.where(size > 0, size, 1), np.nan)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, float)}


def _of_answers(scores: Scores, parents: Sequence[str]) -> dict[str, float]:
    """What the selection documents tell, which the gain is not measured on."""
    one, other = (scores.answers([parent], split="selection") for parent in parents)
    means = float(one.mean()), float(other.mean())
    return {
        "complementarity of answers": float((one != other).mean()),
        "either right, over the better": float(np.maximum(one, other).mean()) - max(means),
        "best skills, over the better": float(np.maximum(one.mean(1), other.mean(1)).mean())
        - max(means),
        "difference of scores": abs(means[0] - means[1]),
        "mean score of the parents": sum(means) / 2,
    }


def report(table: Table) -> str:
    """All of it as text."""
    scores = Scores(table)
    lines = ["models, validation", *_models(scores)]
    for kind, what in (("pairs", "two models"), ("sets", "four models"), ("all", "all models")):
        lines += [
            "",
            f"merges of {what}: gain over the mean and the best of the parents",
            *_gains(gains(scores, kind)),
        ]
    for what, control, names in (
        ("all", "none", ()),
        ("merges by task_arithmetic λ 1", "none", SUMMED),
        ("founders drawn at random", "random", ()),
        ("rotated founders", "rotated", ()),
    ):
        runs, compared = policies(table, control, names)
        if runs:
            lines += ["", f"policies, {what}", *_policies(runs), *_compared(compared)]
    lines += ["", "is the best saturated where its kin are above 0.9?", *_saturated(table)]
    lines += ["", "is it averaging?", *_controls(scores)]
    for recipe in ("slerp t 0.5", "task_arithmetic λ 1"):
        lines += ["", f"what tells the gain of {recipe}: rank correlation [95 % interval]"]
        lines += _predictors(scores, recipe)
    return "\n".join(lines)


def _models(scores: Scores) -> Iterator[str]:
    yield "".join(f"{cell:>10}" for cell in ("", *scores.table["skills"], "mean"))
    for name in ("base", *scores.names):
        found = scores.answers([] if name == "base" else [name])
        cells = [*found.mean(1), found.mean()]
        yield f"{name:>10}" + "".join(f"{cell:10.3f}" for cell in cells)


def _gains(found: Sequence[Gain]) -> Iterator[str]:
    head = f"{'method':<22}{'merges':>6}{'score':>6}{'mean':>7}"
    yield f"{head}   best [95 % interval]  better worse  ahead [95 % interval]       p"
    for each in found:
        head = f"{each.method:<22}{each.merges:>6}{each.score:>6.3f}{each.over_mean:+7.3f}"
        line = f"{head} {each.mean:+.3f}"
        if each.merges > 1:
            line += f" [{each.low:+.3f}, {each.high:+.3f}] {each.better:>5} {each.worse:>5}"
        if each.merges > 1 and each.p is not None:
            mean, low, high = each.ahead
            line += f"  {mean:+.3f} [{low:+.3f}, {high:+.3f}] {each.p:.4f}"
        yield line


def _policies(runs: Sequence[Run]) -> Iterator[str]:
    for policy in dict.fromkeys(run.policy for run in runs):
        mine = [run for run in runs if run.policy == policy]
        true = np.mean([run.curve[-1].worth for run in mine])
        first = np.mean([run.curve[0].worth for run in mine])
        spent = np.mean([run.evaluations for run in mine])
        yield (
            f"{policy:<29} {len(mine)} sets, best founder {first:.4f}, best {true:.4f}, "
            f"{spent:.1f} evaluations"
        )


def _compared(compared: Sequence[Comparison]) -> Iterator[str]:
    for each in compared:
        best = each.measures["best"]
        if best.p_holm is not None:
            ends = f"[{best.low:+.4f}, {best.high:+.4f}] p {best.p_holm:.3f}"
            yield f"- {each.a} less {each.b}: {best.difference:+.4f} {ends}"


def _saturated(table: Table) -> Iterator[str]:
    for policy in sorted({row["policy"] for row in table["runs"]}):
        if found := saturation(table, policy):
            before, after = np.mean(found, 0)
            yield f"{policy}: {len(found)} runs, gain {before:+.4f} until then, {after:+.4f} after"


def _predictors(scores: Scores, recipe: str) -> Iterator[str]:
    generalist = {name: facts for name, *facts in predictors(scores, recipe, ["all"])}
    yield f"{'':<32}{'all pairs':<24}pairs without `all`"
    for name, *facts in predictors(scores, recipe):
        cells = (
            f"{r:+.2f} [{low:+.2f}, {high:+.2f}]" for r, low, high in (facts, generalist[name])
        )
        yield f"{name:<32}{'    '.join(cells)}"


def _controls(scores: Scores) -> Iterator[str]:
    base = scores.answers([]).mean()
    for control in ("random", "rotated"):
        try:
            found = [scores.answers([n], control=control).mean() for n in scores.names]
        except KeyError:
            continue
        mean, best = np.mean(found) - base, max(found) - base
        yield f"{control} founders less the base: {mean:+.3f}, best {best:+.3f}"
    rows = []
    for recipe, (one, other) in scores.merges("half"):
        own, child = scores.answers([one]).mean(), scores.answers([one, other], recipe).mean()
        partner = scores.answers([other]).mean()
        copy = scores.answers([other], control="random").mean()
        half = scores.answers([one, other], recipe, "half").mean()
        rows.append((child - own, half - own, child - (own + partner) / 2, half - (own + copy) / 2))
    if rows:
        yield f"{len(rows)} pairs, slerp t 0.5: gain with the partner, and with its random copy"
        for what, columns in (
            ("over the first parent", (0, 1)),
            ("over the parents' mean", (2, 3)),
        ):
            found = np.array(rows)[:, columns]
            cells = ((values.mean(), *interval(values, 0)) for values in found.T)
            shown = (f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in cells)
            yield f"{what:<26}{'   '.join(shown)}"
