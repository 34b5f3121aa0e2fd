"""From nothing to the table: the zoo, then every job of the laboratory, kept as they are done."""

from pathlib import Path
from typing import Any

from tests.real.lab import BUDGET, FOUNDERS, Job, laboratory
from tests.real.predictors import Pairs
from tests.real.skills import DOCUMENTS, SKILLS
from tests.real.table import TABLE, Table, write
from tests.real.zoo import COURSES, build

from kinship_daemon.evaluate.settings import harness_versions

__all__ = ["run"]

_SAVE = 4  # jobs between two savings of the table


def run(zoo: Path, workers: int) -> None:
    """Goes on where an interrupted run was: models and scores that are there are not made again."""
    build(zoo, workers)
    table: Table = {
        "made_with": harness_versions(),
        "skills": list(SKILLS),
        "documents": {part: DOCUMENTS[part] for part in ("selection", "validation")},
        "budget": BUDGET,
        "founders": FOUNDERS,
        "courses": {
            course.name: {"shares": dict(course.shares), "steps": course.steps, "rank": course.rank}
            for course in COURSES
        },
        "pairs": [],
        "scores": [],
        "runs": [],
    }
    with laboratory(zoo, workers) as (pairs, results):
        for number, (job, found) in enumerate(results, 1):
            _add(table, job, found)
            if number % _SAVE == 0:
                print(f"{number} jobs", flush=True)
                table["pairs"] = _pairs(pairs.result())
                write(TABLE, table)
    write(TABLE, table)


def _pairs(pairs: Pairs) -> list[dict[str, Any]]:
    return [
        {"parents": [_short(name) for name in pair], **_rounded(facts)}
        for pair, facts in pairs.items()
    ]


def _add(table: Table, job: Job, found: dict) -> None:
    if job.policy:
        tops = [generation["top_mean_kinship"] for generation in found["generations"]]
        counts = [len(generation["merges"]) for generation in found["generations"]]
        kept = {name: found[name] for name in ("policy", "seed", "evaluations", "curve", "error")}
        kept |= {"control": job.control, "tops": tops, "proposed": counts, "stop": found["stop"]}
        if job.method:
            kept["policy"] = f"{job.policy}, {job.method}"
        kept["merges"] = [
            {
                key: row[key]
                for key in ("name", "parents", "method", "parameters", "score")
                if key in row
            }
            for generation in found["generations"]
            for row in generation["merges"]
            if row["outcome"] == "made"
        ]
        table["runs"].append(_rounded(kept))
        return
    parents = [_short(name) for name in job.parents]
    made = {"method": job.method, "parameters": job.parameters} if job.method else {}
    answers = [_packed(text) for text in found.values()]
    row = {"control": job.control, "parents": parents, **made, "split": job.split}
    table["scores"].append({**row, "answers": answers})


def _packed(answers: str) -> str:
    """Hexadecimal digits; the first document is the highest bit."""
    return f"{int(answers, 2):0{len(answers) // 4}x}"


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _rounded(value):
    """Five digits are more than anything here is good to."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
