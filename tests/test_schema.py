"""The database file: made, brought up to date, refused."""

import json
import shutil
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlite_utils import Database

from kinship_storage.errors import LineageError
from kinship_storage.schema import MIGRATIONS, migrate, version
from small_candidates import PLAN, notice
from small_lineage import fill, open_lineage

SAMPLED = ["demo/add", "demo/sort"]
ASSETS = Path(__file__).parent / "assets"
NEXT = (*MIGRATIONS, ("ALTER TABLE models ADD COLUMN mood TEXT",))


def raw(path):
    return Database(sqlite3.connect(path, isolation_level=None))


@pytest.fixture(params=[1, 2, 3, 4, 5])
def schema(request):
    return request.param


@pytest.fixture
def old(tmp_path, schema):
    """The database that a schema wrote: what `fill` adds, and since schema 2 `notice`."""
    return Path(shutil.copy(ASSETS / f"lineage-v{schema}.db", tmp_path / "lineage.db"))


@pytest.fixture(params=[1, 2])
def older(tmp_path, request):
    """One of before schema 3, which moved what it held to other tables."""
    return Path(shutil.copy(ASSETS / f"lineage-v{request.param}.db", tmp_path / "lineage.db"))


def dump(path):
    """Every row of every table, in order."""
    db = raw(path)
    rows = {t.name: sorted(map(repr, t.rows)) for t in db.tables}
    db.close()
    return rows


def test_a_new_file_is_strict_in_wal_mode_and_at_the_latest_version(tmp_path):
    path = tmp_path / "lineage.db"
    open_lineage(path).close()
    db = raw(path)
    assert version(db) == len(MIGRATIONS)
    assert db.journal_mode == "wal"
    assert db.table_names()
    assert all(table.strict for table in db.tables)


def test_commits_reach_the_disk_and_references_are_enforced(tmp_path):
    with open_lineage(tmp_path / "lineage.db") as lineage:
        assert lineage._store.query("PRAGMA synchronous") == [{"synchronous": 2}]
        assert lineage._store.query("PRAGMA foreign_keys") == [{"foreign_keys": 1}]


def test_an_old_file_reads_like_one_written_today(old, schema, tmp_path):
    with open_lineage(old) as then, open_lineage(tmp_path / "new.db") as now:
        fill(now)
        if schema > 1:
            notice(now)
        if schema == 1:  # who was noticed before there were candidates became one
            assert {c.model for c in then.candidates()} == {m.id for m in now.models("finetune")}
            assert all(c.triaged for c in then.candidates())
            for candidate in then.candidates():
                now.add_candidate(candidate)
        assert then.export() == now.export()
        assert then.models() == now.models()
        assert then.scores("recipe:m1") == now.scores("recipe:m1")
        assert then.generations() == now.generations()
        assert [then.facts(n) for n in (1, 2)] == [now.facts(n) for n in (1, 2)]
        known = {} if schema > 2 else {"evaluation": ""}
        assert then.gates() == [replace(gate, **known) for gate in now.gates()]
        assert then.publications() == now.publications()
        [job] = then.jobs()
        assert schema > 2 or job.key == "evaluate:m1"
        assert [replace(job, key=new.key, inputs=new.inputs) for new in now.jobs()] == now.jobs()
        assert then.kinships("pcc") == now.kinships("pcc")
        assert then.files("demo/add") == now.files("demo/add")
        assert then.candidates() == now.candidates()
        assert then.sampled(PLAN, SAMPLED) == now.sampled(PLAN, SAMPLED)
        assert len(then.sampled(PLAN, SAMPLED)) == (2 if schema > 1 else 0)
        assert then.verify() == []
        assert version(raw(old)) == len(MIGRATIONS)


def test_an_old_file_is_brought_up_to_date_and_keeps_every_row(old, schema):
    before = dump(old)
    with open_lineage(old):
        pass
    after = dump(old)
    assert {name: len(after[name]) for name in before} == {
        name: len(rows) for name, rows in before.items()
    }
    empty = {"hashes", "budgets", "deliveries"}
    assert all(rows for name, rows in before.items() if name not in empty)
    assert len(after["facts"]) == len(before["generations"])
    assert len(after["documents"]) == 14  # 4 documents of three selection scores, 2 of validation
    assert version(raw(old)) == len(MIGRATIONS)
    assert not any(name.startswith("old_") for name in after)


