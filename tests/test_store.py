"""The file in company and on bad disks: readers, other writers, locks, full and read-only."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinship_storage.errors import LineageError
from small_lineage import fill, open_lineage


def test_the_lineage_takes_no_pandas_along_and_leaves_it_to_others():
    code = (
        "import sys; import kinship_storage.lineage; "
        "assert not {'pandas', 'pyarrow'} & {*sys.modules}; import pandas"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reader_sees_what_was_committed_while_the_daemon_writes(family, path):
    with open_lineage(path, readonly=True) as reader:
        with family.transaction():
            family.put("base", "other")
            assert reader.get("base") == "demo/base"
            assert reader.export()["base"] == "demo/base"
        assert reader.get("base") == "other"


def test_a_reader_writes_nothing(family, path):
    with (
        open_lineage(path, readonly=True) as reader,
        pytest.raises(LineageError, match="read-only"),
    ):
        reader.put("base", "other")


def test_two_writers_wait_for_each_other(family, path):
    began, order = threading.Event(), []

    def other():
        with open_lineage(path) as second:
            began.set()
            second.put("turn", "second")
            order.append("second")

    thread = threading.Thread(target=other)
    with family.transaction():
        family.put("turn", "first")
    with family.transaction():
        # The other one cannot even open the file for writing before this commit.
        thread.start()
        assert not began.wait(0.3)
        order.append("first")
        family.put("turn", "first")
    thread.join()
    assert order == ["first", "second"]
    assert family.get("turn") == "second"


def test_another_thread_may_use_the_connection(family):
    found = []
    thread = threading.Thread(target=lambda: found.extend(family.models()))
    thread.start()
    thread.join()
    assert found == family.models()


def test_a_full_disk_is_told_and_what_was_there_stays(family):
    pages = family._store.query("PRAGMA page_count")[0]["page_count"]
    family._store.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LineageError, match="the disk is full; free some space"):
        family.put("big", "x" * 1_000_000)
    assert family.get("big") is None
    assert family.get("base") == "demo/base"
    assert family.verify() == []


@contextmanager
def a_folder_nobody_may_write(path, pattern="lineage.db*"):
    """The lineage in a folder that this process may only read, even if it is run by root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in path.parent.glob(pattern):
            copy = folder / file.name
            copy.write_bytes(file.read_bytes())
            copy.chmod(0o444)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder / path.name
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_a_read_only_home_can_be_read_and_says_why_it_cannot_be_written(path):
    with open_lineage(path) as lineage:
        fill(lineage)
        expected = lineage.export()
    with a_folder_nobody_may_write(path) as copy:
        with open_lineage(copy, readonly=True) as reader:
            assert reader.export() == expected
            assert reader.verify() == []
        with pytest.raises(LineageError, match="choose another --home"):
            open_lineage(copy)


def test_a_read_only_copy_of_a_running_home_is_read_with_its_log(family, path):
    with (
        a_folder_nobody_may_write(path) as copy,
        open_lineage(copy, readonly=True) as reader,
    ):
        assert reader.export() == family.export()


def test_a_log_that_cannot_be_read_is_told_not_left_out(family, path):
    with (
        a_folder_nobody_may_write(path, "lineage.*[bl]") as copy,  # the file and its log
        pytest.raises(LineageError, match="not closed in order and its folder is read-only"),
    ):
        open_lineage(copy, readonly=True)


def test_a_file_that_stays_locked_is_told(family, path, monkeypatch):
    monkeypatch.setattr("kinship_storage.connections.BUSY_SECONDS", 0.05)
    with family.transaction(), pytest.raises(LineageError, match="has kept it locked"):
        open_lineage(path)
