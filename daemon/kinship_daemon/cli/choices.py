"""`config`, `bases`, `policies`, `methods`, `demo`: what can be chosen and how it is set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from kinship_daemon import config as configuration
from kinship_daemon import demo
from kinship_daemon.cli.options import (
    config_options,
    echo_json,
    format_option,
    home_options,
    load_config,
)
from kinship_daemon.config import Config
from kinship_daemon.errors import UsageError
from kinship_daemon.home import find_home, state_directory
from kinship_daemon.hub.bases import ALIASES
from kinship_daemon.layout import echo_hanging
from kinship_daemon.report import count
from kinship_policies import registry
from kinship_policies.presets import load_preset, preset_text

__all__ = ["bases_command", "config_command", "demo_command", "methods_command", "policies_command"]


@click.group("config")
def config_command() -> None:
    """Show, check or describe the configuration."""


@config_command.command("show")
@config_options
@format_option("yaml")
def _show(
    config_file: Path | None, overrides: tuple[str, ...], form: str, **flags: str | None
) -> None:
    """The effective configuration: defaults, file, flags, --set."""
    config = load_config(config_file, overrides=overrides, **flags)  # type: ignore[arg-type]
    if form == "json":
        echo_json(config.model_dump(mode="json"))
    else:
        click.echo(configuration.to_yaml(config), nl=False)


@config_command.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tasks", is_flag=True, help="Load the evaluation tasks, too; may download them.")
def _check(file: Path, tasks: bool) -> None:
    """Find all mistakes in a file: keys, values, base, policy, merge method, with --tasks tasks."""
    config, mistakes = configuration.examine(file)
    mistakes += _refused(config)
    if tasks and not mistakes:
        mistakes += _refused_tasks(config)
    if len(mistakes) > 1:
        for line in mistakes:
            click.echo(line, err=True)
        raise UsageError(f"{file}: {count(len(mistakes), 'mistake')}, see above")
    if mistakes:
        raise UsageError(f"{file}: {mistakes[0]}")
    click.echo(f"{file}: good")


def _refused(config: Config) -> Iterator[str]:
    """What the parts of the daemon would refuse at a start."""
    # torch takes seconds to import.
    from kinship_daemon.startup import evaluation_settings, the_base  # noqa: PLC0415
    from kinship_daemon.weights.recipe import Recipe, check  # noqa: PLC0415

    merge = Recipe(config.merge.method, ("a", "b"), config.merge.parameters)
    for attempt in (
        lambda: the_base(config),
        lambda: registry.make(config.policy.use, config.policy.settings),
        lambda: check(merge, ()),
        lambda: evaluation_settings(config),
    ):
        try:
            attempt()
        except UsageError as error:
            yield str(error)


def _refused_tasks(config: Config) -> Iterator[str]:
    """What is wrong with the evaluation tasks, loaded as the daemon loads them."""
    from kinship_daemon.evaluate.evaluator import open_evaluator  # noqa: PLC0415 - slow to import
    from kinship_daemon.startup import evaluation_settings  # noqa: PLC0415

    log = state_directory() / "evaluate.log"
    try:
        with closing(open_evaluator(evaluation_settings(config), log=log)) as evaluator:
            evaluator.check()
    except UsageError as error:
        yield str(error)


@config_command.command("schema")
def _schema() -> None:
    """The JSON schema of the file, for editors."""
    click.echo(json.dumps(configuration.schema(), indent=2))


@click.command("bases")
@format_option()
def bases_command(form: str) -> None:
    """Short names for --base."""
    if form == "json":
        echo_json(
            [{"name": name, "repo": repo} for name, repo in [*ALIASES.items(), ("demo", None)]]
        )
        return
    width = max(map(len, ALIASES))
    for alias, repo in ALIASES.items():
        click.echo(f"{alias:<{width}}  {repo}")
    click.echo(f"{'demo':<{width}}  the embedded demo: small real models, no network")
    click.echo("or org/name[@revision], or a local folder")


@click.command("methods")
@click.argument("names", nargs=-1)
@format_option()
def methods_command(names: tuple[str, ...], form: str) -> None:
    """Installed merge methods and their parameters; with NAMES, only those."""
    # Imports torch.
    from kinship_daemon.weights.methods.registry import method, methods  # noqa: PLC0415

    chosen = {name: method(name) for name in names} if names else methods()
    if form == "json":
        echo_json([_method(name, found) for name, found in chosen.items()])
        return
    for name, found in chosen.items():
        echo_hanging(f"{name} ({found.kind}): ", _purpose(found))
        for parameter in found.parameters:
            default = "required" if parameter.default is None else f"default {parameter.default}"
            each = ", one per model or one for all" if parameter.per_model else ""
            about = f": {parameter.doc}" if parameter.doc else ""
            echo_hanging(f"    {parameter.name}  ", f"({default}{each}){about}")


def _method(name: str, found: Any) -> dict[str, Any]:
    parameters = [
        {"name": p.name, "default": p.default, "per_model": p.per_model, "about": p.doc}
        for p in found.parameters
    ]
    return {"name": name, "kind": found.kind, "about": _purpose(found), "parameters": parameters}


def _purpose(found: object) -> str:
    """What something is for: the first paragraph of its docstring, in one line."""
    return " ".join((found.__doc__ or "").strip().partition("\n\n")[0].split())


@click.command("demo")
@click.argument("action", type=click.Choice(["release"]))
@home_options
def demo_command(action: str, home: Path | None, base: str | None) -> None:  # noqa: ARG001
    """`demo release` drops the held-back fine-tune into the demo's hub."""
    if base not in (None, "demo"):
        raise UsageError(f"--base {base} has no demo; the demo's home is that of --base demo")
    found = find_home(home, "demo")
    name = demo.release(found.demo_hub)
    click.echo(
        f"released {name} into {found.demo_hub}; a running daemon notices it at its next poll"
    )


