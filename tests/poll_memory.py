"""
One poll of the daemon in a process of its own, and the memory that it takes.

    python poll_memory.py URL HOME BASE

Prints JSON, in megabytes (10^6) resident: `before`, when the daemon is open; `peak`, of the poll;
and `seen`, how many candidates its lineage has then.
"""

import json
import sys
from io import StringIO
from pathlib import Path

import turns
from kinship_daemon import config, startup
from kinship_daemon.report import JsonReporter


def resident(key: str, process: object = "self") -> float:
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in status if line.startswith(f"{key}:"))
    return int(kilobytes) * 1024 / 1e6


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def opened(url: str, home: Path, base: str, *overrides: str, now=None):
    """A daemon that watches the server, and reports to nobody."""
    chosen = config.load(base=base, hub=url, home=home, overrides=overrides)
    return startup.opened(chosen, JsonReporter(StringIO()), now=now)


def main() -> None:
    url, home, base = sys.argv[1:]
    with opened(url, Path(home), base, "limits.candidates_per_day=1") as d:
        before = resident("VmRSS")
        forget_peak()
        turns.poll(d)
        peak, seen = resident("VmHWM"), len(d.lineage.candidates())
    print(json.dumps({"before": before, "peak": peak, "seen": seen}))


if __name__ == "__main__":
    main()
