"""Real models' differences: what a descendant looks like through its base, whatever its files."""

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import architectures
import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.live_model import live_model, load_into
from kinship_daemon.weights.materialise import Assembly, leaf_assembly, write


def average(base, *leaves) -> Assembly:
    """The mean of some leaves."""
    row = (0.0, *(1 / len(leaves) for _ in leaves))
    table = tuple((name, row) for name in Checkpoint.open(base).tensors)
    return Assembly("x", base, leaves, table, leaves[0])


def test_a_fine_tune_is_its_own_tensors(tiny_base, tiny_finetunes):
    for folder in tiny_finetunes[:2]:
        leaf = descend(Checkpoint.open(tiny_base), folder)
        for name, tensor in tiny.tensors(folder).items():
            assert torch.equal(leaf.content(name), tensor)
        assert leaf.vocabulary is None
        assert leaf.files == tuple(sorted(path.name for path in folder.glob("*.safetensors")))
        assert leaf.nbytes == 2 * leaf.parameters == Checkpoint.open(folder).nbytes


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
def test_dtypes_and_shards_mix(tmp_path, architecture):
    base = architectures.base(architecture, tmp_path / "base", dtype=torch.bfloat16)
    leaves = []
    for seed, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32), start=1):
        folder = tiny.finetune(base, tmp_path / str(seed), seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        shutil.rmtree(folder)
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        model.save_pretrained(folder, max_shard_size="30KB" if seed == 2 else "5GB")
        leaves.append(folder)
    write(average(base, *leaves), tmp_path / "out", dtype=torch.float32)
    found = tiny.tensors(tmp_path / "out")
    own = [tiny.tensors(folder) for folder in leaves]
    assert len({tensors["model.norm.weight"].dtype for tensors in own}) == 3
    for name, tensor in found.items():
        exact = sum(tensors[name].double() for tensors in own) / 3
        assert torch.allclose(tensor.double(), exact, rtol=1e-6, atol=1e-7)


def test_old_buffers_hinder_neither_comparing_nor_loading(tmp_path):
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=16, n_embd=32, n_layer=1, n_head=4)
    base, leaf = tmp_path / "base", tmp_path / "leaf"
    for seed, folder in enumerate((base, leaf)):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder)
        tiny.tokenizer(folder)
    mask = torch.ones(16, 16, dtype=torch.bool).tril()[None, None]
    buffers = {"attn.bias": mask, "attn.masked_bias": torch.tensor(-1e4)}
    tiny.edit(leaf, {f"transformer.h.0.{name}": tensor for name, tensor in buffers.items()})
    descend(Checkpoint.open(base), leaf)
    descend(Checkpoint.open(leaf), base)
    live = live_model(average(base, leaf), dtype=torch.float32, device="cpu")
    expected = GPT2LMHeadModel.from_pretrained(leaf)
    tokens = torch.tensor([[4, 9, 23]])
    with torch.no_grad():
        assert torch.equal(live(tokens).logits, expected(tokens).logits)


def test_a_buffer_that_the_model_keeps_need_not_be_in_the_file(tmp_path, tiny_base):
    live = live_model(leaf_assembly(tiny_base, "b"), dtype=torch.bfloat16, device="cpu")
    live.model.register_buffer("position_ids", torch.arange(8))
    live.model.layers[0].register_buffer("inv_freq", torch.ones(4))

    load_into(live, leaf_assembly(tiny_base, "b"), device="cpu")
    assert live.model.position_ids.tolist() == list(range(8))
    assert live.model.layers[0].inv_freq.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("said", ["both", "neither"])
def test_a_second_copy_of_tied_embeddings_is_left_out(tmp_path, said):
    """Gemma2 ties by default, and its configs as a rule do not say so."""
    base = architectures.base("Gemma2ForCausalLM", tmp_path / "base")
    leaf = tiny.finetune(base, tmp_path / "leaf", 1)
    if said == "neither":
        for folder in (base, leaf):
            path = folder / "config.json"
            config = json.loads(path.read_text())
            config.pop("tie_word_embeddings", None)
            path.write_text(json.dumps(config))
    tiny.edit(leaf, {"lm_head.weight": tiny.tensors(leaf)["model.embed_tokens.weight"].clone()})
    found = descend(Checkpoint.open(base), leaf)
    assert "lm_head.weight" not in found.contents
    assert found.parameters == Checkpoint.open(base).parameters
    live = live_model(average(base, leaf), dtype=torch.bfloat16, device="cpu")
    expected = AutoModelForCausalLM.from_pretrained(leaf)
    tokens = torch.tensor([[4, 9, 23]])
    with torch.no_grad():
        assert torch.equal(live(tokens).logits, expected(tokens).logits)


