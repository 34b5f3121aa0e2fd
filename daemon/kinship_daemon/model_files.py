"""The names of a model's files: known once, for what is fetched, hashed, read and published."""

from collections.abc import Iterable

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "CONFIG",
    "GENERATION",
    "INDEX",
    "MOST_SHARDS",
    "MOST_TEMPLATES",
    "SINGLE",
    "TEMPLATES",
    "TOKENIZERS",
    "has_tokenizer",
    "is_sidecar",
    "is_tokenizer_file",
    "most_bytes",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"

# Weight files of one model, each of which costs requests. The largest open models have some 200.
MOST_SHARDS = 1000

# Each is a vocabulary by itself; the first is preferred. BPE's vocab.json needs its merges too.
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_MERGES = "merges.txt"
_BESIDE_TOKENIZER = frozenset(
    {
        _MERGES,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
    }
)
TEMPLATES = "additional_chat_templates/"
MOST_TEMPLATES = 50

# Twice the largest known of each kind, or more.
_MOST_BYTES = {
    INDEX: 20_000_000,
    "tokenizer.json": 64_000_000,
    **dict.fromkeys(("vocab.json", "vocab.txt", _MERGES), 32_000_000),
    **dict.fromkeys(("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"), 16_000_000),
    "tokenizer_config.json": 20_000_000,
    "added_tokens.json": 4_000_000,
}
_MOST_OTHER_BYTES = 1_000_000


def has_tokenizer(names: Iterable[str]) -> bool:
    """Whether a tokenizer that transformers can load is among files of these names."""
    found = set(names)
    complete = (name for name in TOKENIZERS if name != "vocab.json" or _MERGES in found)
    return any(name in found for name in complete)


def is_tokenizer_file(name: str) -> bool:
    """Whether a file, named from the model's folder, makes its tokenizer or chat templates."""
    folder, slash, file = name.partition("/")
    if slash:
        plain = "/" not in file and not file.startswith(".")
        return folder + slash == TEMPLATES and plain and file.endswith(".jinja")
    return name in TOKENIZERS or name in _BESIDE_TOKENIZER


def is_sidecar(name: str) -> bool:
    """Whether a file goes along with a model's weights or its adapter."""
    return name in {CONFIG, GENERATION, ADAPTER_CONFIG} or is_tokenizer_file(name)


def most_bytes(name: str) -> int:
    """How large a file beside the weights may be to be looked at."""
    return _MOST_BYTES.get(name, _MOST_OTHER_BYTES)
