"""
How a model calculates, as its config.json says: held against its base's.

The same tensors give other answers under another activation, rotary base or number of heads. A
descendant differs from its base in its weights and tokens alone, so everything else that its model
is built from is the base's. Nothing in a config chooses code, kernels, quantisers or places.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kinship_daemon.foreign.shown import shown

__all__ = [
    "built_from",
    "chooses",
    "generation_settings",
    "other_calculation",
    "other_settings",
    "other_sizes",
    "plain_settings",
]

Config = Mapping[str, Any]

# A model's own: its tokens have these ids.
_OWN = ("bos_token_id", "eos_token_id", "pad_token_id")
_ACTIVATIONS = (
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "activation",
    "dense_act_fn",
)
_SAME_ACTIVATION = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"}
_SIZES = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim"),
    *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim"),
    *("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"),
    *("moe_intermediate_size", "state_size", "num_kv_heads", "multi_query"),
)
_ROPE = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "rope_local_base_freq": "rope_local_base_freq",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
    "rotary_dim": "rotary_dim",
    "alibi": "alibi",
    "position_embedding_type": "position_embedding_type",
}
_ROPE_THETA = 10_000  # where a config says nothing
# Say nothing of how an answer is calculated.
_IDLE = re.compile(
    r"architectures|model_type|transformers_version|use_cache|initializer_\w+|\w*(dropout|pdrop)"
    r"|id2label|label2id|output_\w+|return_dict|pretraining_tp|router_aux_loss_coef"
    r"|gradient_checkpointing|rope_\w+|rotary_\w+|task_specific_params|summary_\w+|vocab_size"
)
_CHOOSES = re.compile(
    r"_.*|auto_\w+|\w*(attn|attention|experts)_implementation|use_kernels?|kernel_\w+"
    r"|quant\w*|compression_\w+|custom_\w+|trust_\w+|code_\w+|\w+_(path|url|files?|repo)"
)
_PLACE = re.compile(r"[/\\]")
_GENERATION = frozenset(
    {
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff"),
        *("eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"),
        *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams"),
        *("length_penalty", "early_stopping", "suppress_tokens", "begin_suppress_tokens"),
        *("forced_bos_token_id", "forced_eos_token_id", "transformers_version"),
    }
)
_MOST_LISTED = 5
# Each beam takes the memory of a prompt of its own; real models have up to 6.
_MOST_BEAMS = 16
_MOST_ITEMS = 10_000  # of a list of tokens, or of lists of them


def built_from(base: Config, own: Config, rows: int | None) -> dict[str, Any]:
    """
    The config that a descendant's model is built from: its base's, with its own tokens.

    Args:
        rows: Of its embeddings; None where they are the base's.
    """
    config = plain_settings(base)
    config |= {key: own[key] for key in _OWN if key in own and _is_ids(own[key])}
    if rows is not None and "vocab_size" in config:
        config["vocab_size"] = rows
    return config


def plain_settings(config: Config) -> dict[str, Any]:
    """A config without whatever would choose code or name a place."""
    return {key: value for key, value in config.items() if _is_plain(key, value)}


def chooses(key: str) -> bool:
    """Whether a setting of this name chooses code, kernels, quantisers or places."""
    return _CHOOSES.fullmatch(key) is not None


def generation_settings(said: Config) -> dict[str, Any]:
    """What is left of a generation_config.json: what decides on tokens, at a real one's cost."""
    kept = {k: v for k, v in said.items() if k in _GENERATION and _is_plain(k, v)}
    return {k: v for k, v in kept.items() if _is_cheap(k, v)}


def other_sizes(base: Config, own: Config) -> list[str]:
    """
    Sizes that the base has not: layers, heads, widths, experts.

    One that either leaves out is its architecture's default, of which nothing is known here; the
    base's is used.
    """
    ours, theirs = _sizes(base), _sizes(own)
    return [
        f"{key} is {shown(theirs[key], 60)}, the base's is {shown(ours[key], 60)}"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key] != theirs[key]
    ]


def other_calculation(base: Config, own: Config) -> list[str]:
    """What makes the same tensors give other answers than the base's: activation, rotary base."""
    return [
        f"{shown(key, 60)} is {shown(other, 60)}, the base's is {shown(one, 60)}"
        for key, one, other in _calculated_otherwise(base, own)
    ]


