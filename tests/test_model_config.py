"""What a config says of how its model calculates: the base's holds, and another is refused."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

import architectures
import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.weights.assembly import Assembly
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.fit import refuse_other_calculation
from kinship_daemon.weights.live_model import live_model
from kinship_daemon.weights.materialise import leaf_assembly, write
from kinship_daemon.weights.model_config import (
    built_from,
    generation_settings,
    other_calculation,
    other_settings,
    other_sizes,
)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
}
SCALED = {"rope_type": "linear", "factor": 4.0}


def two(place, own):
    """A base, and a model of its weights whose config says something else."""
    for folder, config in (("one", {}), ("two", own)):
        tiny.bare(place / folder, {"model.norm.weight": torch.ones(4)})
        (place / folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    return Checkpoint.open(place / "one"), Checkpoint.open(place / "two")


@pytest.mark.parametrize(
    ("base", "own"),
    [
        ({"rope_theta": 10000.0}, {}),
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 500000, "rope_type": "default"}}),
        (
            {"rope_scaling": None},
            {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4}},
            {"rope_parameters": {**SCALED, "rope_theta": 1e6}},
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rope_scaling": SCALED},
            {
                "rope_parameters": {
                    "full_attention": {**SCALED, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                }
            },
        ),
        ({"rotary_pct": 0.25, "rotary_emb_base": 10000}, {"partial_rotary_factor": 0.25}),
        ({}, {"num_key_value_heads": 8, "head_dim": 8}),
        ({}, {"hidden_act": "swish"}),
        ({}, {"hidden_act": None}),
        ({"sliding_window": 64}, {"sliding_window": None, "rms_norm_eps": 1e-6, "use_cache": 0}),
    ],
)
def test_two_ways_to_say_the_same_are_the_same(base, own):
    own = {**LLAMA, **own}
    own = {key: value for key, value in own.items() if value is not None}
    for compare in (other_calculation, other_sizes):
        assert compare({**LLAMA, **base}, own) == compare(own, {**LLAMA, **base}) == []


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"rope_theta": 1e6}, "rope_theta is 1000000.0, the base's is 10000"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta is 1000000.0"),
        ({"rope_scaling": SCALED}, "factor is 4.0, the base's is None"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, "rope_type is dynamic"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, the base's is silu"),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\]"),
    ],
)
def test_what_calculates_otherwise_is_refused_unless_it_is_allowed(tmp_path, own, said):
    base, other = two(tmp_path, own)
    refuse_other_calculation(base, base)
    with pytest.raises(ModelError, match=f"calculates otherwise: .*{said}") as refused:
        refuse_other_calculation(base, other)
    assert refused.value.setting == "triage.allow_other_calculation"
    found = descend(base, other.path)  # whoever allows it, is told
    assert "the base's is taken of: " in found.differs
    assert said.split(" ")[0] in found.differs


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, the base's is 4"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2, the base's is 8"),
        ({"head_dim": 1 << 40}, "head_dim is 1099511627776, the base's is 8"),
        ({"hidden_size": "64"}, "hidden_size is 64"),
    ],
)
def test_other_sizes_are_refused_from_the_config(tmp_path, own, said):
    base, other = two(tmp_path, own)
    descend(base, base.path)
    with pytest.raises(ModelError, match=f"has other sizes: .*{said}") as refused:
        descend(base, other.path)
    assert refused.value.cause == "model"


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
def test_a_config_as_transformers_4_wrote_it_is_that_of_5(tmp_path, architecture):
    base = architectures.base(architecture, tmp_path / "base")
    new = json.loads((base / "config.json").read_text())
    old = dict(new)
    rope = old.pop("rope_parameters", None) or {}
    old |= {"rope_theta": rope.get("rope_theta", 10000.0), "rope_scaling": None}
    assert other_calculation(new, old) == other_calculation(old, new) == []
    assert other_settings(new, old) is None


def test_what_else_differs_is_listed_with_whose_value_is_taken():
    own = LLAMA | {"rms_norm_eps": 1e-6, "torch_dtype": "float16", "bos_token_id": 7, "x_y": "z"}
    own |= {"max_position_embeddings": 8192, "transformers_version": "4.1"}
    assert other_settings(LLAMA, own, (100, 101)) == (
        "config.json differs from the base's; the base's is taken of: dtype float16 "
        "(base bfloat16), max_position_embeddings 8192 (base 4096), rms_norm_eps 1e-06 "
        "(base 1e-05); its own is taken of: vocab_size 101 (base 100), bos_token_id 7 (base 1)"
    )
    assert other_settings(LLAMA, dict(LLAMA), (100, 100)) is None


REACHING = {
    "attn_implementation": "kernels-community/flash",
    "_attn_implementation": "eager",
    "_attn_implementation_internal": "evil/kernels",
    "experts_implementation": "evil",
    "use_kernels": True,
    "kernel_config": {"a": "evil/kernel"},
    "quantization_config": {"quant_method": "evil"},
    "auto_map": {"AutoModel": "evil.Model"},
    "_name_or_path": "/home/evil",
    "tokenizer_file": "evil",
    "custom_pipelines": {"x": {}},
    "trust_remote_code": True,
    "image": "https://evil.example/x",
    "nested": {"deep": [{"base": "C:\\\\evil"}]},
}


def test_of_a_model_only_its_tokens_are_taken_and_of_nobody_code_or_places():
    base = {**LLAMA, "logit_scale": 0.5, **REACHING}
    own = {**LLAMA, "bos_token_id": 5, "eos_token_id": [6, 7], "logit_scale": 2.0, "new": 1}
    found = built_from(base, own | REACHING, 120)
    assert found == LLAMA | {
        "logit_scale": 0.5,
        "vocab_size": 120,
        "bos_token_id": 5,
        "eos_token_id": [6, 7],
    }
    odd = {"bos_token_id": "evil", "eos_token_id": [1, "x"], "pad_token_id": {"a": 1}}
    assert built_from(LLAMA, odd, None) == LLAMA


def test_generation_settings_cost_no_more_than_real_ones():
    said = {"num_beams": 4, "suppress_tokens": [1, 2], "bad_words_ids": [[1], [2, 3]]}
    assert generation_settings(said) == said
    for value in (100_000, 0, -1, 2.5, "4", True, None, [4]):
        assert generation_settings({"num_beams": value}) == {}
    assert generation_settings({"bad_words_ids": [[1, 2]] * 5000}) == {}


def test_generation_settings_decide_on_tokens_alone():
    kept = {"do_sample": True, "temperature": 0.6, "eos_token_id": [1, 2], "max_new_tokens": 3}
    said = {**kept, **REACHING, "cache_implementation": "quantized", "compile_config": {"mode": 1}}
    assert generation_settings(said) == kept


def test_nothing_of_a_strangers_config_is_published_or_built_from(tmp_path, tiny_base):
    leaf = tiny.finetune(tiny_base, tmp_path / "leaf", 1)
    tiny.config(leaf, **REACHING, bos_token_id=3, rms_norm_eps=0.5)
    generation = json.loads((leaf / "generation_config.json").read_text())
    reaching = {"cache_implementation": "quantized", "auto_map": "evil"}
    (leaf / "generation_config.json").write_text(json.dumps(generation | reaching))
    table = tuple((name, (0.0, 1.0)) for name in Checkpoint.open(tiny_base).tensors)
    child = Assembly("x", tiny_base, (leaf,), table, leaf)
    base = json.loads((tiny_base / "config.json").read_text())
    for number, assembly in enumerate((child, leaf_assembly(leaf, "x", tiny_base))):
        write(assembly, out := tmp_path / str(number))
        assert json.loads((out / "config.json").read_text()) == base | {"bos_token_id": 3}
        text = "".join(path.read_text() for path in out.glob("*.json"))
        assert "evil" not in text
        assert "quantized" not in text
        live = live_model(assembly, dtype=torch.float32, device="cpu")
        assert live.config.rms_norm_eps == base["rms_norm_eps"]
        assert "evil" not in str(live.config)
        assert AutoConfig.from_pretrained(out).bos_token_id == 3


def test_a_model_by_hand_has_its_own_config_without_code_and_places(tmp_path, tiny_base):
    own = tiny.config(shutil.copytree(tiny_base, tmp_path / "own"), **REACHING, rms_norm_eps=0.5)
    write(leaf_assembly(own, "x"), tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["rms_norm_eps"] == 0.5
    assert not said.keys() & REACHING.keys()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
keys = st.sampled_from(
    [*LLAMA, "rope_theta", "rope_scaling", "rope_parameters", "head_dim", "pad_token_id"]
)


@given(st.dictionaries(keys | st.text(max_size=8), values), st.dictionaries(keys, values))
def test_any_json_is_compared(own, base):
    lines = [*other_calculation(base, own), *other_sizes(base, own)]
    assert all("\n" not in line for line in lines)
    assert "\n" not in (other_settings(base, own) or "")
    assert json.dumps(built_from(base, own, 3))
    assert other_calculation(LLAMA, LLAMA | {"hidden_act": "silu"}) == []
