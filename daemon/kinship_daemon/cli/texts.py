"""Texts that the user names, and what models are given on them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from kinship_daemon.errors import UsageError
from kinship_daemon.report import reporter
from kinship_daemon.weights.assembly import leaf_assembly
from kinship_daemon.weights.layer_inputs import LayerInputs
from kinship_daemon.weights.methods.method import needs_inputs
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe

__all__ = ["check_texts", "layer_inputs", "texts_option"]

texts_option = click.option(
    "--texts",
    multiple=True,
    metavar="[MODEL=]FILE",
    help="For regmean: texts of a parent's task, one a line; without MODEL, of all others.",
)


def check_texts(recipes: Sequence[Recipe], given: Sequence[str]) -> None:
    """
    See that every parent whose texts are needed has some, before anything is fetched.

    Raises:
        UsageError: One has none, or texts are for nobody.
    """
    of, for_all = _by_model(given)
    needing = [recipe for recipe in recipes if needs_inputs(method(recipe.method))]
    if given and not needing:
        raise UsageError("--texts: no merge of this recipe looks at texts; regmean does")
    parents = dict.fromkeys(name for recipe in needing for name in recipe.parents)
    for name in of:
        if name not in parents:
            raise UsageError(f"--texts: {name} is no parent; there are {', '.join(parents)}")
    lacking = [name for name in parents if name not in of and for_all is None]
    if lacking:
        raise UsageError(
            f"{needing[0].method} needs texts of {lacking[0]}'s task: --texts {lacking[0]}=FILE"
        )


def layer_inputs(
    parents: Mapping[str, Path],
    base: Path,
    names: Sequence[str],
    given: Sequence[str],
    device: str,
    room: Path,
) -> LayerInputs:
    """
    What the layers of each parent are given on its texts, in files in `room`.

    Args:
        parents: Their folders, adapters among them, in the order of the recipe.
        names: The base's tensors.

    Raises:
        UsageError: Texts cannot be read.
        ModelError: A model cannot be built, or makes NaN of a text.
        KinshipError: The disk is full.
    """
    # Imports transformers, which takes seconds.
    from kinship_daemon.weights.activations import (  # noqa: PLC0415
        measure_inputs,
        read_texts,
        reader,
    )

    of, for_all = _by_model(given)
    files = {name: of.get(name, for_all) for name in parents}
    texts = {name: read_texts(file) for name, file in files.items() if file is not None}
    report = reporter(log_json=False, stream=sys.stderr)
    folders = []
    for number, (name, folder) in enumerate(parents.items()):
        folders.append(room / str(number))
        folders[-1].mkdir()
        with report.progress(f"read texts with {name}", len(texts[name]), "texts") as advance:
            read = reader(leaf_assembly(folder, name, base), texts[name], device)
            measure_inputs(read.model, read.tokens, names, folders[-1], advance)
    return LayerInputs(tuple(folders))


def _by_model(given: Sequence[str]) -> tuple[dict[str, Path], Path | None]:
    """The files by model, and the one of all others."""
    of = {name: Path(file) for name, is_of, file in (x.rpartition("=") for x in given) if is_of}
    others = [Path(each) for each in given if "=" not in each]
    if len(others) > 1:
        raise UsageError(f"--texts: {others[0]} and {others[1]} are both for all; say MODEL=FILE")
    return of, others[0] if others else None
