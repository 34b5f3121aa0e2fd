"""Shipped presets: a policy by name with its settings, as a commented YAML file each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from kinship_policies.refusals import nearest
from kinship_storage.errors import UsageError

__all__ = ["list_presets", "load_preset", "preset_text"]


def list_presets() -> tuple[str, ...]:
    """Names of the shipped presets, sorted."""
    found = (Path(entry.name) for entry in files(__package__).iterdir())
    return tuple(sorted(path.stem for path in found if path.suffix == ".yaml"))


def load_preset(name: str) -> Mapping[str, Any]:
    """
    A preset: `use`, the policy's name or path, and its settings beside it.

    Args:
        name: Of a shipped preset, or the path of a file ending in .yaml or .yml.

    Raises:
        UsageError: No such preset or file, or it is not one.
    """
    return _parse(preset_text(name), name)


def preset_text(name: str) -> str:
    """A preset as it is written, comments and all; names and errors as for `load_preset`."""
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name))
    names = list_presets()
    if name not in names:
        raise UsageError(
            f"no preset {name!r}; shipped: {', '.join(names)}{nearest(name, names)}; "
            "a file of your own ends in .yaml"
        )
    return (files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the preset {path}: {error}") from error


def _parse(text: str, name: str) -> Mapping[str, Any]:
    try:
        preset = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"preset {name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(preset, dict) or not isinstance(preset.get("use"), str):
        raise UsageError(f"preset {name} names no policy; it needs a line like `use: topk-kinship`")
    keys = [key.value for key, _ in yaml.compose(text).value]  # type: ignore[union-attr]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"preset {name} has the key {twice!r} twice")
    return preset
