"""`python -m tests.real`: build the zoo, run the laboratory, keep the table; docs/real.md."""

import argparse
import sys
import time
from pathlib import Path

from tests.real.analysis import report
from tests.real.table import TABLE, read

__all__ = ["main"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.real", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path("real-zoo"), help="where it is, or goes")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--analyze", action="store_true", help="only print what the table says")
    parser.add_argument("--plot", type=Path, help="draw it: .svg or .png")
    arguments = parser.parse_args()
    if not arguments.analyze:
        # Training needs `peft` and `gguf`, which the analysis does without.
        from tests.real.run import run

        began = time.monotonic()
        run(arguments.zoo, arguments.workers)
        print(f"{time.monotonic() - began:.0f} s in all")
    table = read(TABLE)
    print(report(table))
    if arguments.plot is not None:
        from tests.real.figure import draw

        draw(table, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
