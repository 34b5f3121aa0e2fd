"""Packages that are on the path plug in hubs, evaluation backends and notifiers by name."""

import sys

import pytest

from kinship_daemon import demo
from kinship_daemon.errors import UsageError
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.evaluate.settings import Evaluate, Settings
from kinship_daemon.hub.folder import FolderHub
from kinship_daemon.hub.open import open_hub
from kinship_daemon.notify.notifier import notifier

SOURCE = """
from pathlib import Path

from kinship_daemon.hub.folder import FolderHub

told = []


def open_shelf(where, *, token, sha256, stop, connections):
    return FolderHub(Path(where.removeprefix("shelf://")), sha256=sha256)


class Oracle:
    def __init__(self, settings, *, log, stop):
        self.settings = settings


def remember(*, prefix):
    def tell(kind, message, facts):
        told.append((prefix + kind, message, dict(facts)))
        if "fail" in message:
            raise RuntimeError("out of ink")

    return tell
"""


@pytest.fixture
def plugged_in(tmp_path, monkeypatch):
    """A package as pip leaves it behind."""
    (tmp_path / "shelf.py").write_text(SOURCE)
    info = tmp_path / "shelf-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 0.1\n")
    entries = {"hubs": "shelf = shelf:open_shelf", "evaluators": "oracle = shelf:Oracle"}
    entries["notifiers"] = "remember = shelf:remember\nbroken = shelf:nothing"
    text = "".join(f"[kinship_daemon.{group}]\n{entry}\n" for group, entry in entries.items())
    (info / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("shelf", None)


def settings(**changes) -> Settings:
    return Settings.of(Evaluate(**changes), 0)


@pytest.mark.usefixtures("plugged_in")
def test_a_kind_of_hub_is_found_by_its_scheme():
    hub = open_hub(f"shelf://{demo.HUB}")
    assert isinstance(hub, FolderHub)
    assert hub.repo("demo/add").id == "demo/add"


def test_an_unknown_kind_of_hub_names_those_installed():
    with pytest.raises(UsageError, match=r"no kind of hub 'htps'; installed: http, https; did you"):
        open_hub("htps://huggingface.co")


@pytest.mark.usefixtures("plugged_in")
def test_a_backend_is_found_by_name_and_is_part_of_a_scores_identity(tmp_path):
    evaluator = open_evaluator(settings(backend="oracle"), log=tmp_path / "log")
    assert type(evaluator).__name__ == "Oracle"
    assert evaluator.settings.backend == "oracle"
    prints = {settings(backend=name).fingerprint("selection") for name in ("oracle", "lm-eval")}
    assert len(prints) == 2


def test_an_unknown_backend_names_those_installed(tmp_path):
    known = "no evaluation backend 'vlm'; installed: auto, lm-eval, vllm; did you mean 'vllm'"
    with pytest.raises(UsageError, match=known):
        open_evaluator(settings(backend="vlm"), log=tmp_path / "log")


@pytest.mark.usefixtures("plugged_in")
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("remember", {"prefxi": "x"}, r"notify.use.remember: .*prefxi"),
        ("broken", {}, r"notifier 'broken' .* cannot be used"),
        ("webhok", {}, r"no notifier 'webhok'; installed: .*did you mean 'webhook'\?"),
        ("webhook", {"url": "ftp://x"}, "url must be an http or https URL"),
    ],
)
def test_a_notifier_that_cannot_be_made_is_one_line(name, given, message):
    with pytest.raises(UsageError, match=message):
        notifier(name, given)