def test_what_the_home_knew_of_a_model_or_a_day_moves_to_its_own_column(older):
    db = raw(older)
    facts = {
        "folder:demo/add": "/models/add",
        "size:demo/add": 1000,
        "gated:demo/add": True,
        "screen:demo/add": 0.25,
        "not_published:m1": "its licence",
        "folder:demo/sort": None,
        "folder:gone": "/models/gone",
        "spent:download_gb": ["2026-01-31", 2],
        "cursor": {"time": 1},
    }
    for key, value in facts.items():
        db["home"].insert({"key": key, "value": json.dumps(value)})
    db.close()
    with open_lineage(older) as lineage:
        add = lineage.model("demo/add")
        assert (add.folder, add.size, add.gated, add.screen) == ("/models/add", 1000, True, 0.25)
        assert lineage.model("m1").not_published == "its licence"
        assert (lineage.model("demo/sort").folder, lineage.model("demo/sort").gated) == (
            None,
            False,
        )
        assert lineage.budgets("2026-01-31") == {"download_gb": 2}
        assert lineage.get("cursor") == {"time": 1}
        assert [row["key"] for row in lineage._store.rows("home", order="key")] == [
            *("base", "cursor", "settings")
        ]
        assert lineage.verify() == []


@pytest.mark.parametrize(
    ("status", "reason", "job", "cause", "setting"),
    [
        ("quarantined", "NaN", None, "model", None),
        ("quarantined", "NaN", ("ledger", "quarantined"), "model", None),
        ("quarantined", "no scores", ("score", "quarantined"), "settings", "evaluate"),
        ("quarantined", "no scores", ("validate", "failed"), "settings", "evaluate"),
        ("quarantined", "NaN", ("triage", "done"), "model", None),
        ("refused", "9 GB; triage.max_gb is 8", None, "settings", "triage.max_gb"),
        ("refused", "gone from the hub", None, "world", None),
        ("refused", "the quick screen gives 0.1", None, "settings", "admission.screen_margin"),
        ("refused", "quantised (gguf)", None, "model", None),
        ("refused", None, None, "model", None),
    ],
)
def test_what_was_set_aside_gets_its_cause(older, status, reason, job, cause, setting):
    db = raw(older)
    db["models"].update("demo/bad", {"status": status, "reason": reason, "kind": "adapter"})
    if job is not None:
        kind, outcome = job
        values = {"key": "k", "kind": kind, "model": "demo/bad", "status": outcome, "attempts": 1}
        db["jobs"].insert(values)
    db.close()
    with open_lineage(older) as lineage:
        bad = lineage.model("demo/bad")
        assert (bad.kind, bad.status, bad.reason) == ("finetune", status, reason)
        assert (bad.cause, bad.setting, bad.retry_at) == (cause, setting, None)
        assert lineage.verify() == []


def test_the_newest_failure_says_whose_fault_a_quarantine_is(older):
    db = raw(older)
    for key, kind, day in (("a", "score", 3), ("b", "ledger", 1)):
        job = {"key": key, "kind": kind, "model": "demo/bad", "attempts": 1}
        finished = f"2026-01-0{day}T00:00:00Z"
        db["jobs"].insert({**job, "status": "quarantined", "finished": finished})
    db.close()
    with open_lineage(older) as lineage:
        assert lineage.model("demo/bad").setting == "evaluate"


def test_what_failed_for_now_waits_and_what_failed_for_good_fails(older):
    db = raw(older)
    ends = {"started": "2026-01-31T08:00:00Z", "finished": "2026-01-31T08:01:30Z"}
    for status in ("pending", "running", "failed", "quarantined"):
        job = {"key": status, "kind": "k", "model": None, "status": status, "attempts": 1}
        db["jobs"].insert({**job, **ends, "reason": "why"})
    db.close()
    with open_lineage(older) as lineage:
        found = {key: lineage.job(key) for key in ("pending", "running", "failed", "quarantined")}
        assert {key: (job.status, job.cause) for key, job in found.items()} == {
            "pending": ("pending", None),
            "running": ("running", None),
            "failed": ("waiting", "world"),
            "quarantined": ("failed", "model"),
        }
        assert found["failed"].due is None
        assert found["failed"].seconds == 90


@pytest.mark.parametrize(
    ("stop", "kind"),
    [
        ("the policy failed: it died", "policy failed"),
        ("no more merges are allowed: limits.merges_total 3", "budget"),
        ("the policy proposed nothing new", "nothing new"),
        ("the top did not change", "converged"),
    ],
)
def test_an_old_stop_gets_its_kind(older, stop, kind):
    db = raw(older)
    db["generations"].update(2, {"stop": stop})
    db.close()
    with open_lineage(older) as lineage:
        first, last = lineage.generations()
        assert (first.number, first.generation, first.stop_kind) == (1, 1, None)
        assert (last.number, last.generation, last.stop, last.stop_kind) == (2, None, stop, kind)


def test_kinships_that_no_decision_named_go_and_facts_stay_whole(older):
    db = raw(older)
    facts = {"generation": 1, "members": [], "kinship": [[1.0, 0.123456789012345678]]}
    db["generations"].update(1, {"facts": json.dumps(facts)})
    named = ("recipe:m1", "sha256:add")  # within the top of decision 2
    unnamed = ("sha256:bad", "sha256:sort")
    for value, (a, b) in enumerate((named, unnamed)):
        db["kinships"].insert({"metric": "pcc", "a": a, "b": b, "value": value})
    db.close()
    with open_lineage(older) as lineage:
        assert lineage.kinships("pcc") == {("demo/add", "demo/sort"): 0.25, ("demo/add", "m1"): 0}
        assert lineage.facts(1) == facts


