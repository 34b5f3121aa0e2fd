"""`merge`: a model from a mergekit recipe, by hand, without a home."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import torch

from kinship_daemon.cli.ledger import (
    calculation_option,
    descendants,
    device_option,
    hub_option,
    ledger_of,
    shard_option,
)
from kinship_daemon.cli.place_options import home_options
from kinship_daemon.cli.texts import check_texts, layer_inputs, texts_option
from kinship_daemon.device import resolve_device
from kinship_daemon.durable import whole_folder
from kinship_daemon.errors import UsageError
from kinship_daemon.models import Found, find_models
from kinship_daemon.report import reporter
from kinship_daemon.weights import mergekit
from kinship_daemon.weights.assembly import Assembly, assemble
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.gram import unmeasured
from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.mergekit import MergekitRecipe, Unsupported
from kinship_daemon.weights.methods.method import needs_inputs
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import combine, leaf
from kinship_daemon.weights.tokenizer import has_tokenizer
from kinship_daemon.weights.vocabulary import Vocabulary, unite

if TYPE_CHECKING:
    from kinship_daemon.weights.whole_tensor import WholeTensorAssembly

__all__ = ["merge_command"]

_RECIPE = "mergekit_config.yml"  # as mergekit calls it


@dataclass(frozen=True)
class _Options:
    device: str
    hub: str | None
    shard_bytes: int
    otherwise: bool
    home: Path | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Merge:
    """One merge of the YAML; `wanted` is None where it is mergekit's to make."""

    name: str | None
    text: str
    wanted: MergekitRecipe | None


@click.command("merge")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@shard_option
@home_options
@texts_option
@calculation_option
@device_option
@hub_option
def merge_command(
    recipe: Path,
    out: Path,
    shard_gb: float,
    home: Path | None,
    base: str | None,
    texts: tuple[str, ...],
    otherwise: bool,
    device: str,
    hub: str | None,
) -> None:
    """
    Make a model from RECIPE, mergekit's YAML, in the folder OUT, with the recipe beside it.

    With a home, its models can be named as its lineage does.

    What is not ours to make (other methods, stacks of layers) is made with mergekit, where that is
    installed.
    """
    try:
        text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {recipe}: {error}") from None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name a new folder")
    if base is not None:
        from kinship_daemon.cli.options import find_home_of  # noqa: PLC0415 - as for _from_home

        home = find_home_of(home, base).path
    options = _Options(resolve_device(device), hub, int(shard_gb * 1e9), otherwise, home, texts)
    merges = [_understood(each) for each in mergekit.in_order(text)]
    check_texts([merge.wanted.recipe for merge in merges if merge.wanted is not None], texts)
    with _from_home(merges, out, options) as known:
        if len(merges) == 1:
            files = _make(merges[0], known, out, options, text)
        else:
            files = _make_all(merges, known, out, options, text)
    click.echo(f"{out}: {_described(merges[-1])}")
    for merge in merges:
        if merge.wanted is not None and merge.wanted.ignored:
            shown = ", ".join(merge.wanted.ignored)
            click.echo(f"left out, as mergekit does, for it says nothing there: {shown}", err=True)
    for name, sha256 in files.items():
        click.echo(f"{sha256}  {name}")


def _understood(document: mergekit.Document) -> _Merge:
    """Whose to make it is, told before anything is fetched."""
    try:
        return _Merge(document.name, document.text, mergekit.read_yaml(document.text))
    except Unsupported as unsupported:
        _need_mergekit(unsupported)
        try:
            mergekit.ask(document.text)
        except UsageError as error:
            raise UsageError(f"{unsupported}; {error}") from None
        return _Merge(document.name, document.text, None)


def _need_mergekit(unsupported: Unsupported) -> None:
    if not mergekit.available():
        raise UsageError(f"{unsupported} - or have mergekit try: {mergekit.INSTALL}") from None


@contextmanager
def _from_home(
    merges: Sequence[_Merge], out: Path, options: _Options
) -> Iterator[Mapping[str, Path]]:
    """Models that a home knows, by name; its merges are made beside the result for a while."""
    if options.home is None:
        yield {}
        return
    # Imports half of the daemon, which only who names a home needs.
    from kinship_daemon.cli.of_home import home_folders, home_models  # noqa: PLC0415

    names = {name for merge in merges for name in mergekit.references(merge.text)}
    names -= {str(merge.name) for merge in merges}
    parent = out.absolute().parent
    with (
        home_models(options.home) as models,
        TemporaryDirectory(prefix=".merge-", dir=parent) as room,
    ):
        yield home_folders(models, sorted(names), Path(room))


def _make_all(
    merges: Sequence[_Merge],
    known: Mapping[str, Path],
    out: Path,
    options: _Options,
    text: str,
) -> dict[str, str]:
    """Merges of merges: those in between lie beside the result until it is there."""
    with whole_folder(out) as folder:
        between = folder / ".merges"
        made: dict[str, Path] = dict(known)
        for merge in merges[:-1]:
            assert merge.name is not None
            _make(merge, made, between / merge.name, options, merge.text)
            made[merge.name] = between / merge.name
        files = _make(merges[-1], made, folder / ".made", options, text)
        shutil.rmtree(between)
        for path in sorted((folder / ".made").iterdir()):
            path.rename(folder / path.name)
        (folder / ".made").rmdir()
        return files


