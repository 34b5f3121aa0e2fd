"""
Two thousand repos that say they descend from the demo's base, each with its known fate.

Most are what the Hub is full of: quantised copies, merges, gated repos, uploads of the same weights
once more. Some are broken in every way that a triage has to survive. A few are good, and new.
"""

import json
import random
import re
import struct
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from huggingface_hub.utils import _http
from safetensors.torch import load, save

from hub_server import Chaos, Fault, HubServer
from hub_server.content import Content
from kinship_daemon import demo, faults
from kinship_daemon.hub import calls, client, download

__all__ = ["PARENTS", "Fate", "Weather", "World", "impatient", "world"]

PARENTS = ("demo/add", "demo/max")
# Uploaded again and again; which of the copies is admitted is a matter of luck, but one is.
_COPIED = ("reverse", "sort", "subtract")
_COPIES = 10
_ADAPTERS = 3
# So long that the middle of the first piece that is read of a file is in its header, as in real
# models: there a wrong bit makes a good model look broken.
_NOTE = "a note " * 1050
_FINETUNE = {"base_model": demo.BASE, "base_model_relation": "finetune", "license": "apache-2.0"}
_PLAIN = {"base_model": demo.BASE, "license": "apache-2.0"}
_TENSORS = 1_000_000

# What a hub under load and the way to it do for a while. Nothing here lasts.
_ANYWHERE = [
    *("500", "502", "503", "reset", "reset-body", "truncate", "html", "redirect"),
    # Of a firewall, a proxy or an outage of accounts: without the Hub's own code.
    *("401", "403", "404", "410"),
]
_OF_API = [
    *_ANYWHERE * 6,
    *["json", "shape", "flip", "out-of-order", "lost"] * 4,
    *["429", "stall", "stall-body"],
]
_OF_FILES = [
    *_ANYWHERE * 6,
    *["corrupt", "expire", "range-ignored", "wrong-range"] * 4,
    *["429", "stall", "stall-body"],
]


@dataclass(frozen=True)
class Fate:
    """How a repo ends; the reason is a regular expression."""

    status: str
    reason: str = ""


@dataclass(frozen=True)
class _Stored:
    files: Mapping[str, Content]
    card: Mapping[str, object]
    attributes: Mapping[str, object] = field(default_factory=dict)


@dataclass
class World:
    """
    Attributes:
        fates: By repo, of those whose fate does not depend on others.
        groups: Repos with the same weights: one of each is admitted, the others are its copies.
    """

    base: Path
    fates: dict[str, Fate] = field(default_factory=dict)
    groups: list[tuple[str, ...]] = field(default_factory=list)
    repos: dict[str, _Stored] = field(default_factory=dict)

    def settle(self, server: HubServer) -> None:
        server.add(demo.BASE, self.base)
        for number, (name, stored) in enumerate(self.repos.items()):
            popular = {"downloads": 0 if name.startswith("zz/") else 1 + number % 97}
            server.add(name, stored.files, stored.card, **popular, **stored.attributes)

    def upset(self, server: HubServer) -> None:
        """What happens on the hub after everyone was listed, and before they are looked at."""
        for number in range(5):
            server.delete(f"zz/deleted-{number}")
            server.repos[f"zz/disabled-{number}"].disabled = True
        for name in ("zz/renamed-0", "zz/renamed-1"):
            server.rename(name, name.replace("renamed", "called-now"))

    def differs(self, found: Mapping[str, Fate]) -> list[str]:
        """Repos whose fate is not the one they deserve, and what became of them."""
        wrong = [
            f"{name}: {found.get(name)}, not {fate}"
            for name, fate in self.fates.items()
            if name not in found or not _is(found[name], fate)
        ]
        for group in self.groups:
            admitted = [name for name in group if _is(found[name], Fate("admitted"))]
            copy = Fate("refused", "the same weights as (" + "|".join(admitted) + ")$")
            others = [n for n in group if n not in admitted and not _is(found[n], copy)]
            if len(admitted) != 1 or others:
                wrong.append(f"of {group}, {admitted} admitted; {[found[n] for n in others]}")
        known = {*self.fates, *(name for group in self.groups for name in group)}
        # A wrong bit in a listing may name a repo that never was: it is found to be gone. Or a
        # revision that never was, of a repo that is refused at a glance: it is refused likewise.
        gone = Fate("refused", "^gone from the hub$")
        strange = [
            name
            for name, fate in found.items()
            if name not in known
            and not _is(fate, gone)
            and not _is(fate, self.fates.get(name.partition("@")[0], gone))
        ]
        return wrong + [f"{name}: nobody knows it" for name in strange]