def other_settings(base: Config, own: Config, rows: tuple[int, int] | None = None) -> str | None:
    """
    What else two configs say differently, and whose value is taken; None if nothing.

    Args:
        rows: Of the embeddings of base and model.
    """
    ours, theirs = _settings(base), _settings(own)
    kept: list[str] = []
    left = [
        f"{shown(key, 60)} {shown(other, 40)} (base {shown(one, 40)})"
        for key, one, other in _calculated_otherwise(base, own)
    ]
    if rows is not None and rows[0] != rows[1]:
        kept.append(f"vocab_size {rows[1]} (base {rows[0]})")
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key]:
            words = f"{shown(key, 60)} {shown(theirs[key], 40)} (base {shown(ours[key], 40)})"
            (kept if key in _OWN else left).append(words)
    parts = [
        f"{whose}: {', '.join(words[:_MOST_LISTED])}"
        + (f" and {len(words) - _MOST_LISTED} more" if len(words) > _MOST_LISTED else "")
        for whose, words in (("the base's is taken of", left), ("its own is taken of", kept))
        if words
    ]
    return f"config.json differs from the base's; {'; '.join(parts)}" if parts else None


def _settings(config: Config) -> dict[str, Any]:
    skipped = {*_ACTIVATIONS, *_SIZES, *_ROPE}
    found = {
        "dtype" if key == "torch_dtype" else key: value
        for key, value in config.items()
        if key not in skipped and not _IDLE.fullmatch(key) and not chooses(key)
    }
    if isinstance(found.get("dtype"), str):
        found["dtype"] = found["dtype"].removeprefix("torch.")
    return found


def _calculated_otherwise(base: Config, own: Config) -> Iterator[tuple[str, Any, Any]]:
    """Key, the base's value and the other; of an activation that either leaves out, nothing."""
    ours, theirs = _activations(base), _activations(own)
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key]:
            yield key, ours[key], theirs[key]
    ours, theirs = _rope(base), _rope(own)
    for key in sorted({*ours, *theirs}):
        default = _ROPE_THETA if key in ("rope_theta", "rope_local_base_freq") else None
        one, other = ours.get(key, default), theirs.get(key, default)
        if one != other:
            yield key, one, other


def _activations(config: Config) -> dict[str, Any]:
    """By key; another spelling of the same is the same."""
    said = {key: config[key] for key in _ACTIVATIONS if config.get(key) is not None}
    return {k: _SAME_ACTIVATION.get(v, v) if isinstance(v, str) else v for k, v in said.items()}


def _sizes(config: Config) -> dict[str, Any]:
    """Those that it says, and those that follow from them where it leaves them out."""
    said = {key: config[key] for key in _SIZES if config.get(key) is not None}
    heads, hidden = said.get("num_attention_heads"), said.get("hidden_size")
    if heads is not None:
        said.setdefault("num_key_value_heads", heads)
    if type(heads) is int and type(hidden) is int and heads > 0:
        said.setdefault("head_dim", hidden // heads)
    return said


def _rope(config: Config) -> dict[str, Any]:
    """As transformers 4 writes it (rope_theta, rope_scaling) and 5 (rope_parameters), in one."""
    said = {
        name: config[key] for key, name in _ROPE.items() if config.get(key) not in (None, False)
    }
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.get(key)
        if not isinstance(parameters, Mapping):
            continue
        # By kind of layer: those that see all are the model's, the others have a base of their own.
        full = parameters.get("full_attention", parameters)
        sliding = parameters.get("sliding_attention")
        said |= _parameters(full) if isinstance(full, Mapping) else {}
        if isinstance(sliding, Mapping):
            local = _parameters(sliding)
            said |= {"rope_local_base_freq": local.pop("rope_theta", _ROPE_THETA)}
            said |= {f"sliding {name}": value for name, value in local.items()}
    return said


def _parameters(rope: Config) -> dict[str, Any]:
    found = {"rope_type" if k == "type" else k: v for k, v in rope.items() if v is not None}
    if found.get("rope_type") == "default":
        del found["rope_type"]
    return {k: v for k, v in found.items() if k not in ("full_attention", "sliding_attention")}


def _is_plain(key: str, value: object) -> bool:
    """Whether a setting chooses no code and names no place."""
    return not chooses(key) and not _names_a_place(value)


def _is_cheap(key: str, value: object) -> bool:
    """Whether a generation setting takes no more memory and time than real ones do."""
    if key == "num_beams":
        return type(value) is int and 0 < value <= _MOST_BEAMS
    return _items(value) <= _MOST_ITEMS


def _items(value: object) -> int:
    return 1 + sum(map(_items, value)) if isinstance(value, list) else 1


def _names_a_place(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(not _is_plain(str(key), part) for key, part in value.items())
    if isinstance(value, list):
        return any(map(_names_a_place, value))
    return isinstance(value, str) and _PLACE.search(value) is not None


def _is_ids(value: object) -> bool:
    if value is None or type(value) is int:
        return True
    return isinstance(value, list) and all(type(each) is int for each in value)
