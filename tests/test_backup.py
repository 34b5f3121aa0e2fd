"""Backup and restore: also beside a running daemon, checked, whole or not at all."""

import os
import shutil
import signal
import threading

import pytest

from command import run
from kinship_daemon.cli import app
from kinship_daemon.home import Home
from small_lineage import fill, finetune, open_lineage


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    with open_lineage(folder / "lineage.db") as lineage:
        fill(lineage)
    return folder


def test_a_backup_is_one_file_that_holds_all(home, tmp_path):
    with open_lineage(home / "lineage.db") as daemon:
        daemon.add_model(finetune("late"))  # still in the log
        told = run(["backup", tmp_path / "copy.db", "--home", home], tmp_path)
        assert told.code == 0, told.err
        expected = daemon.export()
    assert sorted(file.name for file in tmp_path.glob("*copy*")) == ["copy.db"]
    with open_lineage(tmp_path / "copy.db", readonly=True) as copy:
        assert copy.export() == expected
        assert copy.verify() == []


def test_a_backup_beside_a_writer_is_of_one_moment(home, tmp_path):
    stop = threading.Event()
    with open_lineage(home / "lineage.db") as daemon:

        def write():
            number = 0
            while not stop.is_set():
                number += 1
                with daemon.transaction():
                    daemon.put("one", number)
                    daemon.put("two", number)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            with open_lineage(home / "lineage.db", readonly=True) as reader:
                for number in range(5):
                    reader.backup(tmp_path / f"{number}.db")
        finally:
            stop.set()
            writer.join()
    for number in range(5):
        with open_lineage(tmp_path / f"{number}.db", readonly=True) as copy:
            assert copy.get("one") == copy.get("two")


def test_a_backup_overwrites_nothing_unasked(home, tmp_path):
    target = tmp_path / "copy.db"
    target.write_text("mine")
    told = run(["backup", target, "--home", home], tmp_path)
    assert (told.code, target.read_text()) == (2, "mine")
    assert "overwrite it with --force" in told.err
    assert run(["backup", target, "--force", "--home", home], tmp_path).code == 0
    told = run(["backup", home / "lineage.db", "--force", "--home", home], tmp_path)
    assert told.code == 2
    assert "is the lineage itself" in told.err
    told = run(["backup", tmp_path / "nowhere" / "copy.db", "--home", home], tmp_path)
    assert told.code == 3
    assert len(told.err.splitlines()) == 1


def test_without_a_name_backups_lie_in_the_home(home, tmp_path):
    assert run(["backup", "--home", home], tmp_path).code == 0
    (only,) = (home / "backups").iterdir()
    assert only.name.startswith("lineage-")


def test_a_damaged_lineage_is_not_copied(home, tmp_path):
    (home / "lineage.db").write_bytes(b"SQLite format 3\0" + b"x" * 9000)
    told = run(["backup", tmp_path / "copy.db", "--home", home], tmp_path)
    assert told.code == 4
    assert list(tmp_path.glob("*copy*")) == []


def test_what_is_restored_is_the_backup_and_the_old_one_is_kept(home, tmp_path):
    run(["backup", tmp_path / "copy.db", "--home", home], tmp_path)
    with open_lineage(home / "lineage.db") as lineage:
        before = lineage.export()
        lineage.add_model(finetune("late"))
    told = run(["restore", tmp_path / "copy.db", "--home", home], tmp_path)
    assert told.code == 0, told.err
    assert "5 models, 2 decisions" in told.out
    with open_lineage(home / "lineage.db") as lineage:
        assert lineage.export() == before
    (kept,) = home.glob("lineage-*.replaced.db")
    with open_lineage(kept, readonly=True) as old:
        assert old.model("demo/late") is not None


def test_a_deleted_or_damaged_lineage_is_restored(home, tmp_path):
    run(["backup", tmp_path / "copy.db", "--home", home], tmp_path)
    (home / "lineage.db").write_bytes(b"x" * 9000)
    assert run(["restore", tmp_path / "copy.db", "--home", home], tmp_path).code == 0
    (home / "lineage.db").unlink()
    assert run(["restore", tmp_path / "copy.db", "--home", home], tmp_path).code == 0
    with open_lineage(home / "lineage.db") as lineage:
        assert lineage.verify() == []
    (kept,) = home.glob("lineage-*.replaced.db")
    assert kept.read_bytes() == b"x" * 9000


@pytest.mark.parametrize("content", [b"", b"x" * 9000, b"SQLite format 3\0" + b"x" * 9000])
def test_what_is_no_backup_is_not_restored(home, tmp_path, content):
    before = (home / "lineage.db").read_bytes()
    (tmp_path / "bad.db").write_bytes(content)
    told = run(["restore", tmp_path / "bad.db", "--home", home], tmp_path)
    assert told.code in {3, 4}
    assert len(told.err.splitlines()) == 1
    assert (home / "lineage.db").read_bytes() == before
    assert sorted(home.glob("*lineage*")) == [home / "lineage.db"]


def test_nothing_is_restored_under_a_running_daemon(home, tmp_path):
    run(["backup", tmp_path / "copy.db", "--home", home], tmp_path)
    with Home(home).hold():
        told = run(["restore", tmp_path / "copy.db", "--home", home], tmp_path)
    assert told.code == 3
    assert "is held by another daemon" in told.err


CALLS = ("link", "rename", "replace", "unlink", "fsync")


def killed_at(number, arguments, tmp_path):
    """Restores in a child that dies before its number-th change of a file; whether it died."""
    child = os.fork()
    if child == 0:
        left = number

        def killed(call):
            def counted(*given, **named):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*given, **named)

            return counted

        for name in CALLS:
            setattr(os, name, killed(getattr(os, name)))
        try:
            app.main(args=[str(each) for each in arguments], standalone_mode=False)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def written_and_killed(home):
    """A daemon that dies over its work leaves what is new in the log alone."""
    child = os.fork()
    if child == 0:
        open_lineage(home / "lineage.db").__enter__().add_model(finetune("late"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (home / "lineage.db-wal").stat().st_size


def exports(home):
    """What each lineage in a home says."""
    found = {}
    for file in sorted(home.glob("*lineage*.db")):
        with open_lineage(file, readonly=True) as lineage:
            assert lineage.verify() == []
            found[file.name] = lineage.export()
    return found


def test_killed_at_any_moment_a_restore_loses_nothing(home, tmp_path):
    backup = tmp_path / "copy.db"
    run(["backup", backup, "--home", home], tmp_path)
    with open_lineage(backup, readonly=True) as lineage:
        new = lineage.export()
    number = 0
    while True:
        there = shutil.copytree(home, tmp_path / f"home{number}")
        written_and_killed(there)
        with open_lineage(there / "lineage.db", readonly=True) as lineage:
            old = lineage.export()
        died = killed_at(number, ["restore", backup, "--home", there], tmp_path)
        for _ in range(2):
            found = exports(there)
            assert found["lineage.db"] in (old, new)
            assert old in found.values()
            # Repeated, it does what it was to do.
            assert not killed_at(1000, ["restore", backup, "--home", there], tmp_path)
        assert exports(there)["lineage.db"] == new
        if not died:
            break
        number += 1
    assert number >= 6
