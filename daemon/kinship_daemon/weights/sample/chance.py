"""
Numbers that look random and are the same on every machine and with every library version.

Samples of different months are compared with each other, so nothing here may ever change.
SplitMix64: Steele, Lea and Flood, Fast splittable pseudorandom number generators (OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["key", "mixed"]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def key(text: str) -> int:
    """A 64-bit number for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mixed(key: int, first: int, last: int) -> NDArray[np.uint64]:
    """The numbers of the places first..last of the stream that `key` names, (last-first,)."""
    state = np.arange(first + 1, last + 1, dtype=np.uint64) * _STEP + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * _FACTORS[0]
    state = (state ^ (state >> np.uint64(27))) * _FACTORS[1]
    return state ^ (state >> np.uint64(31))
