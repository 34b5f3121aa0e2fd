"""`evaluate`: scores of a model as the daemon would take them, without a home."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from kinship_daemon.cli.ledger import check_adapter
from kinship_daemon.cli.of_home import home_models
from kinship_daemon.cli.options import config_options, load_config
from kinship_daemon.config import Config
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.evaluate.scoring import missing, scores
from kinship_daemon.home import state_directory
from kinship_daemon.models import find_base, find_models
from kinship_daemon.report import absolute, reporter
from kinship_daemon.startup import evaluation_settings
from kinship_daemon.weights.adapter import is_adapter
from kinship_daemon.weights.materialise import Assembly, leaf_assembly

__all__ = ["evaluate_command"]


@click.command("evaluate")
@click.argument("model")
@config_options
@click.option(
    "--split",
    type=click.Choice(["selection", "validation"]),
    default="selection",
    show_default=True,
)
@click.option(
    "form", "--format", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def evaluate_command(
    model: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    split: Any,
    form: str,
    **flags: Any,
) -> None:
    """
    Score MODEL on the tasks that the daemon would use.

    It is a folder or a hub id; with --home, also the name of a model of that home.
    """
    config = load_config(config_file, overrides=overrides, **flags)
    settings = evaluation_settings(config)
    assembly = _assembly(model, config)
    report = reporter(log_json=False, stream=sys.stderr)
    log = state_directory() / "evaluate.log"
    with closing(open_evaluator(settings, log=log)) as evaluator:
        evaluator.check()
        asked = missing(evaluator.settings, split)
        with report.progress(f"{split} of {model}", None, "documents") as advance:
            began = time.monotonic()
            answered = evaluator.evaluate(assembly, asked, absolute(advance))
            seconds = time.monotonic() - began
        made = scores(answered.answers, evaluator.settings, split, assembly.identity)
    cut = {answer.task: answer.cut for answer in answered.answers}
    rows = [
        {
            "task": s.task,
            "metric": s.metric,
            "score": s.score,
            "stderr": s.stderr,
            "n": s.n,
            "cut": cut[s.task],
        }
        for s in made
    ]
    mean = sum(s.score for s in made) / len(made)
    if form == "json":
        facts = {
            "model": model,
            "split": split,
            "tasks": rows,
            "mean": mean,
            "documents": sum(s.n for s in made),
            "tokens": answered.cost.computed,
            "tokens_lm_eval": answered.cost.lm_eval,
            "seconds": seconds,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['task']}: {row['metric']} {row['score']:.4f}"
            f" ± {row['stderr']:.4f} (n {row['n']})"
        )
        if row["cut"]:
            click.echo(f"  {row['cut']} prompts are longer than the model reads: begin cut off")
    click.echo(f"mean {mean:.4f}")


def _assembly(name: str, config: Config) -> Assembly:
    if config.home is not None and (config.home / "lineage.db").is_file():
        with home_models(config.home) as models:
            known = models.lineage.model(name)
            if known is not None:
                return models.assembly(known)
    found = find_models([name], config.base, config.hub)[0]
    base = find_base(config.base, config.hub) if is_adapter(found.folder) else None
    if base is not None:
        check_adapter(found, base)
    return leaf_assembly(found.folder, name, None if base is None else base.folder)
