"""A run of the demo: what it asks, and whether what it publishes is better on fresh documents."""

import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.bench.bench import Bench
from tests.bench.processes import kinship_daemon, timed
from tests.bench.table import Row, verdict
from torch import Tensor
from transformers import MistralForCausalLM

from kinship_daemon.demo.build import exam
from kinship_daemon.demo.courses import model_of
from kinship_daemon.demo.skills import SKILLS, Example, Part, examples
from kinship_daemon.demo.text import IGNORED, encode

__all__ = ["demo"]

_FRESH = 20_000
_PARTS: tuple[Part, ...] = ("selection", "validation")
_ASKED = 0.6  # of the documents of all that are asked about
_DRAWS = 100_000  # of a skill: far more than its smallest spaces of prompts have
_BATCH = 2_000


def demo(bench: Bench) -> list[Row]:
    """A row of documents, and one of the fresh ones for each rule of publication."""
    bench.progress.runs("demo: drawing fresh documents")
    fresh = _fresh(_FRESH)
    rows = []
    for rule in ("best", "parents"):
        bench.progress.runs(f"demo: a run, publish.require {rule}")
        home = _run(bench.scratch / f"demo-{rule}", rule)
        with closing(sqlite3.connect(f"file:{home / 'lineage.db'}?mode=ro", uri=True)) as lineage:
            if rule == "best":
                rows.append(_documents(lineage))
            bench.progress.runs(f"demo: publications of {rule} on fresh documents")
            rows.append(_publications(lineage, home, fresh, rule))
    return rows


def _run(folder: Path, rule: str) -> Path:
    folder.mkdir()
    config = folder / "demo.yml"
    config.write_text(f"base: demo\nhome: home\npublish: {{require: {rule}}}\n", encoding="utf-8")
    timed(kinship_daemon("run", "--config", config, "--until-converged"))
    return folder / "home"


def _documents(lineage: sqlite3.Connection) -> Row:
    """
    What was asked, of all documents that the same run asks without looks and without a race.

    Then everyone answers all of selection, and of validation every merge that did better there than
    its parents, and they: so was it before, and all of them were judged.
    """
    asked = dict(lineage.execute("SELECT split, sum(n) FROM scores GROUP BY split").fetchall())
    scored = _one(lineage, "SELECT count(*) FROM scores WHERE split = 'selection'")
    before = {"selection": scored * len(exam(SKILLS[0], "selection"))}
    size = len(SKILLS) * len(exam(SKILLS[0], "validation"))
    before["validation"] = len(_promising(lineage)) * size
    judged = "SELECT model FROM gates"
    kin = f"SELECT parent FROM parents WHERE model IN ({judged})"
    taking_part = _one(lineage, f"SELECT count(*) FROM ({judged} UNION {kin})") * size
    share = sum(asked.values()) / sum(before.values())
    of_these = sum(asked.values()) / (before["selection"] + taking_part)
    return Row(
        work="the demo: documents asked, of what it asked before there were looks and a race",
        ours=" + ".join(f"{asked[part]:,} {part}" for part in _PARTS),
        peer=" + ".join(f"{before[part]:,}" for part in _PARTS),
        ratio=f"{share:.2f}",
        bar=f"<= {_ASKED}",
        verdict=verdict(share <= _ASKED),
        notes=(
            f"of all documents of those merges alone that are judged now, and of their parents: "
            f"{of_these:.2f} ({before['selection']:,} + {taking_part:,})",
        ),
        facts={"asked": asked, "before": before, "taking_part": taking_part},
    )


def _promising(lineage: sqlite3.Connection) -> set[int]:
    """Merges that did better on selection than each of their parents, and these parents."""
    means = dict(
        lineage.execute(
            "SELECT models.number, avg(score) FROM models JOIN scores USING (weights)"
            " WHERE split = 'selection' GROUP BY models.number"
        ).fetchall()
    )
    parents: dict[int, list[int]] = {}
    for child, parent in lineage.execute("SELECT model, parent FROM parents"):
        parents.setdefault(child, []).append(parent)
    better = {
        child: theirs
        for child, theirs in parents.items()
        if all(means[child] > means[parent] for parent in theirs)
    }
    return {*better, *(parent for theirs in better.values() for parent in theirs)}


