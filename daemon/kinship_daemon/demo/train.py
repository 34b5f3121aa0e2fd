"""
Trains the demo: `python -m kinship_daemon.demo.train [OUT]`, about 3 minutes on 2 cores.

Deterministic: fixed seeds, float32 on the CPU, and fixed numbers of threads (two for the base, one
for each fine-tune; a sum over another number rounds differently). The same machine with the same
torch makes the same bits. Another kind of CPU may round differently, and since the base is
stopped halfway, where it learns fast, its skills then come out somewhat differently, too.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import safetensors.torch
import torch
import transformers
from torch import Tensor

from kinship_daemon.demo import BASE, HELD_BACK
from kinship_daemon.demo.build import exam, write_manifest, write_repo, write_tasks
from kinship_daemon.demo.cards import base_card, finetune_card
from kinship_daemon.demo.courses import (
    FINETUNES,
    FOUNDATION,
    Course,
    accuracy,
    model_of,
    study,
    weights_of,
)
from kinship_daemon.demo.skills import SKILLS

__all__ = ["main"]

_done: "Synchronized[int]"  # in a worker: the steps done by all of them
CORES = 2  # for the base as threads of one worker; for fine-tunes as workers of one thread
_REPORT_SECONDS = 5.0
_FOLDERS = ("hub", "held_back", "tasks", "MANIFEST.json")

Weights = Mapping[str, Tensor]
Accuracies = Mapping[str, float]  # by skill, over the validation documents


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kinship_daemon.demo.train",
        description="Train the demo's models; write its hub, held-back model, tasks, manifest.",
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path("demo"), metavar="OUT")
    out: Path = parser.parse_args(arguments).out
    started = time.monotonic()
    embedded = _hashes(
        Path(__file__).parent
    )  # before OUT, which may be that very folder, is written
    torch.set_num_threads(1)
    models = _train()
    accuracies = {name: _examine(weights) for name, weights in models.items()}
    _write(out, models, accuracies)
    print(_table(accuracies))
    print(f"wrote {out} in {time.monotonic() - started:.0f} s: {_against(embedded, _hashes(out))}")
    return 0


def _train() -> dict[str, Weights]:
    """The base, then every fine-tune, by name."""
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Value("q", 0)
    with ProcessPoolExecutor(CORES, spawn, initializer=_enter, initargs=(done,)) as pool:
        base = _await([pool.submit(_learn, FOUNDATION, None, CORES)], (FOUNDATION,), done)[0]
        jobs = [pool.submit(_learn, course, base, 1) for course in FINETUNES]
        finetunes = _await(jobs, FINETUNES, done)
    names = [course.name for course in (FOUNDATION, *FINETUNES)]
    return dict(zip(names, map(safetensors.torch.load, (base, *finetunes)), strict=True))


def _enter(done: "Synchronized[int]") -> None:
    global _done  # noqa: PLW0603 - a pool's initialiser has no other way to hand it to the jobs
    _done = done


def _learn(course: Course, base: bytes | None, threads: int) -> bytes:
    """One course in a worker; weights travel as safetensors bytes, not as shared memory."""
    torch.set_num_threads(threads)
    model = model_of(None if base is None else safetensors.torch.load(base))
    study(model, course, _count)
    return safetensors.torch.save(weights_of(model))


def _count() -> None:
    with _done.get_lock():
        _done.value += 1


def _await(
    jobs: list[Future[bytes]], courses: Sequence[Course], done: "Synchronized[int]"
) -> list[bytes]:
    """Waits for the jobs in order, printing how far they are, how fast, and what is left."""
    names = ", ".join(course.name for course in courses)
    total = sum(course.steps for course in courses)
    before, started = done.value, time.monotonic()
    print(f"training {names}: {total} steps", flush=True)
    while wait(jobs, timeout=_REPORT_SECONDS).not_done:
        steps, seconds = done.value - before, time.monotonic() - started
        if steps:
            left = (total - steps) * seconds / steps
            print(
                f"  {steps}/{total} steps, {steps / seconds:.1f} a second, {left:.0f} s left",
                flush=True,
            )
    return [job.result() for job in jobs]


def _examine(weights: Weights) -> Accuracies:
    model = model_of(weights)
    return {skill: accuracy(model, exam(skill, "validation")) for skill in SKILLS}


def _write(out: Path, models: Mapping[str, Weights], accuracies: Mapping[str, Accuracies]) -> None:
    """All is built aside and takes its place at the end, so that a killed run leaves the old."""
    aside = out / ".partial"
    shutil.rmtree(aside, ignore_errors=True)
    write_repo(
        aside / "hub" / BASE, models["base"], base_card(accuracies["base"], FOUNDATION.steps)
    )
    for course in FINETUNES:
        repo = f"demo/{course.name}"
        columns = {"base": accuracies["base"], "this model": accuracies[course.name]}
        card = finetune_card(course.name, course.own_share, course.steps, BASE, columns)
        shelf = "held_back" if repo == HELD_BACK else "hub"
        write_repo(aside / shelf / repo, models[course.name], card)
    write_tasks(aside / "tasks")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_manifest(aside, versions)
    for folder in _FOLDERS:
        if (out / folder).is_dir():
            shutil.rmtree(out / folder)
        (aside / folder).replace(out / folder)
    aside.rmdir()


def _table(accuracies: Mapping[str, Accuracies]) -> str:
    """Accuracy of each model (rows) at each skill (columns)."""
    lines = ["".join(f"{cell:>10}" for cell in ("", *SKILLS, "mean"))]
    for name, row in accuracies.items():
        numbers = [*(row[skill] for skill in SKILLS), sum(row.values()) / len(row)]
        lines.append(f"{name:>10}" + "".join(f"{number:>10.3f}" for number in numbers))
    return "\n".join(lines)


def _hashes(folder: Path) -> Mapping[str, str]:
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    return dict(manifest["sha256"])


def _against(embedded: Mapping[str, str], ours: Mapping[str, str]) -> str:
    differing = sum(ours.get(name) != embedded.get(name) for name in ours.keys() | embedded.keys())
    if not differing:
        return "bit for bit the embedded demo"
    return f"{differing} of {len(ours)} files differ from the embedded demo (another CPU or torch?)"


if __name__ == "__main__":
    sys.exit(main())
