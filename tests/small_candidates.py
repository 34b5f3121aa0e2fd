"""What a watch adds to the small lineage of `family`."""

from dataclasses import replace

from kinship_storage.lineage import Lineage
from kinship_storage.records import Candidate
from small_lineage import finetune

TIME = "2026-01-30T21:04:00Z"
PLAN = "sample:1"
MERGED = {
    "likeness": 0.99,
    "distance": 0.1,
    "matrices": 14,
    "unlike": 0,
    "stranger": False,
    "parts": [
        {"model": "demo/add", "coefficient": 0.5, "error": 0.001},
        {"model": "demo/sort", "coefficient": 0.4, "error": 0.001},
    ],
    "rest": 0.002,
    "merge": True,
}
STRANGER = MERGED | {"likeness": 0.01, "unlike": 13, "stranger": True, "parts": [], "rest": 1.0}
STRANGER["merge"] = False


def waiting(name: str, **changes) -> Candidate:
    return Candidate(f"demo/{name}", **{"modified": TIME, **changes})


def notice(lineage: Lineage) -> None:
    """One candidate that was admitted, one refused, one that waits; two of them sampled."""
    far = finetune("far", status="seen", license=None)
    copy = finetune("gguf", status="refused", reason="quantised (gguf)", cause="model")
    for model in (far, copy):
        lineage.add_model(replace(model, weights=None))
    lineage.add_candidate(
        waiting("add", likes=2, bytes=1000, triaged=True, novelty=0.75, novelty_error=0.01)
    )
    lineage.add_candidate(waiting("far", downloads=12))
    lineage.add_candidate(waiting("gguf", triaged=True, read_bytes=300, gone=True))
    lineage.put_sample(PLAN, "demo/sort", bytes(16))
    lineage.put_sample(PLAN, "demo/add", bytes(range(16)))
