"""
Builders of tiny but real models for the tests.

A base is a `MistralForCausalLM` of about 30,000 parameters saved by transformers itself in bf16,
with a character-level fast tokenizer; a fine-tune is the base plus seeded normal noise. The same
arguments give the same bytes.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .,:;=+-?!\n"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = len(SPECIAL) + len(ALPHABET)


def tokenizer(folder: Path, *, chat_template: str | None = None) -> None:
    """A character-level fast tokenizer that adds no BOS, saved as transformers saves it."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *ALPHABET))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def base(
    folder: Path,
    seed: int = 0,
    *,
    shard_size: str | None = None,
    tied: bool = False,
    hidden: int = 32,
    layers: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    chat_template: str | None = None,
    **config: object,
) -> Path:
    """A base model in `folder`; `shard_size` as transformers takes it, such as "40KB"."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Wide enough that different models prefer different tokens.
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MistralForCausalLM(MistralConfig(**(settings | config))).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard_size or "5GB")
    tokenizer(folder, chat_template=chat_template)
    return folder


def finetune(
    base_folder: Path,
    folder: Path,
    seed: int,
    *,
    scale: float = 0.02,
    tensors: Iterable[str] | None = None,
    shard_size: str | None = None,
) -> Path:
    """
    The base plus normal noise of standard deviation `scale`, with the base's other files.

    Args:
        tensors: Names to change; the others stay exactly the base's. All when None.
    """
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype="auto")
    chosen = None if tensors is None else set(tensors)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            delta = torch.randn(weight.shape, generator=noise) * scale
            if chosen is None or name in chosen:
                weight.copy_((weight.float() + delta).to(weight.dtype))
    model.save_pretrained(folder, max_shard_size=shard_size or "5GB")
    for path in sorted(base_folder.iterdir()):
        if "safetensors" not in path.name and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, read the simple way."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def edit(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> Path:
    """Replace, add or (None) drop tensors of a single-file model in place."""
    path = folder / "model.safetensors"
    merged = {**load_file(path), **changes}
    kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
    save_file(kept, path, metadata={"format": "pt"})
    return folder


def repo(
    hub: Path, repo_id: str, source: Path | None = None, card: Mapping[str, object] | None = None
) -> Path:
    """
    A repo of a folder hub: `source`'s files under hub/org/name, and a README.md with front matter.

    Args:
        source: Copied; when None the folder holds the README alone.
        card: Front matter, such as {"base_model": "org/base", "license": "mit"}.
    """
    folder = hub / repo_id
    folder.mkdir(parents=True)
    if source is not None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    front = yaml.safe_dump(dict(card or {}), sort_keys=True)
    title = repo_id.rpartition("/")[2]
    (folder / "README.md").write_text(f"---\n{front}---\n# {title}\n", encoding="utf-8")
    return folder


def config(folder: Path, **changes: object) -> Path:
    """Change keys of a model's config.json."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder


def bare(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Weights and the least config that names an architecture: enough for the ledger."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}')
    return folder
