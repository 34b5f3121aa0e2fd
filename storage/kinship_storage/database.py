"""sqlite-utils' Database, without pandas: 70 MB, for data frames that are never written here."""

from __future__ import annotations

import sys

__all__ = ["Database"]

_LOADED = "pandas" in sys.modules
if not _LOADED:
    sys.modules["pandas"] = None  # type: ignore[assignment] # as if it were not installed
try:
    from sqlite_utils import Database
finally:
    if not _LOADED:
        del sys.modules["pandas"]  # others may want it
