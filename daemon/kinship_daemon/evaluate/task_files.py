"""
The task files of the folders that the user named, looked at before lm-eval loads any.

A task file runs code of whoever wrote it: what stands behind `!function`, and its templates. So
nothing is read or run from anywhere but the folders of evaluate.include_path, whose names in the
config say that they are trusted, and lm-eval's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kinship_daemon.errors import UsageError
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.shown import shown
from kinship_daemon.foreign.yaml_text import Function, parse_yaml

__all__ = ["TaskFiles"]

_SETTING = "evaluate.include_path"
_HARNESS = "lm_eval"
# lm-eval's longest file has 60,000 bytes, its largest folder some 2,500 files.
_LIMITS = Limits(nbytes=1_000_000, items=50_000)
_MOST_FILES = 20_000
_MOST_INCLUDES = 50


class TaskFiles:
    """
    The task files of some folders.

    Args:
        folders: As the user named them.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)
        self._trusted = tuple(folder.resolve() for folder in (*self._folders, *_harness()))
        self._read: dict[Path, dict[Any, Any]] = {}

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """
        All that lm-eval will read to list the tasks, sorted.

        Raises:
            UsageError: They are too many.
        """
        found: list[Path] = []
        for folder in self._folders:
            for path in folder.glob("**/*.yaml"):
                found.append(path)
                if len(found) > _MOST_FILES:
                    raise UsageError(
                        f"{folder} of {_SETTING} holds over {_MOST_FILES} task files; name the "
                        "folders below it that you need"
                    )
        return tuple(sorted(found))

    def check(self) -> None:
        """
        See that lm-eval can read every file within limits.

        Raises:
            UsageError: One is too large, too deep or the like, or is linked to from outside.
        """
        for path in self.paths:
            self._file(path, path)

    def check_task(self, path: Path) -> None:
        """
        See that a task file, and those that it includes, use nothing from elsewhere.

        Raises:
            UsageError: One includes a file, or names code, outside of the folders.
        """
        for file, content in self._with_included(path):
            for name in _functions(content):
                self._check_function(path, file, name)

    def with_code(self) -> int:
        """How many of the files name code to run."""
        return sum(next(_functions(self._file(p, p)), None) is not None for p in self.paths)

    def _with_included(self, path: Path) -> Iterator[tuple[Path, dict[Any, Any]]]:
        waiting, seen = [path], set[Path]()
        while waiting:
            file = waiting.pop()
            real = _resolved(file)
            if real in seen:
                continue
            seen.add(real)
            if len(seen) > _MOST_INCLUDES:
                raise UsageError(f"task file {path}: it includes over {_MOST_INCLUDES} others")
            content = self._file(path, file)
            yield real, content
            included = content.get("include") or []
            for name in included if isinstance(included, list) else [included]:
                if not isinstance(name, str):
                    raise UsageError(f"task file {file}: includes {shown(name, 80)}, no file")
                waiting.append(real.parent / name)

    def _file(self, path: Path, file: Path) -> dict[Any, Any]:
        """What a file says; `path` is the one that led to it."""
        real = _resolved(file)
        if not self._is_trusted(real):
            raise UsageError(
                f"task file {path}: leads to {shown(str(file))}, which is in no folder of "
                f"{_SETTING}; name its folder there if you trust whoever wrote it"
            )
        if real not in self._read:
            self._read[real] = _content(path, real)
        return self._read[real]

    def _check_function(self, path: Path, file: Path, name: Function) -> None:
        module = name.rpartition(".")[0]
        # As lm-eval looks for it: beside the file, else among all that is installed.
        code = _resolved(file.parent / f"{module.replace('.', '/')}.py")
        if os.path.exists(code):  # noqa: PTH110 - a name that is too long is none; Path raises
            if self._is_trusted(code):
                return
        elif module.split(".")[0] == _HARNESS:
            return
        raise UsageError(
            f"task file {path}: '!function {shown(name, 80)}' is code outside the folders of "
            f"{_SETTING}; put it beside the file, or name its folder there if you trust it"
        )

    def _is_trusted(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._trusted)


def _harness() -> Iterator[Path]:
    """lm-eval's own tasks, without the seconds that importing it takes."""
    spec = find_spec(_HARNESS)
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder) / "tasks"


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise UsageError(f"task file {shown(str(path))}: cannot be a path") from None


def _content(path: Path, file: Path) -> dict[Any, Any]:
    try:
        if file.stat().st_size > _LIMITS.nbytes:
            raise UsageError(f"task file {path}: over {_LIMITS.nbytes} bytes")
        found = parse_yaml(file.read_text(encoding="utf-8"), _LIMITS, functions=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(f"task file {shown(str(file))}: cannot be read: {reason}") from None
    except Malformed as error:
        raise UsageError(f"task file {path}: cannot be read: {error}") from None
    # What is no mapping is passed over by lm-eval.
    return found if isinstance(found, dict) else {}


def _functions(value: object) -> Iterator[Function]:
    """The names of all code in what a file says; `check` has seen to its depth."""
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _functions(each)