@click.group("policies", invoke_without_command=True)
@format_option()
@click.pass_context
def policies_command(context: click.Context, form: str) -> None:
    """Installed policies: what each does, its settings; and presets."""
    if context.invoked_subcommand is not None:
        return
    if form == "json":
        known = [
            {**asdict(policy), "about": _purpose(registry.find(policy.name))}
            | {"settings": list(_settings(policy.name))}
            for policy in registry.installed()
        ]
        echo_json({"policies": known, "presets": registry.list_presets()})
        return
    for policy in registry.installed():
        echo_hanging(f"{policy.name}: ", _purpose(registry.find(policy.name)))
        echo_hanging("    from ", f"{policy.provider}, {policy.path}")
        for setting in _settings(policy.name):
            bounds = f"  ({setting['bounds']})" if setting["bounds"] else ""
            default = "required" if setting["required"] else json.dumps(setting["default"])
            echo_hanging(f"    {setting['name']}: ", f"{default}{bounds}")
    click.echo("presets: a policy with its settings (`policies show NAME` prints one)")
    for name in registry.list_presets():
        click.echo(f"    {name}")


@policies_command.command("show")
@click.argument("name")
@format_option("yaml")
def _show_preset(name: str, form: str) -> None:
    """A preset, to copy and change."""
    if form == "json":
        settings = dict(load_preset(name))
        echo_json({"use": settings.pop("use"), "settings": settings})
    else:
        click.echo(preset_text(name), nl=False)


def _settings(policy: str) -> Iterator[dict[str, Any]]:
    """Every setting of a policy that declares them as a pydantic model does."""
    cls = registry.find(policy)
    if not issubclass(cls, BaseModel):
        return
    for name, field in cls.model_json_schema()["properties"].items():
        forms = field.get("anyOf", [field])
        bounds = [f"at least {f['minimum']:g}" for f in forms if "minimum" in f]
        bounds += [f"at most {f['maximum']:g}" for f in forms if "maximum" in f]
        bounds += [f"above {f['exclusiveMinimum']:g}" for f in forms if "exclusiveMinimum" in f]
        bounds += [f"below {f['exclusiveMaximum']:g}" for f in forms if "exclusiveMaximum" in f]
        bounds += [f"one of {', '.join(f['enum'])}" for f in forms if "enum" in f]
        yield {
            "name": name,
            "default": field.get("default"),
            "required": "default" not in field,
            "bounds": ", ".join(bounds),
        }