def test_tied_and_untied_do_not_mix(tmp_path):
    tied = architectures.base("Qwen2ForCausalLM", tmp_path / "tied")
    untied = architectures.base("Qwen2ForCausalLM", tmp_path / "untied", tied=False)
    with pytest.raises(ModelError, match="these cannot be merged"):
        descend(Checkpoint.open(tied), untied)
    with pytest.raises(ModelError, match="these cannot be merged"):
        descend(Checkpoint.open(untied), tied)


def test_three_differences_are_named(tmp_path, tiny_base):
    deep = tiny.base(tmp_path / "deep", layers=3)
    with pytest.raises(ModelError, match="num_hidden_layers is 3, the base's is 2"):
        descend(Checkpoint.open(tiny_base), deep)
    tiny.config(deep, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"input_layernorm\.weight is not in the base; .* and 6 m"):
        descend(Checkpoint.open(tiny_base), deep)


def gpt2(folder, seed, **config):
    settings = {"vocab_size": tiny.VOCABULARY, "n_positions": 16, "n_embd": 32, "n_layer": 2}
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(**settings, n_head=4, **config)).save_pretrained(folder)
    tiny.tokenizer(folder)
    return folder


def without_prefix(folder):
    """As GPT-2's own file is."""
    own = tiny.tensors(folder)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in own.items()}
    tiny.edit(folder, {**dict.fromkeys(own), **bare})
    return folder


@pytest.mark.parametrize("bare", ["base", "leaf", "both"])
def test_names_with_the_models_prefix_and_without_are_the_same(tmp_path, bare):
    base, leaf = gpt2(tmp_path / "base", 0), gpt2(tmp_path / "leaf", 1)
    expected = GPT2LMHeadModel.from_pretrained(leaf)
    own = tiny.tensors(leaf)
    for folder in (base, leaf):
        if bare in ("both", folder.name):
            without_prefix(folder)
    opened = Checkpoint.open(base)
    found = descend(opened, leaf)
    assert sorted(found.contents) == sorted(opened.tensors)
    for name in opened.tensors:
        assert torch.equal(
            found.content(name), own["transformer." + name.removeprefix("transformer.")]
        )
    live = live_model(average(base, leaf), dtype=torch.float32, device="cpu")
    write(average(base, leaf), tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.tensor([[4, 9, 23]])
    with torch.no_grad():
        assert torch.equal(live(tokens).logits, expected(tokens).logits)
        assert torch.equal(read(tokens).logits, expected(tokens).logits)


def test_an_adapter_names_modules_with_the_prefix_that_its_base_may_lack(tmp_path):
    base, folder = gpt2(tmp_path / "base", 0), tmp_path / "lora"
    model = GPT2LMHeadModel.from_pretrained(base)
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    tuned = peft.get_peft_model(model, settings)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tuned.save_pretrained(folder)
    found = descend(Checkpoint.open(without_prefix(base)), folder)
    assert sorted(found.contents) == ["h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"]
    live = live_model(leaf_assembly(folder, "x", base), dtype=torch.float32, device="cpu")
    tokens = torch.tensor([[4, 9, 23]])
    with torch.no_grad():
        expected = tuned.eval()(tokens).logits
        assert torch.allclose(live(tokens).logits, expected, atol=1e-5)


def test_a_tensor_under_both_names_is_refused(tmp_path):
    base, leaf = gpt2(tmp_path / "base", 0), gpt2(tmp_path / "leaf", 1)
    tiny.edit(leaf, {"h.0.ln_1.bias": torch.zeros(32)})
    with pytest.raises(ModelError, match=r"h\.0\.ln_1\.bias is not in the base"):
        descend(Checkpoint.open(base), leaf)
    with pytest.raises(ModelError, match=r"h\.0\.ln_1\.bias"):
        descend(Checkpoint.open(without_prefix(base)), leaf)


def test_an_untied_fine_tune_without_a_head_is_refused(tmp_path):
    base = architectures.base("Qwen2ForCausalLM", tmp_path / "base")
    leaf = tiny.config(tiny.finetune(base, tmp_path / "leaf", 1), tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"are not tied, as the base's are, but it has no lm_head"):
        descend(Checkpoint.open(base), leaf)
