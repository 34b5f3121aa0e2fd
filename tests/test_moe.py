"""Mixture-of-experts bases, whose experts transformers 5 keeps fused and checkpoints keep apart."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.live_model import live_model, load_into
from kinship_daemon.weights.materialise import Assembly, leaf_assembly
from kinship_daemon.weights.places import places

# Every way in which transformers fuses experts of a causal language model that people merge.
KINDS = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
    },
    "olmoe": {"num_experts": 3, "num_experts_per_tok": 2},
}


def moe(folder, kind, seed):
    config = AutoConfig.for_model(
        kind,
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **KINDS[kind],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 13)[None]).logits


@pytest.fixture(params=sorted(KINDS))
def two(request, tmp_path):
    return [moe(tmp_path / name, request.param, seed) for seed, name in enumerate(("a", "b"))]


def test_a_live_mixture_of_experts_answers_as_transformers_own(two):
    one, other = two
    assert any(".experts.2." in name for name in Checkpoint.open(one).tensors)
    live = live_model(leaf_assembly(one, "a"), dtype=torch.float32, device="cpu")
    first = logits(live)
    assert torch.equal(first, logits(AutoModelForCausalLM.from_pretrained(one)))
    load_into(live, leaf_assembly(other, "b"), device="cpu")
    assert torch.equal(logits(live), logits(AutoModelForCausalLM.from_pretrained(other)))
    load_into(live, leaf_assembly(one, "a"), device="cpu")
    assert torch.equal(logits(live), first)


def test_a_merge_of_experts_is_the_merge_of_each(two):
    one, other = two
    table = tuple((name, (0.25, 0.75)) for name in Checkpoint.open(one).tensors)
    assembly = Assembly("child", one, (other,), table, one)
    live = live_model(assembly, dtype=torch.float32, device="cpu")
    first, second = tiny.tensors(one), tiny.tensors(other)
    found = places(live)
    assert sorted(found) == sorted(first)
    for name, place in found.items():
        assert torch.allclose(place, 0.25 * first[name] + 0.75 * second[name], atol=1e-6), name


def test_a_mixture_of_experts_that_lacks_an_expert_is_named(two):
    folder = two[0]
    lost = next(n for n in sorted(tiny.tensors(folder)) if ".experts.1." in n)
    tiny.edit(folder, {lost: None})
    with pytest.raises(ModelError, match=lost):
        live_model(leaf_assembly(folder, "a"), dtype=torch.float32, device="cpu")
