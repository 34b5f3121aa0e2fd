"""The database file: made, brought up to date, refused."""

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlite_utils import Database

from kinship_storage.errors import LineageError
from kinship_storage.schema import MIGRATIONS, migrate, version
from small_candidates import PLAN, notice
from small_lineage import fill, open_lineage

ASSETS = Path(__file__).parent / "assets"
NEXT = (*MIGRATIONS, ("ALTER TABLE models ADD COLUMN mood TEXT",))


def raw(path):
    return Database(sqlite3.connect(path, isolation_level=None))


@pytest.fixture(params=[1, 2])
def schema(request):
    return request.param


@pytest.fixture
def old(tmp_path, schema):
    """The database that a schema wrote: what `fill` adds, and since schema 2 `notice`."""
    return Path(shutil.copy(ASSETS / f"lineage-v{schema}.db", tmp_path / "lineage.db"))


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
        assert then.gates() == now.gates()
        assert then.publications() == now.publications()
        assert then.jobs() == now.jobs()
        assert then.kinships("pcc") == now.kinships("pcc")
        assert then.files("demo/add") == now.files("demo/add")
        assert then.candidates() == now.candidates()
        assert then.samples(PLAN) == now.samples(PLAN)
        assert then.verify() == []
        assert version(raw(old)) == len(MIGRATIONS)


def test_an_old_file_is_brought_up_to_date_and_keeps_every_row(old, schema):
    before = dump(old)
    with open_lineage(old):
        pass
    after = dump(old)
    assert {name: after[name] for name in before} == before
    assert all(rows for name, rows in before.items() if name != "hashes")
    assert version(raw(old)) == len(MIGRATIONS)


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
