"""The command line. Commands are imported when they are called: torch takes seconds to import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version

import click

from kinship_daemon.errors import KinshipError, machine_words
from kinship_daemon.foreign.shown import one_line
from kinship_daemon.imports import uncollected

__all__ = ["app", "main"]

_COMMANDS = {
    "run": ("run", "Watch, merge, evaluate and publish: the daemon itself."),
    "status": ("home_reports", "What a home is doing and what waits, was refused or set aside."),
    "stop": ("stop", "End the daemon of a home; what is done is saved."),
    "dashboard": ("dashboard", "Look at a home in a browser, beside a daemon or without one."),
    "report": ("dashboard", "Write all of that to one HTML file."),
    "candidates": ("candidates", "Who waits and in which order, who was refused, budgets spent."),
    "notify": ("notify", "Send a test event to everyone that events are told."),
    "retry": ("retry", "Open again what was refused, set aside or put off."),
    "exclude": ("exclude", "Leave repos alone whose name matches a pattern."),
    "forget": ("forget", "Take a model, or a merge, out of the population for good."),
    "lineage": ("home_reports", "Who descends from whom, by which recipe, with which scores."),
    "explain": ("home_reports", "Why a model was made, how it did, why it was published or not."),
    "recipe": ("recipe", "A merge's recipe as mergekit's YAML, from fine-tunes alone."),
    "export": ("export", "A merge as a model folder or a GGUF file, published or not."),
    "backup": ("backup", "Copy the lineage to one file, also while a daemon runs."),
    "restore": ("backup", "Put a backup in the lineage's place."),
    "verify": ("home_reports", "Hash again what the lineage claims."),
    "analyze": ("analyze", "Kinship against gain over a lineage's merges; its stages."),
    "replay": ("replay", "Decide again on recorded facts: does history repeat itself?"),
    "kinship": ("kinship", "Kinship of models: folders or hub ids."),
    "merge": ("merge", "Make a model from a mergekit recipe."),
    "evaluate": ("evaluate", "Score a model as the daemon would."),
    "tune": ("tune", "Find the best method and coefficients to merge some models."),
    "estimate": ("estimate", "How long a run takes, what it downloads, how much disk it needs."),
    "doctor": ("doctor", "Device, memory, disk, hub, token, versions: is all in place?"),
    "config": ("choices", "Show, check or describe the configuration."),
    "bases": ("choices", "Short names of bases."),
    "policies": ("choices", "Installed policies, their settings, and presets."),
    "simulate": ("simulate", "Policies against each other on a landscape, compared honestly."),
    "methods": ("choices", "Installed merge methods."),
    "demo": ("choices", "The embedded demo."),
}


_LONGEST_ERROR = 10_000  # characters; a config may have many mistakes


@contextmanager
def _said(words: str) -> Iterator[None]:
    """Words on a terminal for as long as a block takes, so that nobody wonders."""
    if not sys.stderr.isatty():
        yield
        return
    print(words, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\033[K", end="", file=sys.stderr, flush=True)


class _Lazy(click.Group):
    """Knows every command's name and purpose, and imports it when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        with uncollected(), _said("loading ..."):
            module = import_module(f"kinship_daemon.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, purpose) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kinship-daemon"), prog_name="kinship-daemon")
def app() -> None:
    """Watch a hub for fine-tunes of a base, merge them by kinship, publish what is better."""


def main() -> None:
    """
    Run a command.

    Exits with 0: done; 2: wrong usage or config; 3: not done; 4: damaged lineage; 130: interrupted.
    """
    # Idle threads that spin make a busy machine many times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app.main(prog_name="kinship-daemon", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except click.Abort:
        _fail("interrupted", 130)
    except KinshipError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has seen enough (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        words = machine_words(error)
        if words is None:
            raise
        _fail(words, 3)


def _fail(message: str, code: int) -> None:
    print(f"kinship-daemon: {one_line(' '.join(message.split()), _LONGEST_ERROR)}", file=sys.stderr)
    sys.exit(code)
