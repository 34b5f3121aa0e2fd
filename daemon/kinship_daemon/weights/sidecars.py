"""
The files beside a model's weights: config, tokenizer, chat template, generation settings.

They are the donor's, but for the config, which is the base's with the donor's tokens. Where the
models' tokens differ the tokenizer grows by what the donor lacks.
What is evaluated and what is published come from here alike.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kinship_daemon.errors import ModelError
from kinship_daemon.foreign.shown import shown
from kinship_daemon.model_files import GENERATION
from kinship_daemon.weights.adapter import is_adapter
from kinship_daemon.weights.assembly import Makeable, Opened
from kinship_daemon.weights.checkpoint import is_own_file, read_json
from kinship_daemon.weights.model_config import built_from, generation_settings
from kinship_daemon.weights.tokenizer import (
    carry,
    has_tokenizer,
    load_tokenizer,
    tokenizer_files,
)
from kinship_daemon.weights.vocabulary import Union

if TYPE_CHECKING:
    from transformers import AddedToken, PreTrainedTokenizerBase

__all__ = ["Sidecars", "sidecars", "write_json"]

# Superseded by what a tokenizer that has grown writes of itself.
_STALE = ("special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Sidecars:
    """
    All files of a model but its weights and their index.

    Attributes:
        config: config.json: the base's, with the donor's tokens (`model_config.built_from`).
        files: The others, by name: where each comes from.
        tokenizer: Folder that the tokenizer comes from, for messages.
        union: How the tokenizer is to grow; None where it is the donor's.
        folders: Where the tokenizers of base and leaves are.
    """

    config: Mapping[str, Any]
    files: Mapping[str, Path]
    tokenizer: Path
    union: Union | None
    folders: tuple[Path, ...]

    def write(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """
        Put the files into a folder; the same sidecars give the same bytes.

        Args:
            dtype: Declared in config.json; when None, the donor's stays.

        Raises:
            ModelError: A tokenizer that must grow cannot.
        """
        self.write_settings(folder, dtype)
        for name, source in self.files.items():
            _carry(source, folder / name)
        if self.union is not None and self.union.added:
            _grow(folder, self.tokenizer, self.union, self.folders)

    def write_settings(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Of these only what a model is built from: its config and generation config."""
        config = dict(self.config)
        if dtype is not None:
            key = "dtype" if "dtype" in config else "torch_dtype"
            config[key] = str(dtype).removeprefix("torch.")
        write_json(folder / "config.json", config)
        if GENERATION in self.files:
            _carry(self.files[GENERATION], folder / GENERATION)


def sidecars(
    assembly: Makeable, opened: Opened | None = None, *, without_tokenizer: bool = False
) -> Sidecars:
    """
    The sidecars of a model; `opened` if it is open already.

    An adapter as donor has its own tokenizer, or else its base's, and its base's config.

    Args:
        without_tokenizer: Whether there need not be one.

    Raises:
        ModelError: There is no config or no tokenizer.
    """
    opened = opened or assembly.open()
    donor, base = assembly.donor, assembly.base
    tokenizer = settings = donor
    if is_adapter(donor):
        tokenizer = donor if has_tokenizer(donor) else base
        settings = donor if (donor / "config.json").is_file() else base
    names = () if without_tokenizer and not has_tokenizer(tokenizer) else tokenizer_files(tokenizer)
    files = {name: tokenizer / name for name in names}
    if is_own_file(settings, GENERATION):
        files[GENERATION] = settings / GENERATION
    config = built_from(
        read_json(assembly.config_base / "config.json"),
        read_json(settings / "config.json"),
        opened.rows,
    )
    return Sidecars(config, files, tokenizer, opened.union, opened.tokenizers)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _carry(source: Path, target: Path) -> None:
    """Copy a file; what would choose code or places is left out."""
    if source.name == GENERATION:
        write_json(target, generation_settings(read_json(source)))
    else:
        carry(source, target)


def _grow(folder: Path, source: Path, union: Union, folders: tuple[Path, ...]) -> None:
    """Add the union's tokens to the tokenizer in `folder`, with their first owner's settings."""
    from transformers import AddedToken  # noqa: PLC0415 - slow to import, and few tokenizers grow

    tokenizer = load_tokenizer(folder, source)
    owners = sorted({number for _, number in union.added})
    settings = {number: _added(load_tokenizer(folders[number])) for number in owners}
    tokens = [settings[number].get(token, AddedToken(token)) for token, number in union.added]
    tokenizer.add_tokens(tokens)
    for place, (token, _) in enumerate(union.added):
        got, expected = tokenizer.convert_tokens_to_ids(token), union.first_id + place
        if got != expected:
            raise ModelError(
                f"{source}: its tokenizer gives the new token '{shown(token, 80)}' "
                f"the id {got} and not {expected}; these vocabularies cannot be joined"
            )
    for name in _STALE:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)


def _added(tokenizer: "PreTrainedTokenizerBase") -> "dict[str, AddedToken]":
    return {token.content: token for token in tokenizer.added_tokens_decoder.values()}
