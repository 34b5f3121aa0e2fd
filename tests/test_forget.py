"""`forget` takes a model out for good, never what living merges rest on; `retry` undoes it."""

import json
import shutil
from io import StringIO

import pytest

import command
import turns
from kinship_daemon import config, forgetting, startup
from kinship_daemon.home import Home
from kinship_daemon.hub.files import place
from kinship_daemon.report import JsonReporter
from small_lineage import fill, finetune, merge, open_lineage

OUT = ("refused", "settings", "forget")


@pytest.fixture
def home(tmp_path):
    """m1, published, of add and sort; m2 of m1 and sort, proposed; files of `alone` and of m1."""
    home = Home(tmp_path)
    with open_lineage(home.lineage) as lineage:
        fill(lineage)
        alone = finetune("alone")
        lineage.add_model(alone)
        lineage.add_model(merge("m2", ("m1", "demo/sort"), generation=2))
        whole, part = place(home.cache, alone.repo, alone.revision)
        for name, folder in (("demo/alone", whole), ("m1", home.made / "ab12"), ("", part)):
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"0" * 1000)
            if name:
                lineage.update_model(name, folder=str(folder))
    return home


@pytest.fixture
def call(home, monkeypatch, capfd):
    return lambda *given: command.call([*given, "--home", home.path], monkeypatch, capfd)


def states(home):
    with open_lineage(home.lineage, readonly=True) as lineage:
        return {m.id: (m.status, m.cause, m.setting) for m in lineage.models()}


def files(home):
    return sorted(path.parent.name for path in home.path.rglob("*.safetensors"))


def test_a_model_leaves_and_its_files_go_and_its_row_stays(home, call):
    told = call("forget", "demo/alone", "--format", "json")
    assert told.code == 0, told.err
    assert json.loads(told.out) == {
        "forgotten": ["demo/alone"],
        "freed_bytes": 2000,  # also of the half that a kill left
        "published": [],
    }
    assert states(home)["demo/alone"] == OUT
    assert files(home) == ["ab12"]
    assert "forgotten by hand" in call("explain", "demo/alone").out
    assert "by `kinship-daemon retry demo/alone`" in call("explain", "demo/alone").out


def test_what_living_merges_rest_on_is_kept(home, call):
    before = states(home)
    refused = call("forget", "demo/alone", "demo/add")
    assert (refused.code, refused.err) == (
        2,
        "kinship-daemon: living merges rest on demo/add: m1, m2; --merges forgets them, too\n",
    )
    assert (states(home), len(files(home))) == (before, 3)
    assert call("forget", "m1").code == 2  # a merge is a parent, too


def test_with_its_merges_it_goes_and_what_is_published_stays(home, call):
    told = call("forget", "demo/add", "--merges")
    assert "3 models forgotten: demo/add, m1, m2\n" in told.out
    assert "kinship/m1 stays on the hub" in told.out
    assert {name for name, state in states(home).items() if state == OUT} == {
        *("demo/add", "m1", "m2")
    }
    assert "ab12" not in files(home)
    assert call("forget", "demo/sort").code == 0  # nothing rests on it any more


def test_only_its_own_name_brings_it_back_and_never_without_what_it_rests_on(home, call):
    call("forget", "demo/add", "--merges")
    assert "nothing to try again" in call("retry", "--cause", "settings").out
    refused = call("retry", "m1")
    assert (refused.code, "m1 rests on demo/add, which is forgotten" in refused.err) == (2, True)
    assert call("retry", "m1", "demo/add").code == 0
    found = states(home)
    assert (found["m1"][0], found["demo/add"][0], found["m2"]) == ("proposed", "seen", OUT)


def test_what_waits_for_it_waits_no_more(home, call):
    with open_lineage(home.lineage) as lineage:
        job = lineage.submit("admit", {"repo": "demo/alone"}, "demo/alone")
        lineage.start(job.key)
        lineage.wait(job.key, "the hub is away", None)
    call("forget", "demo/alone")
    with open_lineage(home.lineage, readonly=True) as lineage:
        assert not lineage.jobs("waiting")


def test_killed_before_its_files_are_gone_the_next_call_removes_them(home, call, monkeypatch):
    class Kill(BaseException):
        pass

    def kill(_folder):
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(forgetting.shutil, "rmtree", kill)
        with pytest.raises(Kill):
            call("forget", "demo/alone")
    assert states(home)["demo/alone"] == OUT
    assert call("forget", "demo/alone").code == 0
    assert files(home) == ["ab12"]


def test_not_while_a_daemon_is_at_work_and_never_the_base(home, call):
    before = states(home)
    assert "demo/base is the base" in call("forget", "demo/base").err
    with home.hold():
        refused = call("forget", "demo/alone")
    assert (refused.code, "`kinship-daemon stop` it first" in refused.err) == (3, True)
    assert states(home) == before


def test_a_daemon_lets_it_rest_also_under_another_name(tiny_hub, tmp_path, monkeypatch, capfd):
    def look():
        given = config.load(base="org/base", hub=str(tiny_hub), home=tmp_path / "home")
        with startup.opened(given, JsonReporter(StringIO())) as d:
            turns.take(d, *turns.HUB)
            return {m.id: (m.status, m.reason) for m in d.lineage.models("finetune")}

    look()
    command.call(["forget", "org/a", "--home", tmp_path / "home"], monkeypatch, capfd)
    shutil.copytree(tiny_hub / "org" / "a", tiny_hub / "org" / "copy")
    found = look()
    assert found["org/a"] == ("refused", "forgotten by hand")
    assert found["org/copy"] == ("refused", "the same weights as org/a")
    assert found["org/b"] == ("admitted", None)