class Weather:
    """
    Chaos in which some faults happen to files only, some to answers of the API only.

    Each kind happens twice at least, however few the requests are.
    """

    def __init__(self, seed: int, rate: float) -> None:
        self.of_files = Chaos(seed, rate, _OF_FILES, least=2)
        self.of_api = Chaos(seed, rate, _OF_API, least=2)
        self.asked = 0

    def choose(self, server: str, method: str, path: str, query: str, span: str) -> Fault | None:
        self.asked += 1
        file = server == "storage" or "/resolve/" in path
        chaos = self.of_files if file else self.of_api
        return chaos.choose(server, method, path, query, span)

    @property
    def failed(self) -> Counter[str]:
        """How often which fault happened."""
        return self.of_files.failed + self.of_api.failed


def impatient() -> None:
    """Let this process wait for servers shorter than in the world."""
    calls._BACKOFF_SECONDS = (0.02, 0.05)
    faults._LONGEST_WAIT = timedelta(seconds=5)  # a wait doubles with every try
    download._PAUSE_SECONDS = 0.02
    client.ApiHub.__init__.__kwdefaults__["timeout_seconds"] = 0.5
    # huggingface_hub sleeps seconds between its own tries to upload.
    _http.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.05)))


def world(scratch: Path) -> World:
    """The same every time; large files are kept in `scratch`."""
    made = World(demo.HUB / demo.BASE)
    whole = _files(demo.HUB / demo.BASE)
    weights = load(whole["model.safetensors"])
    _glanced(made, whole)
    _looked_at(made, whole)
    _broken(made, whole, weights, scratch)
    _good(made, whole, weights)
    names = sorted(made.repos)
    random.Random(0).shuffle(names)
    made.repos = {name: made.repos[name] for name in names}
    return made


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _packed(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save(dict(tensors), {"format": "pt", "note": _NOTE})


def _noisy(weights: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        name: (w.float() + 0.02 * torch.randn(w.shape, generator=noise)).to(w.dtype)
        for name, w in sorted(weights.items())
    }


def _is(found: Fate, wanted: Fate) -> bool:

    same = found.status == wanted.status and bool(wanted.reason) == bool(found.reason)
    return same and re.search(wanted.reason, found.reason) is not None


def _add(
    made: World,
    kind: str,
    count: int,
    fate: Fate | None,
    files: Mapping[str, Content],
    card: Mapping[str, object] = _FINETUNE,
    **attributes: object,
) -> list[str]:
    """So many repos of a kind; the name may be the whole one, with its owner."""
    owner, _, rest = kind.rpartition("/")
    names = [f"{owner or f'people-{n % 7}'}/{rest}-{n}" for n in range(count)]
    for name in names:
        made.repos[name] = _Stored(files, card, attributes)
        if fate is not None:
            made.fates[name] = fate
    return names


def _glanced(made: World, whole: Mapping[str, bytes]) -> None:
    """Refused by what the listing says of them; nobody asks for more."""
    tag = Fate("refused", "a quantised copy")
    word = Fate("refused", "quantised, by its name or tags")
    merge = Fate("refused", "a merge")
    _add(made, "small", 440, tag, whole, _FINETUNE | {"base_model_relation": "quantized"})
    for end in ("GPTQ", "AWQ", "4bit", "GGUF"):
        _add(made, f"tuned-{end}", 75, word, whole)
    _add(made, "packed", 200, word, whole, _FINETUNE | {"tags": ["awq"]})
    _add(made, "mix", 350, merge, whole, _FINETUNE | {"base_model_relation": "merge"})
    _add(made, "terms", 300, Fate("refused", "gated"), whole, gated="auto")
    _add(made, "banned", 30, Fate("refused", "disabled by the hub"), whole, disabled=True)


def _looked_at(made: World, whole: Mapping[str, bytes]) -> None:
    """Refused by their own page: card, files and config."""

    def without(*names: str) -> dict[str, bytes]:
        return {name: data for name, data in whole.items() if name not in names}

    def configured(**changes: object) -> dict[str, bytes]:
        config = json.loads(whole["config.json"]) | changes
        return {**whole, "config.json": json.dumps(config).encode()}

    merge = Fate("refused", "a merge")
    pickle = Fate("refused", "only pickle weights")
    other = configured(architectures=["LlamaForCausalLM"])
    bits = configured(quantization_config={"quant_method": "gptq"})
    pickled = {**without("model.safetensors"), "pytorch_model.bin": b"code that nobody runs"}
    _add(made, "blend", 60, merge, whole, _PLAIN | {"tags": ["merge"]})
    _add(made, "llama", 60, Fate("refused", "another architecture"), other)
    _add(made, "bits", 40, Fate("refused", "quantization_config"), bits)
    _add(made, "old", 50, pickle, pickled)
    _add(made, "bare", 40, Fate("refused", "no tokenizer"), without("tokenizer.json"))
    _add(made, "lost", 10, Fate("refused", "no config.json"), without("config.json"))
    _add(made, "empty", 10, Fate("refused", "no weights"), without("model.safetensors"))
    lora = {"adapter_config.json": b"{}", "adapter_model.bin": b"code that nobody runs"}
    _add(made, "lora-old", 10, pickle, lora, _PLAIN | {"library_name": "peft"})
    # What the hub says is no object, or nothing at all.
    _add(made, "odd-card", 15, Fate("refused", "front matter"), whole, extra={"cardData": ["x"]})
    tagless = _FINETUNE | {"base_model_relation": "quantized"}
    quantised = Fate("refused", "a quantised copy")
    _add(made, "tagless", 15, quantised, whole, tagless, extra={"tags": None})
    climbing = {"siblings": [{"rfilename": "../../x", "size": 1, "blobId": "0" * 40}]}
    # Never final by itself: a hub's listing is not the model's bytes. It waits and is asked again.
    outside = Fate("seen")
    _add(made, "climber", 10, outside, whole, extra=climbing)
    _add(made, "zz/deleted", 5, Fate("refused", "gone from the hub"), whole)
    _add(made, "zz/disabled", 5, Fate("refused", "disabled by the hub"), whole)


def _broken(
    made: World, whole: Mapping[str, bytes], weights: Mapping[str, torch.Tensor], scratch: Path
) -> None:
    """Set aside for what their weights' headers, or their weights, are."""
    norm = weights["model.norm.weight"]
    harms: dict[str, tuple[Content, str]] = {
        "shapes": (_packed({**weights, "model.norm.weight": norm[:7]}), "model.norm.weight"),
        "fewer": (
            _packed({n: w for n, w in weights.items() if n != "model.norm.weight"}),
            "model.norm.weight",
        ),
        "absurd": (struct.pack("<Q", 1 << 60) + whole["model.safetensors"][8:], "header"),
        "rubbish": (struct.pack("<Q", 10) + b"\xff" * 100, "header"),
        "cut": (whole["model.safetensors"][:-1000], "model.safetensors"),
        "overlap": (_overlapping(), "model.safetensors"),
        "nan": (_packed({**weights, "model.norm.weight": norm * torch.nan}), "model.norm.weight"),
    }
    for kind, (content, reason) in harms.items():
        files = {**whole, "model.safetensors": content}
        _add(made, kind, 3, Fate("quarantined", reason), files)
    million = {**whole, "model.safetensors": _million(scratch / "million.safetensors")}
    _add(made, "million", 1, Fate("quarantined", "header"), million)


def _overlapping() -> bytes:
    entry = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}
    header = json.dumps({"model.norm.weight": entry, "lm_head.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def _million(path: Path) -> Path:
    """A file whose header names a million empty tensors, over 100 MB of them."""
    entry = '"%s%07d":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}'
    lines = (entry % ("t" * 50, number) for number in range(_TENSORS))
    header = ("{" + ",".join(lines) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def _good(made: World, whole: Mapping[str, bytes], weights: Mapping[str, torch.Tensor]) -> None:
    """Admitted: six fine-tunes and three adapters, some of them uploaded more than once."""
    admitted = Fate("admitted")
    for name in PARENTS:
        made.repos[name] = _Stored(_tuned(name, whole), _FINETUNE)
        made.fates[name] = admitted
    for skill in _COPIED:
        files = _tuned(f"demo/{skill}", whole)
        names = _add(made, skill, _COPIES, None, files)
        made.groups.append(tuple(names))
    for number, name in enumerate(("zz/renamed-0", "zz/renamed-1")):
        own = {**whole, "model.safetensors": _packed(_noisy(weights, number))}
        made.repos[name] = _Stored(own, _FINETUNE)
        made.groups.append((name, name.replace("renamed", "called-now")))
    card = _PLAIN | {"base_model_relation": "adapter", "library_name": "peft"}
    for number in range(_ADAPTERS):
        made.groups.append(
            tuple(_add(made, f"lora-{number}", 2, None, _lora(weights, number), card))
        )


def _tuned(name: str, whole: Mapping[str, bytes]) -> dict[str, bytes]:
    files = _files(demo.HUB / name)
    return {**whole, **files, "model.safetensors": _packed(load(files["model.safetensors"]))}


def _lora(weights: Mapping[str, torch.Tensor], seed: int) -> dict[str, bytes]:
    """An adapter of rank 2 as PEFT saves it."""
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in sorted(n for n in weights if n.endswith("q_proj.weight")):
        module = "base_model.model." + name.removesuffix(".weight")
        out, into = weights[name].shape
        tensors[f"{module}.lora_A.weight"] = 0.05 * torch.randn(2, into, generator=noise)
        tensors[f"{module}.lora_B.weight"] = 0.05 * torch.randn(out, 2, generator=noise)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": demo.BASE,
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    files = {"adapter_config.json": json.dumps(config).encode()}
    return {**files, "adapter_model.safetensors": save(tensors, {"format": "pt"})}
