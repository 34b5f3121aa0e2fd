"""`tune`: which method, with which coefficients, merges some models best."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from kinship_daemon.cli import sweep as cli_sweep
from kinship_daemon.cli.of_home import home_models
from kinship_daemon.cli.options import (
    config_options,
    echo_json,
    find_model,
    format_option,
    load_config,
)
from kinship_daemon.device import resolve_device
from kinship_daemon.durable import whole_file
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.evaluate.settings import Progress
from kinship_daemon.home import state_directory
from kinship_daemon.home_models import HomeModels
from kinship_daemon.models import cache_folder
from kinship_daemon.report import Advance, reporter
from kinship_daemon.startup import evaluation_settings, home_of
from kinship_daemon.steps.recipes import called
from kinship_daemon.sweep import sweep
from kinship_daemon.trials import Trials
from kinship_daemon.tuning import Trial, Tuner, first_recipe, missing_setting
from kinship_daemon.weights.mergekit import to_yaml
from kinship_daemon.weights.methods.registry import is_span, method, methods
from kinship_daemon.weights.recipe import Recipe
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["tune_command"]

_ROWS = 15


@click.command("tune")
@click.argument("models", nargs=-1)
@config_options
@click.option(
    "count",
    "--parents",
    type=click.IntRange(2, 8),
    default=3,
    show_default=True,
    help="So many of the home's best, where no MODELS are named.",
)
@click.option(
    "names",
    "--method",
    multiple=True,
    help="Try this one; several to choose from. By default all that algebra can make.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=20.0,
    show_default=True,
    help="Evaluations on all selection documents that it may make.",
)
@click.option(
    "steps",
    "--sweep",
    type=click.IntRange(2, 50),
    metavar="STEPS",
    help="Instead: score the models on the line from the first of two MODELS to the second.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png|svg",
    help="With --sweep: also draw its scores and stages.",
)
@format_option()
def tune_command(
    models: tuple[str, ...],
    config_file: Path | None,
    overrides: tuple[str, ...],
    count: int,
    names: tuple[str, ...],
    budget: float,
    steps: int | None,
    plot: Path | None,
    form: str,
    **flags: Any,
) -> None:
    """
    Find how to merge MODELS of a home best, 2 to 8, on its selection documents.

    Methods race first, then the winner's coefficients are changed one by one. The home is only
    read; what was asked is kept, so that the same call goes on where it was interrupted.
    """
    picture = _check_sweep(models, steps, plot, names)
    config = load_config(config_file, overrides=overrides, **flags)
    report = reporter(log_json=False, stream=sys.stderr)
    with home_models(home_of(config).path) as home:
        chosen = _parents(home.lineage, models, count)
        recipes = [] if steps else _starts([each.id for each in chosen], names)
        full = budget if steps is None else steps - 1
        log = state_directory() / "evaluate.log"
        with (
            closing(open_evaluator(evaluation_settings(config), log=log)) as evaluator,
            report.progress("tune", None, "documents") as advance,
        ):
            trials = Trials(
                home,
                {each.id: each for each in chosen},
                evaluator,
                cache_folder() / "tune",
                resolve_device(config.kinship.device),
                lambda words: _counted(advance, words, round(full * trials.documents)),
            )
            if steps is not None:
                line = [find_model(home.lineage, name).id for name in models]
                _show_sweep(trials, line, steps, plot, picture, form)
                return
            tuner = Tuner(trials.measure, trials.shares, budget)
            best = tuner.tune(recipes)
            if best is None:
                least = tuner.cost(recipes)
                raise UsageError(
                    f"--budget {budget:g} is not enough for a race of {len(recipes)} methods; "
                    f"give {least:.1f} or more, or name fewer with --method"
                )
            if best.score == -math.inf:
                name, why = next(iter(trials.failed.items()))
                raise KinshipError(f"no merge could be made and scored; {name}: {why}")
            facts = _facts(home, trials, tuner, best, chosen, budget)
    if form == "json":
        echo_json(facts)
    else:
        _table(facts)


def _check_sweep(
    models: Sequence[str], steps: int | None, plot: Path | None, names: Sequence[str]
) -> str | None:
    """
    The picture's format, if one is to be drawn.

    Raises:
        UsageError: What is said does not go together.
    """
    if steps is not None and (len(models) != 2 or names):
        raise UsageError("--sweep goes from one model to another: name two, and no --method")
    if plot is None:
        return None
    if steps is None:
        raise UsageError("--plot draws a sweep; add --sweep STEPS")
    from kinship_daemon.draw.picture import format_of  # noqa: PLC0415 - slow to import

    return format_of(plot)


def _show_sweep(
    trials: Trials,
    line: Sequence[str],
    steps: int,
    plot: Path | None,
    picture: str | None,
    form: str,
) -> None:
    found = sweep(line[0], line[1], steps, trials.parent_answers, trials.answers)
    if plot and picture:
        from kinship_daemon.draw.sweep import sweep_lines  # noqa: PLC0415 - slow to import

        whole_file(plot, sweep_lines(found, line[0], line[1], picture))
        click.echo(f"wrote {plot}", err=True)
    facts = cli_sweep.facts_of(found, line[0], line[1])
    if form == "json":
        echo_json(facts)
    else:
        cli_sweep.table(facts)


def _counted(advance: Advance, words: str, most: int) -> Progress:
    """Documents of one evaluation, as part of all that the budget allows."""
    seen = 0

    def progress(done: int, _: int) -> None:
        nonlocal seen
        advance(done - seen, most, label=words)
        seen = done

    return progress


def _parents(lineage: Lineage, names: Sequence[str], count: int) -> list[Model]:
    """The best first: its tokenizer is carried on."""
    settings = (lineage.get("settings") or {}).get("selection")
    means = lineage.mean_scores("selection", settings)
    scored = {
        model.id: means[model.weights]
        for model in lineage.models(status="admitted")
        if model.kind != "base" and model.weights in means
    }
    if not names:
        best = sorted(scored, key=lambda name: (-scored[name], name))[:count]
        if len(best) < 2:
            raise KinshipError(f"{lineage.path} has no two models with scores; name MODELS")
        return [lineage.require(name) for name in best]
    given = [find_model(lineage, name) for name in names]
    if not 2 <= len({each.id for each in given}) == len(given) <= 8:
        raise UsageError("name 2 to 8 different models")
    for each in given:
        if each.status != "admitted" or each.kind == "base":
            raise UsageError(f"{each.id} is no admitted fine-tune or merge, but {each.status}")
    return sorted(given, key=lambda each: -scored.get(each.id, 0.0))


def _starts(parents: Sequence[str], names: Sequence[str]) -> list[Recipe]:
    """
    A recipe for each method.

    Raises:
        UsageError: A method that was asked for does not take these parents.
    """
    if not names:
        fitting = [n for n in methods() if is_span(n) and missing_setting(method(n)) is None]
        found = [first_recipe(name, parents) for name in fitting]
        return [recipe for recipe in found if recipe is not None]
    made = []
    for name in dict.fromkeys(names):
        if (lacking := missing_setting(method(name))) is not None:
            raise UsageError(f"{name} needs {lacking!r}, for which there is no usual value")
        recipe = first_recipe(name, parents)
        if recipe is None:
            raise UsageError(f"{name} does not take {len(parents)} parents")
        made.append(recipe)
    return made


def _facts(
    home: HomeModels,
    trials: Trials,
    tuner: Tuner,
    best: Trial,
    parents: Sequence[Model],
    budget: float,
) -> dict[str, Any]:
    """What --format json prints."""
    scores = {each.id: trials.parent(each.id) for each in parents}
    over = max(scores, key=lambda name: scores[name])
    gain = trials.gain(best.recipe, over)
    names = {each.id: called(home.lineage, each) for each in parents}
    return {
        "parents": [{"model": name, "score": score} for name, score in scores.items()],
        "budget": budget,
        "spent": round(tuner.spent, 3),
        "trials": [
            {
                "method": trial.recipe.method,
                "parameters": dict(trial.recipe.parameters),
                "share": round(trials.shares[trial.rung], 3),
                "score": trial.score,
            }
            for trial in tuner.trials
            if trial.score > -math.inf
        ],
        "failed": dict(trials.failed),
        "best": {
            "method": best.recipe.method,
            "parameters": dict(best.recipe.parameters),
            "score": best.score,
            "against": over,
            "gain": gain.value,
            "error": gain.error,
        },
        "recipe": to_yaml(best.recipe, names, home.recipes.base.name, home.recipes.dtype),
    }


def _table(facts: Mapping[str, Any]) -> None:
    for parent in facts["parents"]:
        click.echo(f"{parent['score']:.4f}  {parent['model']}")
    click.echo()
    click.echo("score   documents  method")
    for trial in facts["trials"][:_ROWS]:
        settings = ", ".join(f"{k} {_short(v)}" for k, v in trial["parameters"].items())
        words = f"{trial['method']} ({settings})" if settings else trial["method"]
        click.echo(f"{trial['score']:.4f}  {trial['share']:9.0%}  {words}")
    if len(facts["trials"]) > _ROWS:
        click.echo(f"and {len(facts['trials']) - _ROWS} more; --format json has all")
    for name, why in facts["failed"].items():
        click.echo(f"{name} failed: {why}")
    best = facts["best"]
    click.echo(
        f"\n{facts['spent']:.1f} of {facts['budget']:g} evaluations; the best has "
        f"{best['gain']:+.4f} ± {best['error']:.4f} over {best['against']} on the same documents, "
        "luck of having been chosen included"
    )
    click.echo(f"\n{facts['recipe'].rstrip()}")


def _short(value: object) -> str:
    return (
        f"[{', '.join(f'{each:g}' for each in value)}]" if isinstance(value, list) else f"{value:g}"
    )
