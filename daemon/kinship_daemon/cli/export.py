"""`export`: any merge of a home as a model folder, or as one GGUF file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from kinship_daemon.cli.ledger import shard_option
from kinship_daemon.cli.of_home import home_models
from kinship_daemon.cli.options import find_home_of, find_model, home_options
from kinship_daemon.durable import sync
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.foreign.shown import shown
from kinship_daemon.home_models import HomeModels
from kinship_daemon.report import amount, reporter
from kinship_daemon.weights.materialise import write
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["export_command"]

_CONVERTER = "convert_hf_to_gguf.py"
_ADVICE = (
    f"GGUF files are written by llama.cpp's {_CONVERTER}: clone github.com/ggml-org/llama.cpp, "
    f"`pip install -r` its requirements.txt, and name the script with --converter"
)


@click.command("export")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "form",
    "--format",
    type=click.Choice(["safetensors", "gguf"]),
    default="safetensors",
    show_default=True,
    help="A folder that transformers loads, or one file for llama.cpp.",
)
@shard_option
@click.option(
    "--converter",
    type=click.Path(path_type=Path),
    help=f"llama.cpp's {_CONVERTER}; by default the one on PATH.",
)
@home_options
def export_command(
    model: str,
    out: Path,
    form: str,
    shard_gb: float,
    converter: Path | None,
    home: Path | None,
    base: str | None,
) -> None:
    """
    Write MODEL, a merge of a home, published or not, to OUT. A daemon may run meanwhile.

    A folder also holds the recipe: recipe.yml of its parents, mergekit_config.yml of fine-tunes.
    """
    script = None if form == "safetensors" else _converter(converter)
    if out.exists() and (script is not None or not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; name a new {'file' if script else 'folder'}")
    with home_models(find_home_of(home, base).path) as models:
        chosen = _merge(models.lineage, model)
        if script is None:
            _folder(models, chosen, out, int(shard_gb * 1e9))
        else:
            out.absolute().parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".export-", dir=out.absolute().parent) as room:
                _folder(models, chosen, Path(room) / chosen.id, int(shard_gb * 1e9))
                _convert(script, Path(room) / chosen.id, out)
    size = sum(f.stat().st_size for f in out.rglob("*")) if out.is_dir() else out.stat().st_size
    click.echo(f"{out}: {chosen.id} as {form}, {amount(size, 'bytes')}")


def _merge(lineage: Lineage, name: str) -> Model:
    found = find_model(lineage, name)
    if found.recipe is None:
        raise UsageError(f"{found.id} is no merge: it is on the hub as {found.repo} already")
    return found


def _folder(models: HomeModels, model: Model, out: Path, shard_bytes: int) -> None:
    recipes = {
        "recipe.yml": models.recipes.made(model),
        "mergekit_config.yml": models.recipes.from_leaves(model),
    }
    assembly = models.assembly(model)
    size = assembly.open().base.nbytes
    report = reporter(log_json=False, stream=sys.stderr)
    with report.progress(f"write {model.id}", size, "bytes") as advance:
        write(assembly, out, shard_bytes=shard_bytes, extra=recipes, progress=advance)


def _converter(given: Path | None) -> Path:
    """Known before anything is made."""
    if given is None:
        on_path = shutil.which(_CONVERTER)
        if on_path is None:
            raise UsageError(_ADVICE)
        return Path(on_path)
    script = given / _CONVERTER if given.is_dir() else given
    if not script.is_file():
        raise UsageError(f"no file {script}. {_ADVICE}")
    return script


def _convert(script: Path, folder: Path, out: Path) -> None:
    """The file appears under its name when it is whole; the type of the numbers is kept."""
    partial = folder.parent / "partial.gguf"
    command = [sys.executable, str(script), str(folder), "--outfile", str(partial)]
    click.echo(f"{script.name} converts it", err=True)
    done = subprocess.run(
        [*command, "--outtype", "auto"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not partial.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "it wrote nothing").splitlines()[-1]
        raise KinshipError(f"{script} failed ({done.returncode}): {shown(last)}")
    sync(partial)
    partial.rename(out)
    sync(out.absolute().parent)