def test_a_failure_within_the_third_migration_leaves_the_second(older):
    db = raw(older)
    db["scores"].update(1, {"samples": "[[0, null]]"})
    db.close()
    before = dump(older)
    with pytest.raises(TypeError):
        open_lineage(older)
    after = dump(older)
    assert version(raw(older)) == 2
    assert {name: after[name] for name in before} == before


def test_judgements_of_the_gate_before_are_numbered_by_generation_and_name(tmp_path):
    path = Path(shutil.copy(ASSETS / "lineage-v3.db", tmp_path / "lineage.db"))
    db = raw(path)
    for place, (name, generation) in enumerate((("m9", 2), ("m3", 2), ("m2", 1)), start=90):
        model = {**next(db["models"].rows_where("id = 'm1'")), "weights": None, "number": place}
        db["models"].insert({**model, "id": name, "generation": generation})
        gate = {**next(db["gates"].rows), "number": place, "model": place, "passed": 0}
        db["gates"].insert(gate)
    db.close()
    with open_lineage(path) as lineage:
        found = lineage.judgements()
        assert [(g.model, g.test) for g in found] == [("m1", 1), ("m2", 2), ("m3", 3), ("m9", 4)]
        assert {(g.p, g.alpha) for g in found} == {(None, None)}
        new = replace(found[0], evaluation="fp9", p=0.01, alpha=0.02, test=None)
        lineage.add_gate(new)
        assert lineage.judgements()[-1] == replace(new, test=5)


def test_an_old_file_can_be_taken_up_as_a_watch_goes_on(old):
    with open_lineage(old) as lineage:
        notice(lineage)
        assert [found.model for found in lineage.candidates("seen")] == ["demo/far"]
        assert lineage.verify() == []


def test_an_old_file_takes_the_next_migration_and_keeps_its_rows(old, schema):
    db = raw(old)
    before = list(db.query("SELECT id FROM models ORDER BY id"))
    assert migrate(db, "lineage.db", NEXT) == len(NEXT) - schema
    assert version(db) == len(NEXT)
    assert list(db.query("SELECT id FROM models WHERE mood IS NULL ORDER BY id")) == before
    assert migrate(db, "lineage.db", NEXT) == 0


def test_a_migration_that_fails_leaves_neither_its_tables_nor_its_number(old):
    db = raw(old)
    migrate(db, "lineage.db")
    broken = (*MIGRATIONS, ("CREATE TABLE fresh (a TEXT) STRICT", "INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(sqlite3.OperationalError):
        migrate(db, "lineage.db", broken)
    assert version(db) == len(MIGRATIONS)
    assert "fresh" not in db.table_names()
    assert not db.conn.in_transaction


def test_a_newer_schema_is_refused_and_left_alone(old):
    db = raw(old)
    migrate(db, "lineage.db", NEXT)
    db.close()
    for readonly in (False, True):
        with pytest.raises(LineageError, match="upgrade kinship-daemon"):
            open_lineage(old, readonly=readonly)
    assert version(raw(old)) == len(NEXT)


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "lineage.db"
    db = raw(path)
    db["bookmarks"].insert({"url": "x"})
    db.close()
    before = path.read_bytes()
    with pytest.raises(LineageError, match="another program's"):
        open_lineage(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "lineage.db"
    path.write_bytes(b"not a database at all" * 100)
    for readonly in (False, True):
        with pytest.raises(LineageError, match=r"lineage\.db is not a database; move it away"):
            open_lineage(path, readonly=readonly)
    assert path.read_bytes() == b"not a database at all" * 100


def test_a_truncated_file_is_refused_in_words(old):
    old.write_bytes(old.read_bytes()[:5000])
    with pytest.raises(LineageError, match="damaged"), open_lineage(old) as lineage:
        lineage.export()


def test_what_a_kill_before_the_first_migration_left_is_taken_up(tmp_path):
    path = tmp_path / "lineage.db"
    path.touch()
    with pytest.raises(LineageError, match="kinship-daemon run"):
        open_lineage(path, readonly=True)
    with open_lineage(path) as lineage:
        assert lineage.models() == []


def test_reading_where_there_is_none_says_how_to_start_one(tmp_path):
    with pytest.raises(LineageError, match="`kinship-daemon run` starts one"):
        open_lineage(tmp_path / "lineage.db", readonly=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(LineageError, match="folder does not exist"):
        open_lineage(tmp_path / "home" / "lineage.db")


def test_many_may_open_a_new_file_at_once(tmp_path):
    path, opened, gate = tmp_path / "lineage.db", [], threading.Barrier(4)

    def start():
        gate.wait()
        with open_lineage(path) as lineage:
            opened.append(lineage.models())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [[]] * 4
