"""
A tokenizer as its owner uploaded it: which files make it, which tokens it has; loaded with care.

Only the files that are known by name are ever looked at, each within limits, and none through a
link that leads elsewhere. transformers sees copies of them in a folder of their own, without what
would choose code or places.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

import msgspec

from kinship_daemon import model_files
from kinship_daemon.errors import ModelError, lacking, unreadable
from kinship_daemon.foreign.json_text import parse_as
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.shown import shown
from kinship_daemon.model_files import (
    CONFIG,
    MOST_TEMPLATES,
    TEMPLATES,
    TOKENIZERS,
    is_tokenizer_file,
    most_bytes,
)
from kinship_daemon.weights.checkpoint import is_own_file, read_json, refuse_link_out
from kinship_daemon.weights.model_config import chooses, plain_settings
from kinship_daemon.weights.pieces import longest_piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ADDED",
    "SETTINGS",
    "carry",
    "declared_tokens",
    "has_tokenizer",
    "load_tokenizer",
    "tokenizer_files",
    "tokens_of",
]

ADDED = "added_tokens.json"
SETTINGS = "tokenizer_config.json"
_FAST = TOKENIZERS[0]
_IDS = "vocab.json"
# The largest known have 900,000 tokens, and as many merges.
_MOST_TOKENS = 1_000_000
# transformers takes 0.1 ms for each. Models of speech have 66,000.
_MOST_ADDED = 100_000
# Bytes of a token with its score. Real ones have up to a few hundred: runs of blanks.
_LONGEST_PIECE = 2_000

_Kind = TypeVar("_Kind")


class _Added(msgspec.Struct, gc=False):
    id: int
    content: str


class _Piece(msgspec.Struct, array_like=True, gc=False):
    """Of a Unigram vocabulary: the token; its score is read over."""

    token: str


_GONE = _Piece("")


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[_Piece]


class _Fast(msgspec.Struct):
    """What counts here of a tokenizer.json."""

    model: _Model
    added_tokens: list[_Added] | None = None


class _Declared(msgspec.Struct, gc=False):
    content: str


class _Settings(msgspec.Struct):
    """What counts here of a tokenizer_config.json."""

    added_tokens_decoder: dict[int, _Declared] | None = None


def has_tokenizer(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return model_files.has_tokenizer(
        path.name for path in folder.iterdir() if is_own_file(folder, path.name)
    )


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """
    The files of a folder that make its tokenizer, templates among them.

    Links that lead elsewhere are left out: for a hub in a folder they do not exist either.

    Raises:
        ModelError: There is no tokenizer among them.
    """
    if not has_tokenizer(folder):
        for name in TOKENIZERS:
            refuse_link_out(folder, name)
        raise ModelError(f"{folder}: has no tokenizer ({', '.join(TOKENIZERS)})")
    found = (path.relative_to(folder) for path in (*folder.glob("*"), *folder.glob("*/*.jinja")))
    names = sorted(name for name in map(Path.as_posix, found) if is_tokenizer_file(name))
    kept = tuple(name for name in names if is_own_file(folder, name))
    if sum(name.startswith(TEMPLATES) for name in kept) > MOST_TEMPLATES:
        raise ModelError(f"{folder}: has over {MOST_TEMPLATES} chat templates")
    return kept


def tokens_of(folder: Path) -> dict[str, int] | None:
    """
    Every token's id; None where there is no tokenizer.

    Raises:
        ModelError: The tokenizer cannot be read.
    """
    found = _tokens(folder)
    if found is None:
        return None
    if is_own_file(folder, ADDED):
        for token, row in _typed(folder, ADDED, dict[str, int], _MOST_ADDED).items():
            found.setdefault(token, row)
    for token, row in declared_tokens(folder).items():
        found.setdefault(token, row)
    return found


def declared_tokens(folder: Path) -> dict[str, int]:
    """Tokens that only tokenizer_config.json tells of, as slow tokenizers keep them."""
    if not is_own_file(folder, SETTINGS):
        return {}
    decoder = _typed(folder, SETTINGS, _Settings).added_tokens_decoder or {}
    _check_added(folder / SETTINGS, len(decoder))
    return {token.content: row for row, token in decoder.items()}


def load_tokenizer(folder: Path, source: Path | None = None) -> "PreTrainedTokenizerBase":
    """
    A tokenizer without remote code.

    Args:
        source: Where its files come from, for messages, if `folder` will not last.

    Raises:
        ModelError: One of its files breaks the limits, or transformers cannot load it.
    """
    # Takes seconds to import, and most merges only copy their tokenizer.
    from transformers import AutoTokenizer  # noqa: PLC0415

    with TemporaryDirectory() as copy:
        place = Path(copy)
        try:
            for name in _checked(folder):
                carry(folder / name, place / name)
            if (folder / CONFIG).is_file():
                config = plain_settings(read_json(folder / CONFIG))
                (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        except ModelError as error:
            words = str(error).replace(str(folder), str(source or folder))
            raise ModelError(words, cause=error.cause) from None
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                place, local_files_only=True, trust_remote_code=False
            )
        except BaseException as error:  # a stranger's files: transformers raises all kinds
            # And the library below it, in Rust, one that is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if (lack := lacking(error)) is not None:
                raise lack from error
            text = " ".join(f"{error}".split()).replace(copy, str(source or folder))
            raise ModelError(
                f"the tokenizer in {source or folder} cannot be loaded: {shown(text)}"
            ) from error
        tokenizer.name_or_path = str(source or folder)
        return tokenizer


def carry(source: Path, target: Path) -> None:
    """
    Copy a file of a tokenizer; of its settings what would choose code or places is left out.

    Raises:
        ModelError: It is over what such a file needs, or its settings cannot be read.
    """
    target.parent.mkdir(exist_ok=True)
    _check_size(source)
    if source.name == SETTINGS:
        said = _typed(source.parent, SETTINGS, dict[str, msgspec.Raw])
        kept = {key: value for key, value in said.items() if not chooses(key)}
        if kept != said:
            target.write_bytes(msgspec.json.format(msgspec.json.encode(kept)))
            return
    shutil.copyfile(source, target)


def _checked(folder: Path) -> Iterator[str]:
    """The files of a tokenizer, each found to be within limits."""
    for name in tokenizer_files(folder):
        _check_size(folder / name)
        if name == _FAST:
            fast = _typed(folder, name, _Fast)
            _check_added(folder / name, len(fast.added_tokens or ()))
        elif name == ADDED:
            _check_added(folder / name, len(_typed(folder, name, dict[str, int])))
        elif name == _IDS:
            _typed(folder, name, dict[str, int])
        elif name.endswith(".json"):
            if name == SETTINGS:
                declared_tokens(folder)
            _typed(folder, name, dict[str, msgspec.Raw])
        elif name.endswith((".txt", ".jinja")):
            _text(folder / name)
        elif name.endswith(".model"):
            _check_pieces(folder / name)
        yield name


def _tokens(folder: Path) -> dict[str, int] | None:
    if is_own_file(folder, _FAST):
        return _fast(folder)
    if is_own_file(folder, _IDS):
        return _typed(folder, _IDS, dict[str, int])
    if is_own_file(folder, "vocab.txt"):
        _check_size(folder / "vocab.txt")
        lines = _text(folder / "vocab.txt").splitlines()
        return {token: row for row, token in enumerate(lines)}
    if not has_tokenizer(folder):
        return None
    # Of SentencePiece's files transformers alone knows where each class puts its own tokens.
    return dict(load_tokenizer(folder).get_vocab())


def _fast(folder: Path) -> dict[str, int]:
    """Tokens of a tokenizer.json, whichever model it holds: Unigram lists its tokens by id."""
    said = _typed(folder, _FAST, _Fast)
    _check_added(folder / _FAST, len(said.added_tokens or ()))
    vocab = said.model.vocab
    if isinstance(vocab, list):
        listed, vocab = vocab, {}
        for row, entry in enumerate(listed):
            vocab[entry.token] = row
            listed[row] = _GONE  # a million of them need not be kept beside the rest
    vocab.update((token.content, token.id) for token in said.added_tokens or ())
    return vocab


def _typed(folder: Path, name: str, kind: type[_Kind], most: int = _MOST_TOKENS) -> _Kind:
    path = folder / name
    _check_size(path)
    try:
        return parse_as(path.read_bytes(), kind, Limits(nbytes=most_bytes(name), items=most))
    except OSError as error:
        raise unreadable(path, error) from error
    except Malformed as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: cannot be read: not UTF-8") from error


def _check_added(path: Path, number: int) -> None:
    if number > _MOST_ADDED:
        raise ModelError(f"{path}: adds {number} tokens; the most allowed is {_MOST_ADDED}")


def _check_pieces(path: Path) -> None:
    """
    That SentencePiece's or tiktoken's tokens are as short as real ones.

    transformers tries each at which a token can be split, and copies its halves: one of a megabyte
    takes minutes, and its time grows with the square.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    longest = longest_piece(content)
    if longest is None:
        raise ModelError(f"{path}: cannot be read: neither SentencePiece's nor tiktoken's tokens")
    if longest > _LONGEST_PIECE:
        raise ModelError(
            f"{path}: has a token of {longest} bytes; the most allowed is {_LONGEST_PIECE}"
        )


def _check_size(path: Path) -> None:
    if path.stat().st_size > (most := most_bytes(path.name)):
        raise ModelError(f"{path}: over {most} bytes, which no such file needs")