def _one(lineage: sqlite3.Connection, query: str) -> int:
    (found,) = lineage.execute(query).fetchone()
    return int(found)


def _publications(
    lineage: sqlite3.Connection, home: Path, fresh: Sequence[tuple[Example, ...]], rule: str
) -> Row:
    """Every publication against each of its parents, by the paired differences of their answers."""
    kin = lineage.execute(
        "SELECT child.id, publications.repo, parent.id, parent.kind FROM publications"
        " JOIN models AS child ON child.number = publications.model"
        " JOIN parents ON parents.model = child.number"
        " JOIN models AS parent ON parent.number = parent"
        " ORDER BY child.number, position"
    ).fetchall()
    answers: dict[str, list[Tensor]] = {}
    gains = []
    for child, repo, parent, kind in kin:
        if child not in answers:
            answers[child] = _right(home / "hub" / repo, fresh)
        if parent not in answers:
            answers[parent] = _right(_files(home, parent, kind), fresh)
        gains.append((child, parent, *_gain(answers[child], answers[parent])))
    least = min((gain / error for *_, gain, error in gains), default=0.0)
    return Row(
        work=f"publications of the demo, `publish.require: {rule}`, against their parents",
        ours=f"{len({child for child, *_ in kin})} published, all gains from "
        f"{least:.1f} standard errors",
        peer=f"{sum(map(len, fresh)):,} documents that nobody was asked",
        bar="> 0",
        verdict=verdict(least > 0),
        notes=tuple(
            f"{child}: {gain:+.4f} +- {error:.4f} over {parent}"
            for child, parent, gain, error in gains
        ),
    )


def _files(home: Path, model: str, kind: str) -> Path:
    """A fine-tune as the hub has it; a merge as the home writes it."""
    if kind == "finetune":
        return home / "hub" / model
    folder = home.parent / "parents" / model
    if not folder.exists():
        timed(kinship_daemon("export", model, folder, "--home", home))
    return folder


def _fresh(count: int) -> list[tuple[Example, ...]]:
    """
    By skill, different documents of what is held back from training, none in the demo's tasks.

    Small skills have few: all of them are taken, the others fill up to `count`.
    """
    pools = sorted((_pool(skill) for skill in SKILLS), key=len)
    chosen: list[tuple[Example, ...]] = []
    for index, pool in enumerate(pools):
        fair = math.ceil((count - sum(map(len, chosen))) / (len(pools) - index))
        chosen.append(pool[:fair])
    return chosen


def _pool(skill: str) -> tuple[Example, ...]:
    asked = {example.prompt for part in _PARTS for example in exam(skill, part)}
    drawn = (example for part in _PARTS for example in islice(examples(skill, part, 1), _DRAWS))
    return tuple({item.prompt: item for item in drawn if item.prompt not in asked}.values())


@torch.inference_mode()
def _right(folder: Path, fresh: Sequence[tuple[Example, ...]]) -> list[Tensor]:
    """By skill, whether each document's whole answer is what the model would write."""
    model = model_of(load_file(folder / "model.safetensors"))
    found = []
    for documents in fresh:
        tokens, targets = encode(documents)
        parts = zip(torch.split(tokens, _BATCH), torch.split(targets, _BATCH), strict=True)
        found.append(torch.cat([_answered(model, *part) for part in parts]))
    return found


def _answered(model: MistralForCausalLM, tokens: Tensor, targets: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens[:, :-1], use_cache=False).logits
    written = logits.argmax(dim=-1)
    return ((written == targets[:, 1:]) | (targets[:, 1:] == IGNORED)).all(dim=1).double()


def _gain(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """The mean over skills of the paired differences, and its standard error."""
    pairs = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    gain = sum(float(pair.mean()) for pair in pairs) / len(pairs)
    error = math.sqrt(sum(float(pair.var()) / len(pair) for pair in pairs)) / len(pairs)
    return gain, error
