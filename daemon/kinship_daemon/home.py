"""The daemon's own folder: where things lie in it, who holds it, which ones there are."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.errors import KinshipError, UsageError

__all__ = ["Home", "find_home", "state_directory"]

_LOCK_TRIES = 3


@dataclass(frozen=True)
class Home:
    path: Path

    @property
    def lineage(self) -> Path:
        return self.path / "lineage.db"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.safetensors"

    @property
    def sample(self) -> Path:
        """The base's part in every sampled kinship; may be deleted, it is read again."""
        return self.path / "sample.safetensors"

    @property
    def cache(self) -> Path:
        """Fetched models; may be deleted, what is needed is fetched again."""
        return self.path / "cache"

    @property
    def made(self) -> Path:
        """Merges that are leaves; may be deleted, what is needed is made again."""
        return self.path / "made"

    @property
    def staging(self) -> Path:
        """Merges on their way to a hub; nothing in it outlives a publication."""
        return self.path / "staging"

    @property
    def demo_hub(self) -> Path:
        return self.path / "hub"

    @property
    def evaluation_log(self) -> Path:
        return self.path / "logs" / "evaluate.log"

    @property
    def log(self) -> Path:
        """What the daemon told; see `daemon_log`."""
        return self.path / "logs" / "daemon.log"

    @property
    def activity(self) -> Path:
        """What the daemon does just now; see `activity`."""
        return self.path / "logs" / "activity.json"

    @property
    def bug_log(self) -> Path:
        """Mistakes of ours that single models met, in full."""
        return self.path / "logs" / "bugs.log"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """
        Make the folder and hold it against a second daemon for as long as this process lives.

        Raises:
            KinshipError: it is held already, or cannot be written.
        """
        try:
            self.evaluation_log.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise KinshipError(
                f"cannot write home {self.path}: {error.strerror}; choose another with --home"
            ) from None
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """Process id of the daemon that holds the folder now; None if none does."""
        try:
            with (self.path / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int((self.path / "lock").read_text() or 0)
        except OSError:
            return None
        return None

    def used_bytes(self) -> int:
        """What the folder holds; links and what lies behind them do not count."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with suppress(FileNotFoundError):  # a log is renamed meanwhile, by another thread
                    file = Path(folder, name).lstat()
                    total += 0 if stat.S_ISLNK(file.st_mode) else file.st_size
        return total


def _lock(descriptor: int, path: Path) -> None:
    # The kernel drops the lock when the holder dies, however it dies; a pid file would stay.
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # It may only be `kinship-daemon status` having a look.
            time.sleep(0.1)
    else:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
        raise KinshipError(
            f"home {path} is held by another daemon (pid {holder}); stop it, or use --home"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def state_directory() -> Path:
    """Where homes lie by default (XDG base directory specification)."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(root) / "kinship-daemon"


def find_home(home: Path | None, name: str | None) -> Home:
    """
    The existing home a command is to read.

    Args:
        home: The folder itself, if the user gave it.
        name: The base's name, if the user gave that.

    Raises:
        UsageError: there is none, or several and neither argument says which.
    """
    if home is not None or name is not None:
        path = home if home is not None else state_directory() / str(name)
        if not (path / "lineage.db").is_file():
            raise UsageError(f"no lineage in {path}; `kinship-daemon run` makes one")
        return Home(path)
    found = sorted(file.parent for file in state_directory().glob("*/lineage.db"))
    if not found:
        raise UsageError(
            f"no home in {state_directory()}; name one with --home, "
            "or make one: kinship-daemon run --base demo --until-converged"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"several homes ({names}); say which with --base or --home")
    return Home(found[0])
