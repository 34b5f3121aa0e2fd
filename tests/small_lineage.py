"""A small lineage with something of everything, as the daemon would have written it."""

from datetime import UTC, datetime
from pathlib import Path

from kinship_storage.lineage import Lineage
from kinship_storage.records import File, Gate, Generation, Model, Publication, Score

NOW = datetime(2026, 1, 31, 8, 15, tzinfo=UTC)


def open_lineage(path: Path, *, readonly: bool = False) -> Lineage:
    return Lineage.open(path, now=lambda: NOW, readonly=readonly)


def finetune(name: str, weights: str | None = None, **changes) -> Model:
    fields = {
        "repo": f"demo/{name}",
        "revision": "1" * 40,
        "weights": weights or f"sha256:{name}",
        "license": "apache-2.0",
        "status": "admitted",
    }
    return Model(f"demo/{name}", "finetune", **{**fields, **changes})


def merge(name: str, parents: tuple[str, ...], generation: int = 1, **changes) -> Model:
    recipe = {"method": "slerp", "parents": list(parents), "parameters": {"t": 0.5}}
    fields = {
        "weights": f"recipe:{name}",
        "role": "pair",
        "why": "the best two",
        "recipe": recipe,
        "parents": parents,
        "status": "proposed",
    }
    return Model(name, "merge", generation=generation, **{**fields, **changes})


def score(weights: str, *values: float, **changes) -> Score:
    fields = {
        "task": "add",
        "split": "selection",
        "settings": "fp1",
        "metric": "exact_match",
        "task_version": "1.0",
        "score": sum(values) / len(values),
        "stderr": 0.1,
        "n": len(values),
        "seed": 0,
        "harness": "lm-eval 0.4.13",
        "samples": tuple(enumerate(values)),
    }
    return Score(weights, **{**fields, **changes})


def fill(lineage: Lineage) -> None:
    """A base, three fine-tunes (one quarantined), a published merge and a stop."""
    lineage.put("base", "demo/base")
    lineage.put("settings", {"selection": "fp1", "validation": "fp2"})
    base = Model("demo/base", "base", "admitted", repo="demo/base", weights="sha256:base")
    lineage.add_model(base, [File("model.safetensors", 1000, "b" * 64)])
    for name in ("add", "sort"):
        lineage.add_model(finetune(name), [File("model.safetensors", 1000, name * 16)])
    lineage.add_model(finetune("bad", status="seen"))
    lineage.move_model("demo/bad", "quarantine", reason="NaN in lm_head.weight", cause="model")
    lineage.add_kinships("pcc", [("sha256:sort", "sha256:add", 0.25)])
    lineage.add_scores([score("sha256:add", 1, 0, 1, 1), score("sha256:sort", 0, 0, 1, 1)])
    proposal = {"parents": ["demo/add", "demo/sort"], "role": "pair", "reason": "the best two"}
    lineage.add_generation(
        Generation(
            number=1,
            generation=1,
            policy="topk-kinship",
            settings={"k": 3},
            seed=7,
            decision={
                "merges": [proposal],
                "top": ["demo/add", "demo/sort"],
                "top_mean_kinship": 0.25,
            },
        ),
        {"generation": 1, "members": []},
    )
    lineage.add_model(merge("m1", ("demo/add", "demo/sort")))
    job = lineage.submit("merge", {"merge": "recipe:m1"}, "m1")
    lineage.start(job.key)
    with lineage.finish(job.key):
        lineage.add_scores(
            [
                score("recipe:m1", 1, 1, 1, 1),
                score("recipe:m1", 1, 0, split="validation", settings="fp2"),
            ]
        )
        lineage.move_model("m1", "admit")
    lineage.add_gate(
        Gate("m1", "demo/add", True, 0.25, 0.05, 0.5, 4, "gains", "fp2", {"confidence": 0.95})
    )
    lineage.add_publication(
        Publication("m1", "kinship/m1", "2" * 40, "file:///hub/kinship/m1", {"README.md": "c" * 64})
    )
    lineage.add_generation(
        Generation(
            number=2,
            generation=None,
            policy="topk-kinship",
            settings={"k": 3},
            seed=7,
            decision={"merges": [], "top": ["m1", "demo/add"], "top_mean_kinship": None},
            stop="converged",
            stop_kind="converged",
        ),
        {"generation": 2, "members": []},
    )
