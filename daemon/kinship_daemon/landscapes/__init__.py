"""Where policies are tried out: landscapes by name, or from a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kinship_daemon.errors import UsageError
from kinship_policies.refusals import complaint, nearest
from kinship_policies.simulate.landscape import Landscape
from kinship_policies.simulate.synthetic import Parameters, Synthetic
from kinship_policies.simulate.table import read_table

__all__ = ["open_landscape"]

_NAMES = ("demo", "synthetic")
_KNOWN = (
    "known: synthetic, synthetic:founders=8,tasks=3, demo, a table (.json), a lineage (.db) or the "
    "home that holds it"
)


@contextmanager
def open_landscape(text: str) -> Iterator[Landscape]:
    """
    The landscape that `--landscape` names.

    Args:
        text: `synthetic` or `demo`, with settings such as `synthetic:founders=8`, or a path.

    Raises:
        UsageError: There is none of that name, or a setting or the file is wrong.
    """
    name, _, settings = text.partition(":")
    if name == "synthetic":
        yield Synthetic(_parameters(settings))
    elif name == "demo":
        # torch takes seconds to import.
        from kinship_daemon.landscapes.demo import open_demo  # noqa: PLC0415

        with open_demo(_settings(settings)) as landscape:
            yield landscape
    else:
        yield _from_file(text)


def _from_file(text: str) -> Landscape:
    from kinship_daemon.landscapes.lineage import read_lineage  # noqa: PLC0415

    path = Path(text)
    if path.is_dir() and (path / "lineage.db").is_file():
        path /= "lineage.db"
    if not path.is_file():
        raise UsageError(f"no landscape {text!r}; {_KNOWN}{nearest(text, _NAMES)}")
    if path.suffix == ".json":
        return read_table(path)
    if path.suffix in {".db", ".sqlite"}:
        return read_lineage(path)
    raise UsageError(f"landscape {text}: neither a table (.json) nor a lineage (.db)")


def _parameters(text: str) -> Parameters:
    settings = _settings(text)
    known = list(Parameters.model_fields)
    if strange := sorted(settings.keys() - {*known}):
        raise UsageError(
            f"the synthetic landscape has no setting {strange[0]!r}; known: {', '.join(known)}"
            f"{nearest(strange[0], known)}"
        )
    try:
        parameters = Parameters(**settings)
    except ValidationError as error:
        raise UsageError(f"landscape synthetic: {complaint(Parameters, error)}") from None
    if parameters.dims % len(parameters.blocks):
        raise UsageError(
            f"landscape synthetic: dims is {parameters.dims}; with {parameters.layers} layers it "
            f"must be a multiple of {len(parameters.blocks)}"
        )
    return parameters


def _settings(text: str) -> dict[str, Any]:
    """`a=1,b=2`, the values in YAML."""
    settings = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"landscape setting {part!r}: expected name=value, as in founders=8")
        try:
            settings[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"landscape setting {part!r}: the value is not YAML") from None
    return settings