def _make(
    merge: _Merge, made: Mapping[str, Path], out: Path, options: _Options, text: str
) -> dict[str, str]:
    """
    Args:
        text: The recipe to leave beside the weights; mergekit leaves its own.
    """
    if merge.wanted is None:
        return _by_mergekit(merge.text, made, out, options)
    found = _find(merge.wanted.models, made, options)
    near = next(folder for folder in out.absolute().parents if folder.is_dir())
    with TemporaryDirectory(prefix=".inputs-", dir=near) as room:
        try:
            assembly = _assembled(merge.wanted, found, options, Path(room))
        except Unsupported as unsupported:
            _need_mergekit(unsupported)
            return _by_mergekit(merge.text, made, out, options)
        return _write(assembly, merge.wanted, out, options, text)


def _find(names: Sequence[str], made: Mapping[str, Path], options: _Options) -> dict[str, Found]:
    """Every model by name; merges of the same YAML come before folders and the hub."""
    others = find_models([name for name in names if name not in made], None, options.hub)
    known = {model.name: model for model in others}
    return {name: known.get(name) or Found(name, made[name]) for name in names}


def _assembled(
    wanted: MergekitRecipe, found: Mapping[str, Found], options: _Options, room: Path
) -> Assembly | WholeTensorAssembly:
    base = found[wanted.base]
    foundation = Checkpoint.open(base.folder)
    wanted.check(tuple(foundation.tensors))
    _check_tokens(wanted, foundation, found)
    recipe = wanted.recipe
    others = [
        replace(found[name.rpartition("+")[2]], name=name)  # an adapter, or a model
        for name in recipe.parents
        if name != base.name
    ]
    merge = method(recipe.method)
    if merge.kind == "span" and merge.uses_dots:
        ledger, _ = ledger_of(base, others, options.device, otherwise=options.otherwise)
    else:
        ledger = _unread(base, foundation, others, options)
    folders = {model.name: model.folder for model in others}
    donor = found[wanted.donor].folder
    identity = recipe.identity(recipe.parents)
    parents = [leaf(ledger, name) for name in recipe.parents]
    if merge.kind == "span":
        child = combine(ledger, recipe, parents)
        return assemble(ledger, child, base.folder, folders, identity, donor=donor)
    # The rest of the package does without.
    from kinship_daemon.weights.whole_tensor import whole_tensor_assembly  # noqa: PLC0415

    assemblies = [
        assemble(ledger, parent, base.folder, folders, name, donor=donor)
        for name, parent in zip(recipe.parents, parents, strict=True)
    ]
    inputs = None
    if needs_inputs(merge):
        sources = {name: found[name.rpartition("+")[2]].folder for name in recipe.parents}
        inputs = layer_inputs(
            sources, base.folder, ledger.names, options.texts, options.device, room
        )
    return whole_tensor_assembly(
        recipe, assemblies, ledger.names, base.folder, identity, donor, options.device, inputs
    )


def _check_tokens(wanted: MergekitRecipe, base: Checkpoint, found: Mapping[str, Found]) -> None:
    """Our results have every token of every model; `base`, or a model, asks for its own alone."""
    own = Vocabulary.of(base)
    if wanted.tokenizer in (None, "union") or own is None:
        return
    of = {name: descend(base, model.folder).vocabulary or own for name, model in found.items()}
    union = unite(of[wanted.donor], [*of.values()])
    if union is not None and union.added:
        token, _ = union.added[0]
        raise Unsupported(f"tokenizer: {wanted.donor} lacks {token!r}; with union, nothing is lost")


def _unread(
    base: Found, foundation: Checkpoint, others: Sequence[Found], options: _Options
) -> Ledger:
    """A ledger without inner products, for methods that ask for none: headers are read, no more."""
    descendants(base, foundation, others, otherwise=options.otherwise)
    blank = unmeasured(foundation, base.name)
    width = len(others) + 2
    gram = torch.zeros(len(blank.names), width, width, dtype=torch.float64)
    return replace(blank, rows=tuple(model.name for model in others), gram=gram)


def _write(
    assembly: Assembly | WholeTensorAssembly,
    wanted: MergekitRecipe,
    out: Path,
    options: _Options,
    text: str,
) -> dict[str, str]:
    # Imports transformers, which takes seconds: not before all has been checked.
    from kinship_daemon.weights.materialise import write  # noqa: PLC0415

    dtype = None if wanted.dtype is None else getattr(torch, wanted.dtype)
    opened = assembly.open()
    size = sum(t.elements * (dtype or opened.own_dtype(t.name)).itemsize for t in opened.tensors)
    report = reporter(log_json=False, stream=sys.stderr)
    with report.progress(f"write {out}", size, "bytes") as advance:
        files = write(
            assembly,
            out,
            dtype=dtype,
            shard_bytes=options.shard_bytes,
            progress=advance,
            extra={_RECIPE: text},
            without_tokenizer=True,
        )
    if not has_tokenizer(out):
        click.echo(f"warning: {wanted.donor} has no tokenizer, so {out} has none", err=True)
    return files


def _by_mergekit(
    text: str, made: Mapping[str, Path], out: Path, options: _Options
) -> dict[str, str]:
    found = _find(mergekit.references(text), made, options)
    click.echo("not one of our merges: mergekit makes it", err=True)
    folders = {name: model.folder for name, model in found.items()}
    return mergekit.run(text, folders, out, device=options.device, shard_bytes=options.shard_bytes)


def _described(merge: _Merge) -> str:
    if merge.wanted is None:
        return f"made by mergekit from {', '.join(mergekit.references(merge.text))}"
    return f"{merge.wanted.recipe.method} of {', '.join(merge.wanted.recipe.parents)}"
