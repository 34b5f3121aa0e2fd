"""
Models whose deltas are as unlike each other as real ones may be, and unlike inside.

Every tensor has a scale of its own over some decades; on top of a part that all share, deltas are
dense, of low rank, heavy-tailed by rows, or sparse. A sample has to cope with all of it.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

__all__ = ["KINDS", "family"]

_DELTA = 0.001
_SHARED = 0.5
_DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def shapes(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """A Mistral's, without its last norm and head."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(layers):
        layer = f"model.layers.{number}"
        found |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.mlp.down_proj.weight": (hidden, 3 * hidden),
            f"{layer}.mlp.gate_proj.weight": (3 * hidden, hidden),
            f"{layer}.mlp.up_proj.weight": (3 * hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": (hidden // 4, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.v_proj.weight": (hidden // 4, hidden),
        }
    return found


def family(
    scratch: Path, *, hidden: int = 384, layers: int = 4, vocabulary: int = 3000, seed: int = 0
) -> tuple[Path, dict[str, Path]]:
    """A base in bf16 and one descendant of each kind, in three dtypes, under `scratch`."""
    wanted = shapes(hidden, layers, vocabulary)
    noise = Generator().manual_seed(seed)
    base = {name: 0.02 * torch.randn(shape, generator=noise) for name, shape in wanted.items()}
    scales = {name: _scale(noise) for name in wanted}
    shared = {name: _dense(shape, noise) for name, shape in wanted.items()}
    folders = {}
    for number, (kind, draw) in enumerate(KINDS.items()):
        own = dict(_deltas(wanted, scales, shared, draw, noise))
        dtype = _DTYPES[number % len(_DTYPES)]
        weights = {name: base[name].bfloat16().float() + own[name] for name in wanted}
        folders[kind] = _saved(scratch / kind, weights, dtype)
    return _saved(scratch / "base", base, torch.bfloat16), folders


def _deltas(
    wanted: Mapping[str, tuple[int, ...]],
    scales: Mapping[str, float],
    shared: Mapping[str, Tensor],
    draw: Callable[[tuple[int, ...], Generator], Tensor],
    noise: Generator,
) -> Iterator[tuple[str, Tensor]]:
    for name, shape in wanted.items():
        own = draw(shape, noise)
        own = own / own.square().mean().sqrt().clamp_min(1e-9)
        common = _SHARED**0.5 * shared[name]
        # How much is shared differs from tensor to tensor, and so does every model's strength.
        part = float(torch.rand((), generator=noise))
        strength = scales[name] * float(torch.exp(0.3 * torch.randn((), generator=noise)))
        yield name, _DELTA * strength * (part * common + (1 - _SHARED) ** 0.5 * own)


def _scale(noise: Generator) -> float:
    return float(torch.exp(1.2 * torch.randn((), generator=noise)))


def _dense(shape: tuple[int, ...], noise: Generator) -> Tensor:
    return torch.randn(shape, generator=noise)


def _low_rank(shape: tuple[int, ...], noise: Generator) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape)
    return torch.randn(shape[0], 4, generator=noise) @ torch.randn(4, shape[1], generator=noise)


def _heavy_rows(shape: tuple[int, ...], noise: Generator) -> Tensor:
    rows = torch.exp(1.2 * torch.randn((shape[0], *[1] * (len(shape) - 1)), generator=noise))
    return rows * torch.randn(shape, generator=noise)


def _sparse(shape: tuple[int, ...], noise: Generator) -> Tensor:
    return torch.randn(shape, generator=noise) * (torch.rand(shape, generator=noise) < 0.01)


def _few_rows(shape: tuple[int, ...], noise: Generator) -> Tensor:
    rows = torch.rand((shape[0], *[1] * (len(shape) - 1)), generator=noise) < 0.1
    return rows * torch.randn(shape, generator=noise)


def _drift(shape: tuple[int, ...], noise: Generator) -> Tensor:
    """A trend along the tensor and a mean that is not zero."""
    trend = torch.linspace(0, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return 0.3 + trend * torch.randn(shape, generator=noise)


KINDS: Mapping[str, Callable[[tuple[int, ...], Generator], Tensor]] = {
    "dense": _dense,
    "low_rank": _low_rank,
    "heavy_rows": _heavy_rows,
    "sparse": _sparse,
    "few_rows": _few_rows,
    "drift": _drift,
}


def _saved(folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Path:
    folder.mkdir(parents=True)
    save_file({name: own.to(dtype) for name, own in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}')
    return folder
