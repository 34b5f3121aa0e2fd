"""Heavy imports, made lighter."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """
    Import without garbage collection.

    Modules stay until the end. To search torch's for garbage again and again, and once more at
    exit, takes up to a third as long as to import them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
