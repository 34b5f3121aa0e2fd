"""Tiny bases of every architecture that is tested, made by transformers itself."""

from pathlib import Path

import torch
import transformers

import tiny

# What tells each apart here: Llama and Mistral are plain; Qwen2 has attention biases and ties its
# embeddings; Qwen3 has norms of queries and keys; Gemma2 has four norms a layer, ties, soft caps.
ARCHITECTURES = (
    "MistralForCausalLM",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
)
_TIED = ("Qwen2ForCausalLM", "Gemma2ForCausalLM")


def base(
    architecture: str,
    folder: Path,
    seed: int = 0,
    *,
    shard_size: str | None = None,
    tied: bool | None = None,
    hidden: int = 32,
    layers: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    **config: object,
) -> Path:
    """
    A base model in `folder`, with `tiny`'s tokenizer; fine-tunes of it are made by tiny.finetune.

    Args:
        tied: Whether output and input embeddings are one; as usual for the architecture when None.
        config: Further settings of its transformers config.
    """
    settings = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 128,
        # Every second layer of Gemma2 has one.
        "sliding_window": 64 if architecture == "Gemma2ForCausalLM" else None,
        "tie_word_embeddings": architecture in _TIED if tied is None else tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    model_class = getattr(transformers, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(model_class.config_class(**(settings | config)))
        _fill_constants(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size or "5GB")
    tiny.tokenizer(folder)
    return folder


def _fill_constants(model: torch.nn.Module) -> None:
    """Trained biases and norms are not the zeros and ones they begin as."""
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape))
