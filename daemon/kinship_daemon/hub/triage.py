"""Whom not to fetch, from a repo's card, file list and config alone; the cheapest reasons first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kinship_daemon.errors import Cause
from kinship_daemon.foreign.shown import one_line, shown
from kinship_daemon.hub.files import has_tokenizer, is_adapter, pickles, sidecars, weight_files
from kinship_daemon.hub.front_matter import relation, tags
from kinship_daemon.hub.records import Listing, Repo
from kinship_daemon.model_files import MOST_TEMPLATES, TEMPLATES, most_bytes

__all__ = ["Refusal", "Rules", "by_rule", "listed_refusal", "refusal", "remarks"]


@dataclass(frozen=True)
class Refusal:
    """
    Why a repo is not fetched.

    Attributes:
        cause: `model`: what it is; `settings`: a rule of ours; `world`: what the hub does with it.
        setting: The rule, with cause `settings`.
    """

    reason: str
    cause: Cause = "model"
    setting: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))


# As words of a name or tag: Org/Model-GPTQ, 4bit, but not the "awq" inside another word.
_QUANTISED = re.compile(
    r"(?:^|[^a-z0-9])(gguf|ggml|gptq|awq|exl2|exl3|bnb|bitsandbytes|eetq|hqq|fp8|nf4|[2-8]-?bit)"
    r"(?![a-z0-9])"
)


# The Hub's own tag for a descendant whose relation is stated.
_TYPED = re.compile(r"base_model:(finetune|adapter|merge|quantized):")


def by_rule(what: str, setting: str) -> Refusal:
    """A refusal that holds until that setting changes."""
    return Refusal(f"{what} ({setting} admits such)", "settings", setting)


_GATED = by_rule("gated", "triage.allow_gated")
_MERGE = by_rule("a merge", "triage.allow_merges")
_ADAPTER = by_rule("an adapter", "triage.allow_adapters")
_BASE = Refusal("the base itself")
_DISABLED = Refusal("disabled by the hub", "world")
_QUANTISED_COPY = Refusal("a quantised copy")


@dataclass(frozen=True)
class Rules:
    """
    What the user allows.

    Attributes:
        max_gb: Largest size of the weight files, in 10^9 bytes.
        allow_gated: Admit repos whose terms must be accepted first.
        allow_merges: Admit other people's merges.
        allow_adapters: Admit LoRA adapters.
    """

    max_gb: float = 40.0
    allow_gated: bool = False
    allow_merges: bool = False
    allow_adapters: bool = True


def refusal(
    repo: Repo, base_id: str, rules: Rules, *, architectures: Sequence[str] = ()
) -> Refusal | None:
    """
    Why a repo is not fetched; None if it may be. The licence is no reason: it bars publishing.

    Args:
        base_id: What descendants declare.
        architectures: Of the base's config.json, if known.
    """
    return (
        _by_standing(repo, base_id, rules)
        or _by_relation(repo, rules)
        or _by_quantisation(repo)
        or _by_sidecars(repo)
        or _by_files(repo, rules)
        or _by_architecture(repo, architectures)
    )


def listed_refusal(listing: Listing, base_id: str, rules: Rules) -> Refusal | None:
    """The same from a line of a listing alone, which asks the hub nothing more."""
    relations = {tag.split(":")[1] for tag in listing.tags if _TYPED.match(tag)}
    plain = [tag.lower() for tag in listing.tags if not tag.startswith("base_model:")]
    reasons = (
        (listing.id == base_id, _BASE),
        (listing.disabled, _DISABLED),
        (listing.gated and not rules.allow_gated, _GATED),
        ("quantized" in relations, _QUANTISED_COPY),
        ("merge" in relations and not rules.allow_merges, _MERGE),
        (relations == {"adapter"} and not rules.allow_adapters, _ADAPTER),
    )
    known = next((reason for holds, reason in reasons if holds), None)
    return known or _by_words((*plain, listing.id.rpartition("/")[2].lower()))


def remarks(repo: Repo) -> tuple[str, ...]:
    """What is worth saying about a repo that is admitted all the same."""
    found = []
    if "auto_map" in repo.config:
        found.append("brings code of its own (auto_map), which is never run")
    if names := pickles(repo.files):
        found.append(
            f"pickle files are left alone ({', '.join(shown(name) for name in names[:3])})"
        )
    return tuple(found)


def _by_standing(repo: Repo, base_id: str, rules: Rules) -> Refusal | None:
    if repo.id == base_id:
        return _BASE
    if repo.disabled:
        return _DISABLED
    if repo.problem is not None:
        return Refusal(repo.problem)
    if repo.gated and not rules.allow_gated:
        return _GATED
    return None


def _by_relation(repo: Repo, rules: Rules) -> Refusal | None:
    # Whether the card names this base is the hub's to say: it knows the names of renamed repos.
    kind = relation(repo.card, [file.path for file in repo.files])
    if kind == "adapter" and not rules.allow_adapters:
        return _ADAPTER
    if kind == "quantized":
        return _QUANTISED_COPY
    if kind == "merge" and not rules.allow_merges:
        return _MERGE
    return None


def _by_quantisation(repo: Repo) -> Refusal | None:
    if "quantization_config" in repo.config:
        return Refusal("quantised: config.json has a quantization_config")
    return _by_words((*tags(repo.card), repo.id.rpartition("/")[2].lower()))


def _by_words(words: Iterable[str]) -> Refusal | None:
    for word in words:
        if found := _QUANTISED.search(word):
            return Refusal(f"quantised, by its name or tags ({found[1]})")
    return None


def _by_sidecars(repo: Repo) -> Refusal | None:
    beside = sidecars(repo.files)
    for file in beside:
        if file.size > (most := most_bytes(file.path)):
            words = f"of {file.size / 1e6:.1f} MB; the most allowed is {most / 1e6:g} MB"
            return Refusal(f"{file.path} {words}")
    if sum(file.path.startswith(TEMPLATES) for file in beside) > MOST_TEMPLATES:
        return Refusal(f"over {MOST_TEMPLATES} chat templates")
    return None


def _by_files(repo: Repo, rules: Rules) -> Refusal | None:
    names = {file.path for file in repo.files}
    weights = weight_files(repo.files)
    if not weights:
        pickled = pickles(repo.files)
        only = (
            f"only pickle weights ({', '.join(shown(name) for name in pickled[:3])})"
            if pickled
            else "no weights"
        )
        return Refusal(f"{only}; model.safetensors is needed, or shards with their index")
    # An adapter has its base's config and tokenizer.
    if not is_adapter(repo.files):
        if "config.json" not in names:
            return Refusal("no config.json")
        if not has_tokenizer(repo.files):
            return Refusal("no tokenizer files (such as tokenizer.json or tokenizer.model)")
    size = sum(file.size for file in weights) / 1e9
    if size > rules.max_gb:
        reason = f"weights of {size:.1f} GB, more than triage.max_gb {rules.max_gb:g}"
        return Refusal(reason, "settings", "triage.max_gb")
    return None


def _by_architecture(repo: Repo, architectures: Sequence[str]) -> Refusal | None:
    theirs = repo.config.get("architectures")
    if not architectures or not theirs:
        return None
    if not isinstance(theirs, list) or not all(isinstance(name, str) for name in theirs):
        return Refusal(f"config.json's architectures are no names ({shown(theirs)})")
    if set(theirs) & set(architectures):
        return None
    return Refusal(f"another architecture ({shown(theirs[0])}, the base has {architectures[0]})")
