"""Fixtures shared by all tests: tiny real models, built once and never written to."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before any Hugging Face library is imported: no test may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Else every process that a test starts compiles all our modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Tests run side by side: threads that wait for each other's core cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

import tiny
import warm_workers
from hub_server import HubServer
from kinship_daemon import child_process
from kinship_daemon.execute import site
from kinship_storage.lineage import Lineage
from shared_worker import Shelf
from small_lineage import fill, open_lineage

logging.disable_progress_bar()
# On a loaded machine any example may take long.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests first: begun last, each would run on alone at the end.
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences are whole where a test looks for them."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    found = Shelf(tmp_path_factory.mktemp("worker"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def warm() -> None:
    warm_workers.warm()


@pytest.fixture
def warm_worker(warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this test need not import what they need; see `warm_workers.py`."""
    monkeypatch.setattr(child_process, "_CONTEXT", warm_workers.CONTEXT)


@pytest.fixture
def shared_worker(shelf: Shelf, warm_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons in this process borrow the shelf's worker; see `shared_worker.py`."""
    monkeypatch.setattr(site, "open_evaluator", shelf.lend)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One base for the whole session; copy it before changing anything."""
    return tiny.base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def tiny_finetunes(tiny_base: Path) -> list[Path]:
    """Three fine-tunes of `tiny_base`: a, b (sharded), c. Copy before changing."""
    models = tiny_base.parent
    return [
        tiny.finetune(tiny_base, models / "a", seed=1),
        tiny.finetune(tiny_base, models / "b", seed=2, shard_size="40KB"),
        tiny.finetune(tiny_base, models / "c", seed=3, scale=0.03),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lineage.db"


@pytest.fixture
def lineage(path: Path) -> Iterator[Lineage]:
    with open_lineage(path) as opened:
        yield opened


@pytest.fixture
def family(lineage: Lineage) -> Lineage:
    fill(lineage)
    return lineage


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def tiny_hub(tmp_path: Path, tiny_base: Path, tiny_finetunes: list[Path]) -> Path:
    """A folder hub with org/base and org/a, org/b, org/c; the test's own, free to change."""
    hub = tmp_path / "hub"
    tiny.repo(hub, "org/base", tiny_base, {"license": "apache-2.0"})
    for folder in tiny_finetunes:
        card = {
            "base_model": "org/base",
            "base_model_relation": "finetune",
            "license": "apache-2.0",
        }
        tiny.repo(hub, f"org/{folder.name}", folder, card)
    return hub
