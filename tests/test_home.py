"""A home: one daemon at a time, found without being named where there is just one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kinship_daemon.cli import app
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.home import Home, find_home

HOLD = """
import sys, time
from pathlib import Path
from kinship_daemon.home import Home
with Home(Path(sys.argv[1])).hold():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "home")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_daemon_is_refused_and_told_who_holds(tmp_path, holder):
    with pytest.raises(KinshipError, match=f"pid {holder.pid}"), Home(tmp_path / "home").hold():
        pass
    assert Home(tmp_path / "home").holder() == holder.pid


def test_a_killed_holder_leaves_the_home_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    home = Home(tmp_path / "home")
    assert home.holder() is None
    with home.hold():
        assert (home.path / "lock").read_text() == str(os.getpid())


def test_a_home_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KinshipError, match="--home"), Home(tmp_path / "file" / "home").hold():
        pass


def homes(state, *names):
    for name in names:
        (state / "kinship-daemon" / name).mkdir(parents=True)
        (state / "kinship-daemon" / name / "lineage.db").touch()


def test_the_only_home_needs_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    homes(tmp_path, "mistral-7b")
    assert find_home(None, None).path.name == "mistral-7b"


def test_several_homes_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    homes(tmp_path, "demo", "mistral-7b")
    with pytest.raises(UsageError, match="demo, mistral-7b"):
        find_home(None, None)
    assert find_home(None, "demo").path.name == "demo"


def test_no_home_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="run --base demo"):
        find_home(None, None)


def test_what_a_home_holds_is_counted_without_links(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert Home(tmp_path).used_bytes() == 1000


@pytest.mark.parametrize("looks", range(3))
def test_what_vanishes_while_it_is_counted_is_no_error(tmp_path, monkeypatch, looks):
    """`logs/activity.json` is replaced every second, by another thread."""
    stays, going = tmp_path / "stays", tmp_path / ".activity.json.partial"
    for file in (stays, going):
        file.write_bytes(b"x" * 1000)
    seen, look = [], Path.stat

    def stat(path, **options):
        if path == going:
            if len(seen) == looks:
                going.unlink()
            seen.append(path)
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert Home(tmp_path).used_bytes() in (1000, 2000)
    assert seen


def test_stop_ends_the_holder_and_says_so(tmp_path, holder):
    (tmp_path / "home" / "lineage.db").touch()
    asked = ["stop", "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(app, asked)
    assert (result.exit_code, result.output) == (0, f"stopped (pid {holder.pid})\n")
    assert holder.wait(timeout=60) == -signal.SIGTERM
    result = CliRunner().invoke(app, asked)
    assert (result.exit_code, result.output) == (0, f"no daemon runs on {tmp_path / 'home'}\n")
