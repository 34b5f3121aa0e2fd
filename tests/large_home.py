"""A home after months: a thousand models in forty generations, ten thousand candidates."""

import random
from datetime import timedelta
from pathlib import Path

import numpy as np

from kinship_daemon.weights.sample import sketch
from kinship_policies.policy import Decision, Member, Population
from kinship_storage.lineage import Lineage
from kinship_storage.records import Candidate, Gate, Generation, Model, Publication
from kinship_storage.rows import row, stamp
from small_candidates import MERGED
from small_lineage import NOW, finetune, merge, open_lineage, score

_TOP = 5
_REASONS = ("needs a licence", "11.3 GB of weights, above triage.max_gb 10", "quantised (gguf)")


def make(
    home: Path,
    *,
    founders: int = 120,
    generations: int = 40,
    merges: int = 22,
    candidates: int = 10_000,
    sampled: int = 300,
) -> None:
    """Everyone that the daemon would have met by then, in the small lineage's words."""
    with open_lineage(home / "lineage.db") as lineage:
        lineage.put("settings", {"selection": "fp1", "validation": "fp2"})
        lineage.add_model(Model("demo/base", "base", "admitted", weights="sha256:base"))
        chance = random.Random(0)
        with lineage.transaction():
            _evolve(lineage, chance, founders, generations, merges)
            _notice(lineage, chance, candidates)
            _sample(lineage, sampled)


def _sample(lineage: Lineage, number: int) -> None:
    """Half of them of founders, half of those who wait, like nobody and with one length."""
    noise = np.random.default_rng(0)
    known = [m for s in ("admitted", "seen") for m in lineage.models("finetune", s)[: number // 2]]
    for model in known:
        vector = np.zeros((), dtype=sketch._RECORD)
        vector["mark"], vector["scale"], vector["parameters"] = sketch._MARK, 1.0, 7
        vector["cells"] = noise.normal(size=vector["cells"].shape)
        lineage.put_sample("plan", model.id, vector.tobytes())


def _evolve(
    lineage: Lineage, chance: random.Random, founders: int, generations: int, merges: int
) -> None:
    worth = {}
    for number in range(founders):
        model = finetune(f"founder-{number:03}")
        lineage.add_model(model)
        worth[model.id] = _score(lineage, chance, model.weights, 0.4 + 0.2 * chance.random())
    for generation in range(1, 1 + generations):
        top = sorted(worth, key=worth.get, reverse=True)[:_TOP]
        rest = sorted(worth.keys() - set(top))
        decision = Decision((), tuple(top), top_mean_kinship=0.3 + 0.016 * generation)
        members = tuple(Member(name, worth[name]) for name in sorted(worth))
        lineage.add_generation(
            Generation(generation, generation, "topk-kinship", {"k": _TOP}, 0, decision.to_json()),
            Population(generation, members, ()).to_json(),
        )
        for number in range(merges):
            parents = tuple(chance.sample([*top, *chance.sample(rest, min(5, len(rest)))], 2))
            role = "exploration" if number == 0 else "pair"
            name = f"model-{generation}-{number}"
            child = merge(name, parents, generation, role=role)
            lineage.add_model(child)
            pair = [lineage.require(parent).weights for parent in parents]
            lineage.add_kinships("pcc", [(*pair, chance.uniform(-0.2, 0.99))])
            if number == 1:
                why = "the worker died over it"
                lineage.move_model(
                    name, "quarantine", reason=why, cause="settings", setting="evaluate"
                )
                continue
            mean = sum(worth[parent] for parent in parents) / 2
            worth[name] = _score(lineage, chance, child.weights, mean + chance.gauss(0.004, 0.01))
            lineage.move_model(name, "admit")
            if number < 6:
                _judge(lineage, name, max(parents, key=worth.get), passed=number < 4)


def _score(lineage: Lineage, chance: random.Random, weights: str, worth: float) -> float:
    """Three tasks of a few documents; what is shown are their means and errors."""
    for task in ("arc", "gsm8k", "truthfulqa"):
        value = min(max(worth + chance.gauss(0, 0.02), 0), 1)
        lineage.add_scores([score(weights, 1, 0, task=task, score=value, stderr=0.012, n=500)])
    return worth


def _judge(lineage: Lineage, name: str, parent: str, *, passed: bool) -> None:
    gain = 0.02 if passed else 0.002
    words = f"{'passed' if passed else 'refused'}: {gain:+.4f} against {parent}"
    lineage.add_gate(Gate(name, parent, passed, gain, gain - 0.01, gain + 0.01, 900, words, "fp2"))
    if passed:
        files = {"README.md": "c" * 64}
        lineage.add_publication(
            Publication(name, f"kinship/{name}", "2" * 40, f"https://hub/kinship/{name}", files)
        )


def _notice(lineage: Lineage, chance: random.Random, candidates: int) -> None:
    """Row by row in the storage's own words, but all at once: ten thousand commits take minutes."""
    store, models, listed = lineage._store, [], []
    first = store.query("SELECT max(number) AS number FROM models")[0]["number"] + 1
    for number in range(candidates):
        modified = (NOW - timedelta(minutes=number)).strftime("%Y-%m-%dT%H:%M:%SZ")
        reason = _REASONS[number % 3] if number % 2 else None
        state = {"reason": reason, "cause": "model"} if reason else {}
        model = finetune(f"stranger-{number:05}", status="refused" if reason else "seen", **state)
        created = stamp(NOW)
        models.append(
            row(model, without=["parents"], weights=None, created=created, number=first + number)
        )
        candidate = Candidate(
            model.id,
            modified,
            downloads=int(chance.paretovariate(1) * 10),
            likes=number % 7,
            bytes=14_500_000_000,
            triaged=number % 4 != 0,
            novelty=chance.random() if number % 4 else None,
            novelty_error=0.01 if number % 4 else None,
            ancestry=MERGED if number % 40 == 2 else None,
        )
        listed.append(row(candidate, model=first + number))
    for table, rows in (("models", models), ("candidates", listed)):
        names = list(rows[0])
        places = ", ".join("?" * len(names))
        store.execute_many(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})",
            [[each[name] for name in names] for each in rows],
        )
