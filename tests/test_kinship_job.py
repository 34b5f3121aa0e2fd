"""The kinship pass as a job: the same bits wherever it is done, and who does it for a daemon."""

import io
import pickle
import shutil
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinship_daemon import config, startup
from kinship_daemon.errors import Transient
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.executor import Failed, Job
from kinship_daemon.execute.inline import Inline
from kinship_daemon.execute.kinship import NEEDS, Measure
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.site import Workshop
from kinship_daemon.report import JsonReporter
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from turns import take

SILENT = JsonReporter(io.StringIO())

pytestmark = pytest.mark.usefixtures("warm_worker")


@pytest.fixture
def folders(tiny_base, tiny_finetunes):
    return {"base": tiny_base, **dict(zip("abc", tiny_finetunes, strict=True))}


def in_one_pass(folders, rows):
    base = Checkpoint.open(folders["base"])
    young = {row: descend(base, folders[row]) for row in rows}
    return gram.extend(gram.unmeasured(base, "base"), base, {}, young)


def done(executor, call, folders, watch=None):
    with closing(Dispatcher(executor, watch=watch)) as dispatcher:
        dispatcher.begin(Job("pass", call, NEEDS), folders)
        return dispatcher.result("pass")


@pytest.mark.parametrize("make", [Inline, Local])
def test_rows_that_join_one_after_another_are_those_of_one_pass(make, folders, tmp_path):
    ledger = gram.unmeasured(Checkpoint.open(folders["base"]), "base")
    for new in (("a",), ("b", "c")):
        columns = done(make(Workshop(tmp_path / "log")), Measure.of(ledger, new), folders)
        assert columns.shape[2] == len(new) if ledger.rows else len(new) + 2
        ledger = ledger.grown(new, columns)
    whole = in_one_pass(folders, "abc")
    assert ledger.rows == whole.rows
    assert torch.equal(ledger.gram, whole.gram)


def test_known_rows_that_are_not_faint_cost_no_second_measurement(folders, tmp_path, monkeypatch):
    """Disjoint changes: their product is 0, and what was measured before says that this is it."""
    base = load_file(folders["base"] / "model.safetensors")
    for place, name in enumerate("ab"):
        changed = {key: tensor.clone() for key, tensor in base.items()}
        for tensor in changed.values():
            tensor.view(-1)[place::2] += 1
        folders[name] = shutil.copytree(folders["base"], tmp_path / name)
        save_file(changed, folders[name] / "model.safetensors", {"format": "pt"})
    again = []
    monkeypatch.setattr(gram, "remeasure", lambda *_: again.append(1))
    call = Measure.of(in_one_pass(folders, "a"), ("b",))
    columns = done(Inline(Workshop(tmp_path / "log")), call, folders)
    assert not columns[:, 2].any()
    assert again == []


def test_it_tells_how_many_bytes_it_read_of_how_many(folders, tmp_path):
    far = []
    call = Measure.of(in_one_pass(folders, "a"), ("b",))
    watch = lambda _key, *told: far.append(told)  # noqa: E731
    done(Local(Workshop(tmp_path / "log")), call, folders, watch)
    assert [told for told, _ in far] == sorted(told for told, _ in far)
    assert far[-1][0] == far[-1][1] > 0


def test_a_broken_model_is_named_also_by_another_process(folders, tmp_path):
    broken = shutil.copytree(folders["a"], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    call = Measure.of(gram.unmeasured(Checkpoint.open(folders["base"]), "base"), ("b", "bad"))
    with pytest.raises(gram.BadTensor, match=r"model\.norm\.weight holds NaN") as caught:
        done(Local(Workshop(tmp_path / "log")), call, {**folders, "bad": broken})
    assert caught.value.identity == "bad"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), vars(again)) == (str(caught.value), vars(caught.value))


class Far(Local):
    """Has other machines, it says; and what it was given to do."""

    has_machines = True

    def __init__(self, workshop):
        super().__init__(workshop)
        self.given = []

    def submit(self, job, folders, tell):
        self.given.append(job)
        super().submit(job, folders, tell)


def test_other_machines_measure_newcomers_and_the_ledger_is_the_same(tmp_path, monkeypatch):
    found, executors = {}, []

    def far(_name, workshop):
        executors.append(Far(workshop))
        return executors[-1]

    for name in ("here", "far"):
        if name == "far":
            monkeypatch.setattr(startup, "open_executor", far)
        with startup.opened(config.load(base="demo", home=tmp_path / name), SILENT) as d:
            take(d, "watch", "triage", "admit", "ledger")
            found[name] = d.ledger
    assert len(found["here"].rows) > 3
    assert found["far"].rows == found["here"].rows
    assert torch.equal(found["far"].gram, found["here"].gram)
    jobs = [job for job in executors[0].given if isinstance(job.call, Measure)]
    assert jobs
    assert all(set(job.sources) == {job.call.base, *job.call.known, *job.call.new} for job in jobs)


def test_what_other_machines_cannot_do_now_the_daemon_does_itself(tmp_path, monkeypatch):
    """A node without room for all of the population, say."""

    class Full(Far):
        def submit(self, job, folders, tell):
            if isinstance(job.call, Measure):
                tell(Failed(job.key, job.attempt, Transient("node n has no room for 6 models")))
            else:
                super().submit(job, folders, tell)

    monkeypatch.setattr(startup, "open_executor", lambda _name, workshop: Full(workshop))
    said = io.StringIO()
    with startup.opened(config.load(base="demo", home=tmp_path / "home"), JsonReporter(said)) as d:
        take(d, "watch", "triage", "admit", "ledger")
        assert len(d.ledger.rows) > 3
    assert "measured by the daemon itself: node n has no room for 6 models" in said.getvalue()
