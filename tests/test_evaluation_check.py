"""What a start finds out about the evaluation costs later starts nothing, and is never outdated."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch

import lmtasks
import tiny
import turns
from kinship_daemon import config, startup
from kinship_daemon.errors import DocumentsChanged, KinshipError
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.execute import site
from kinship_daemon.report import JsonReporter
from kinship_daemon.steps.assemblies import ingredients

pytestmark = pytest.mark.usefixtures("warm_worker")

DOCUMENTS = [{"prompt": f"{letter}{letter}=", "answer": letter} for letter in "abcdefgh"]
CARD = {"base_model": "org/base", "base_model_relation": "finetune", "license": "apache-2.0"}
CHECKED = ["loading the evaluation tasks", "asking org/base one question"]


@pytest.fixture
def data(tmp_path) -> Path:
    """A task's documents, which lie elsewhere than the task, as those of a data set do."""
    path = tmp_path / "elsewhere.json"
    write(path, DOCUMENTS)
    lmtasks.probe(tmp_path / "tasks", "other", DOCUMENTS)
    lmtasks.probe(tmp_path / "tasks", "show", [], dataset_kwargs={"file": str(path)})
    return path


def write(path: Path, documents: list[dict[str, object]]) -> None:
    numbered = [{**document, "index": i} for i, document in enumerate(documents)]
    path.write_text(json.dumps(numbered))


def opened(scratch: Path, log: StringIO, **evaluate):
    chosen = {
        "selection": "[show]",
        "validation": "[other]",
        "include_path": f"[{scratch / 'tasks'}]",
        "dtype": "float32",
        "threads": "1",
        **evaluate,
    }
    loaded = config.load(
        base="org/base",
        hub=str(scratch / "hub"),
        home=scratch / "home",
        overrides=[f"evaluate.{key}={value}" for key, value in chosen.items()],
    )
    return startup.opened(loaded, JsonReporter(log), check_evaluation=True)


def events(log: StringIO, kind: str) -> list[str]:
    lines = map(json.loads, log.getvalue().splitlines())
    return [line["message"] for line in lines if line["event"] == kind]


def scored(d) -> dict[str, str]:
    """By model, the settings that it was last scored under."""
    turns.poll(d)
    turns.take(d, "refetch", "ledger", "score")
    models = d.lineage.models(kind="finetune")
    return {m.id: d.lineage.scores(m.weights, "selection")[-1].settings for m in models}


def test_documents_that_change_are_noticed_and_everyone_is_scored_on_the_new_ones(
    tiny_hub, tiny_base, data, tmp_path
):
    with opened(tmp_path, StringIO()) as d:
        first = scored(d)
        kept = d.settings.fingerprint("validation")
        assert set(first.values()) == {d.settings.fingerprint("selection")}
    write(data, [*DOCUMENTS[:-1], {"prompt": "hh=", "answer": "i"}])
    newcomer = tiny.finetune(tiny_base, tmp_path / "new", seed=9)
    tiny.repo(tiny_hub, "org/new", newcomer, CARD)
    with (
        pytest.raises(DocumentsChanged, match="'show': its documents changed; start again"),
        opened(tmp_path, StringIO()) as d,
    ):
        scored(d)
    log = StringIO()
    with opened(tmp_path, log) as d:
        assert events(log, "check") == CHECKED
        assert events(log, "warning") == [
            "the evaluation settings changed; 3 models to be scored again"
        ]
        again = scored(d)
        assert again.keys() == first.keys() | {"org/new"}
        assert set(again.values()) == {d.settings.fingerprint("selection")}
        assert not set(again.values()) & set(first.values())
        # Those of the gate's task are the same, and so are its scores.
        assert d.settings.fingerprint("validation") == kept


def test_a_second_start_starts_no_worker(tiny_hub, data, tmp_path):
    first, second = StringIO(), StringIO()
    with opened(tmp_path, first) as d:
        settings = d.settings
        log = d.home.evaluation_log
    assert events(first, "check") == CHECKED
    log.unlink()
    with opened(tmp_path, second) as d:
        assert d.settings == settings
        assert settings.documents["selection"].keys() == {"show"}
    assert events(second, "check") == []
    assert not log.exists()


def test_the_worker_that_loads_the_tasks_asks_the_base_and_scores(
    tiny_hub, data, tmp_path, monkeypatch
):
    made = []

    def counted(*given, **more):
        made.append(open_evaluator(*given, **more))
        return made[-1]

    monkeypatch.setattr(site, "open_evaluator", counted)
    with opened(tmp_path, StringIO()) as d:
        base, settings = ingredients(d, d.base), d.settings
        found = d.evaluators.ask(settings, base, missing(settings, "selection")).evaluation
        assert [answers.task for answers in found.answers] == ["show"]
        text = d.home.evaluation_log.read_text()
    assert text.count("one document") == len(made) == 1


def test_a_base_that_answers_nan_is_refused_at_every_start(tiny_hub, data, tmp_path):
    norm = torch.full((32,), torch.nan, dtype=torch.bfloat16)
    tiny.edit(tiny_hub / "org" / "base", {"model.norm.weight": norm})
    for _ in range(2):
        with (
            pytest.raises(
                KinshipError,
                match=r"base cannot be evaluated: org/base: its logits reach nan.*"
                "another base would work",
            ),
            opened(tmp_path, StringIO()),
        ):
            pass


def test_a_base_whose_numbers_need_another_dtype_is_told_which(tiny_hub, data, tmp_path):
    folder = tiny_hub / "org" / "base"
    head = tiny.tensors(folder)["lm_head.weight"]
    tiny.edit(folder, {"lm_head.weight": head * 1e6})
    with (
        pytest.raises(
            KinshipError, match=r"org/base: its logits.*evaluate\.dtype float32 may work"
        ),
        opened(tmp_path, StringIO(), dtype="float16"),
    ):
        pass
    log = StringIO()
    with opened(tmp_path, log, dtype="float32"):
        assert events(log, "check") == CHECKED


def test_a_base_that_lacks_a_tensor_is_refused_by_name(tiny_hub, data, tmp_path):
    tiny.edit(tiny_hub / "org" / "base", {"model.layers.1.mlp.up_proj.weight": None})
    with (
        pytest.raises(KinshipError, match=r"the base cannot be evaluated: .*lacks the tensor"),
        opened(tmp_path, StringIO()),
    ):
        pass
