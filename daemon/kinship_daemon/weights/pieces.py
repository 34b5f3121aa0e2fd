"""SentencePiece's files, of which only the lengths of tokens are looked at."""

from __future__ import annotations

import re

__all__ = ["longest_piece"]

# A line of tiktoken's, which has files of the same name: a token in base64, and its rank.
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,9}\r?")
_LONGEST_NUMBER = 10  # bytes
_MOST_FIELDS = 1_000_000


def longest_piece(content: bytes) -> int | None:
    """
    Bytes of the longest token in a tokenizer.model, with its score; None where it is no such file.

    SentencePiece's is a message of protocol buffers whose field 1 is repeated, a token each.
    """
    lines = content.rstrip(b"\n").split(b"\n")
    if all(_TIKTOKEN.fullmatch(line) for line in lines):
        return max(map(len, lines))
    longest, at = 0, 0
    for _ in range(_MOST_FIELDS):
        if at == len(content):
            return longest or None
        key, at = _number(content, at)
        match key & 7:
            case 0:
                _, at = _number(content, at)
            case 1:
                at += 8
            case 2:
                length, at = _number(content, at)
                at += length
                if key >> 3 == 1:
                    longest = max(longest, length)
            case 5:
                at += 4
            case _:
                return None
        if at > len(content):
            return None
    return None


def _number(content: bytes, at: int) -> tuple[int, int]:
    """A number at a place, seven bits a byte; and the place after it, behind the end if cut."""
    value = 0
    for shift, byte in enumerate(content[at : at + _LONGEST_NUMBER]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    return 0, len(content) + 1
