"""The table of results that is kept, so that analyses run again without a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["TABLE", "Array", "Table", "answers", "read", "write"]

TABLE = Path(__file__).parent / "results.json"

Table = dict[str, Any]
Array = np.ndarray


def read(path: Path) -> Table:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, table: Table) -> None:
    """One row a line, so that a change is seen as one."""
    parts = []
    for name, value in table.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(json.dumps(row) for row in value)
            parts.append(f'"{name}": [\n{rows}\n]')
        else:
            parts.append(f'"{name}": {json.dumps(value)}')
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def answers(row: Mapping[str, Any]) -> Array:
    """Whether each document was answered right, (skills, documents)."""
    bits = [f"{int(text, 16):0{4 * len(text)}b}" for text in row["answers"]]
    return np.array([[int(bit) for bit in line] for line in bits], dtype=float)
