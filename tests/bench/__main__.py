"""`python -m tests.bench`: measure, print the table, exit with 1 where a bar is missed."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

# Before any Hugging Face library is imported: nothing here needs the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.bench.ancestry import ancestry
from tests.bench.bench import Bench
from tests.bench.demo import demo
from tests.bench.device import device
from tests.bench.evaluation import evaluation
from tests.bench.gate import gate
from tests.bench.kernel import kernel, small
from tests.bench.kinships import all_pairs, exactness, growth, pair
from tests.bench.lineage import lineage
from tests.bench.look import look
from tests.bench.matrices import matrix
from tests.bench.merges import linear, slerp, ties
from tests.bench.models import nbytes
from tests.bench.pages import pages
from tests.bench.processes import CommandFailed
from tests.bench.sample import sample
from tests.bench.simulations import simulations
from tests.bench.table import Progress, Row, gigabytes, machine, markdown, progress
from tests.bench.unborn import unborn
from tests.bench.workers import on_ray, workers

from kinship_daemon.errors import KinshipError

Measurement = Callable[[Bench], list[Row]]

MEASUREMENTS: Mapping[str, Measurement] = {
    "pair": pair,
    "all-pairs": all_pairs,
    "kernel": kernel,
    "linear": linear,
    "slerp": slerp,
    "ties": ties,
    "matrix": matrix,
    "unborn": unborn,
    "exactness": exactness,
    "growth": growth,
    "sample": sample,
    "ancestry": ancestry,
    "lineage": lineage,
    "look": look,
    "gate": gate,
    "demo": demo,
    "device": device,
    "evaluation": evaluation,
    "workers": workers,
    "pages": pages,
    "simulations": simulations,
    "ray": on_ray,
}
_WRITING = ("linear", "slerp", "ties")


def main() -> int:
    options = _options()
    needed = _disk(options.parameters, options.models, options.candidates, options.only)
    with ExitStack() as stack:
        models = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(models).free
        print(f"up to {gigabytes(needed)} of disk under {models}; {gigabytes(free)} are free")
        if free < needed and options.folder is None:
            print("that is too little; free some, or name another --folder", file=sys.stderr)
            return 2
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=models)))
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.out or scratch)))
        shown = stack.enter_context(progress())
        sizes = (options.parameters, options.models, options.repeat, options.candidates)
        choices = (options.language_model, options.evolutions)
        bench = Bench(models, scratch, out, *sizes, shown, *choices)
        rows = [row for name in options.only for row in _measured(name, bench, shown)]
    facts = machine()
    print(markdown(rows, facts, nbytes(options.parameters) // 2))
    if options.json:
        result = {"machine": facts, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(any(row.verdict in ("missed", "failed") for row in rows))


def _measured(name: str, bench: Bench, shown: Progress) -> list[Row]:
    try:
        rows = MEASUREMENTS[name](bench)
    except (CommandFailed, KinshipError) as error:
        rows = [Row(name, verdict="failed", notes=(str(error),))]
    shown.done(rows)
    return rows


def _disk(parameters: float, models: int, candidates: int, only: Sequence[str]) -> int:
    """Bytes that the measurements need at most."""
    whole = 3
    if "all-pairs" in only:
        whole = max(whole, 1 + models)
    if "device" in only:
        whole = max(whole, 1 + min(models, 5))
    if any(name in only for name in _WRITING):
        whole += 2
    if "matrix" in only:
        whole += 7
    total = whole * nbytes(parameters)
    if "kernel" in only or "device" in only:
        total += 17 * nbytes(small(parameters))
    if "look" in only:
        total += candidates * 700_000
    if "growth" in only:
        total += 3 * sum(nbytes(parameters * factor) for factor in (0, 0.25, 0.5))
    return total


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where models are made, and kept for reuse")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where merges are written, ours and mergekit's (in --folder); in memory, say, so that "
        "no disk is waited for",
    )
    parser.add_argument(
        "--parameters", type=float, default=0.85e9, help="of a model, about (0.85e9)"
    )
    parser.add_argument("--models", type=int, default=8, help="fine-tunes for all pairs (8)")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is timed (3)")
    parser.add_argument(
        "--candidates", type=int, default=3000, help="on the hub that is looked at (3000)"
    )
    parser.add_argument(
        "--language-model",
        type=Path,
        metavar="FOLDER",
        help="what `evaluation` asks: transformers' own or one GGUF file (random weights)",
    )
    parser.add_argument(
        "--evolutions",
        type=int,
        default=1_000,
        help="simulated of each kind, for gate (1000); ten times as many for simulations",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(MEASUREMENTS),
        metavar="NAME[,NAME]",
        help=", ".join(MEASUREMENTS),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, too")
    options = parser.parse_args()
    for name in options.only:
        if name not in MEASUREMENTS:
            parser.error(f"no measurement {name!r}; there are {', '.join(MEASUREMENTS)}")
    if options.out is not None and not options.out.is_dir():
        parser.error(f"no folder {options.out}")
    if options.language_model is not None and not options.language_model.is_dir():
        parser.error(f"no folder {options.language_model}")
    if options.models < 2 or options.candidates < 3 or min(options.repeat, options.evolutions) < 1:
        parser.error(
            "--models takes 2 or more, --candidates 3 or more, --repeat and --evolutions 1 or more"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
