"""
Mistrals of any size made on the spot: a base and its fine-tunes, in bf16 and two shards.

The base is normal noise; a fine-tune is the base plus noise, part of which all share, so that
kinships are about those of real fine-tunes. The noise is a pool of random numbers used over and
over: drawing billions of them would take longer than all measurements. The same arguments give
the same bytes.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.tiny import tokenizer
from torch import Tensor
from transformers import MistralConfig

__all__ = ["Family", "config", "nbytes", "warm"]

# Elements of the pool. Odd steps through it set tensors and layers apart.
_POOL = 1 << 22
_STEP = 1_000_003
_BASE_DEVIATION = 0.02
_DELTA_DEVIATION = 0.001
# The share of a delta's variance that all fine-tunes have in common: their kinship.
_SHARED = 0.6
_SHARDS = 2


def config(parameters: float) -> MistralConfig:
    """Mistral-7B's proportions at about `parameters`; the vocabulary shrinks below half a G."""
    hidden = max(128, round(4096 * (parameters / 7.24e9) ** (1 / 3) / 128) * 128)
    vocabulary = 32000 if parameters >= 5e8 else 8 * hidden
    heads = max(4, hidden // 128)
    layer = hidden * (2 * hidden + 2 * hidden // 4 + 3 * 7 * hidden // 2)
    layers = max(1, round((parameters - 2 * vocabulary * hidden) / layer))
    return MistralConfig(
        architectures=["MistralForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=7 * hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        sliding_window=None,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )


def shapes(settings: MistralConfig) -> dict[str, tuple[int, ...]]:
    """The model's tensors, in the order of the shards."""
    hidden, inner = settings.hidden_size, settings.intermediate_size
    narrow = hidden // settings.num_attention_heads * settings.num_key_value_heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (settings.vocab_size, hidden)}
    for index in range(settings.num_hidden_layers):
        layer = f"model.layers.{index}"
        found |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.k_proj.weight": (narrow, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.v_proj.weight": (narrow, hidden),
        }
    found["model.norm.weight"] = (hidden,)
    found["lm_head.weight"] = (settings.vocab_size, hidden)
    return found


def nbytes(parameters: float) -> int:
    """On disk, of one model of about that size."""
    return 2 * sum(torch.Size(shape).numel() for shape in shapes(config(parameters)).values())


@dataclass(frozen=True)
class Family:
    """
    A base of about `parameters` and its fine-tunes, made under `folder` when first asked for.

    Attributes:
        folder: Kept between runs when the user names it: what is there is used again.
    """

    folder: Path
    parameters: float

    @property
    def base(self) -> Path:
        return self._made("base", lambda folder: _write_base(folder, config(self.parameters)))

    def leaf(self, index: int) -> Path:
        base = self.base
        return self._made(f"leaf-{index}", lambda folder: _write_leaf(folder, base, index))

    def leaves(self, count: int) -> list[Path]:
        return [self.leaf(index) for index in range(count)]

    def holds(self, count: int) -> bool:
        """Whether so many fine-tunes have been made already."""
        return all(self._folder(f"leaf-{index}").exists() for index in range(count))

    def _folder(self, name: str) -> Path:
        # No "+" in it: in a recipe that is an adapter.
        return self.folder / f"{self.parameters:.0f}" / name

    def _made(self, name: str, write: Callable[[Path], None]) -> Path:
        folder = self._folder(name)
        if not folder.exists():
            unfinished = folder.with_name(f"{name}.part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write(unfinished)
            unfinished.rename(folder)
        return folder


def warm(folders: Iterable[Path]) -> int:
    """Read the weights once, so that they are in the page cache; their bytes."""
    total, buffer = 0, bytearray(1 << 24)
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
    return total


def _pool(seed: int) -> Tensor:
    """(_POOL,) float32, standard normal."""
    return torch.randn(_POOL, generator=torch.Generator().manual_seed(seed))


def _add_noise(flat: Tensor, pool: Tensor, offset: int) -> Tensor:
    """`flat` (any float dtype) plus the pool from `offset` on, again and again, as bf16."""
    made = torch.empty(flat.numel(), dtype=torch.bfloat16)
    begin = 0
    while begin < flat.numel():
        start = (offset + begin) % _POOL
        length = min(_POOL - start, flat.numel() - begin)
        end = begin + length
        made[begin:end] = flat[begin:end] + pool[start : start + length]
        begin = end
    return made


def _write_base(folder: Path, settings: MistralConfig) -> None:
    settings.save_pretrained(folder)
    tokenizer(folder)
    pool, wanted = _pool(0) * _BASE_DEVIATION, shapes(settings)
    names = list(wanted)
    middle = len(names) // _SHARDS
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:middle], names[middle:]), start=1):
        file = f"model-{number:05}-of-{_SHARDS:05}.safetensors"
        tensors = {}
        for name in part:
            # Norms are about 1 in trained models.
            start = torch.full((), 1.0 if len(wanted[name]) == 1 else 0.0)
            flat = start.expand(torch.Size(wanted[name]).numel())
            made = _add_noise(flat, pool, names.index(name) * _STEP)
            tensors[name] = made.view(wanted[name])
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = 2 * sum(torch.Size(shape).numel() for shape in wanted.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_leaf(folder: Path, base: Path, index: int) -> None:
    own = _pool(2 + index) * (1 - _SHARED) ** 0.5
    pool = (_pool(1) * _SHARED**0.5 + own) * _DELTA_DEVIATION
    position = 0
    for path in sorted(base.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
            continue
        tensors = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                tensor = file.get_tensor(name)
                # Another step than the base's, so that deltas are unrelated to it.
                made = _add_noise(tensor.reshape(-1), pool, position * (_STEP + 2))
                tensors[name] = made.view(tensor.shape)
                position += 1
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
