"""Adapters: what PEFT makes of one on its base is what we make of it, or it is refused."""

import json
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import architectures
import tiny
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights.adapter import refuse_other_base
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import LowRank, descend
from kinship_daemon.weights.live_model import live_model
from kinship_daemon.weights.materialise import Assembly, leaf_assembly, write

CPU = torch.device("cpu")
ATTENTION = ["q_proj", "v_proj"]
EMBEDDINGS = "model.embed_tokens.weight"


def adapter(base: Path, folder: Path, seed=1, *, merge=False, grow=0, **lora) -> dict:
    """A random adapter saved by peft, and the tensors of its own `merge_and_unload` if wanted."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    if grow:
        model.resize_token_embeddings(tiny.VOCABULARY + grow, mean_resizing=False)
    settings = {"r": 4, "lora_alpha": 10, "target_modules": ATTENTION} | lora
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
    tuned.save_pretrained(folder)
    if not merge:
        return {}
    return {name: t.clone() for name, t in tuned.merge_and_unload().state_dict().items()}


def made(assembly: Assembly, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """The assembly's tensors."""
    sources = assembly.open()
    return {
        info.name: torch.cat(list(sources.blocks(info.name, dtype, CPU))).view(info.shape)
        for info in sources.tensors
    }


def rewrite(folder: Path, change) -> Path:
    """Change names or tensors of an adapter; `change(name, tensor)` gives None to drop it."""
    path = folder / "adapter_model.safetensors"
    changed = [change(name, tensor) for name, tensor in load_file(path).items()]
    save_file(dict(pair for pair in changed if pair), path, metadata={"format": "pt"})
    return folder


def settings(folder: Path, **changes) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def bases(scratch):
    """Bases by name: fp32, so that nothing but our own arithmetic differs from peft's."""
    biased = tiny.base(scratch / "biased", dtype=torch.float32)
    return {
        "mistral": biased,
        "qwen2": architectures.base("Qwen2ForCausalLM", scratch / "qwen2", dtype=torch.float32),
        "bf16": tiny.base(scratch / "bf16"),
    }


CASES = {
    "plain": ("mistral", {}),
    "rank-stabilised": ("mistral", {"use_rslora": True}),
    "patterns": (
        "mistral",
        {
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 3},
            "alpha_pattern": {r"model\.layers\.1\..*": 7},
        },
    ),
    "all linear": ("mistral", {"target_modules": "all-linear"}),
    "head": ("mistral", {"target_modules": ["lm_head", "down_proj"]}),
    "embeddings": ("mistral", {"target_modules": ["embed_tokens", "q_proj"]}),
    "whole modules": ("mistral", {"modules_to_save": ["lm_head", "input_layernorm"]}),
    "all biases": ("qwen2", {"bias": "all"}),
    "its own biases": ("qwen2", {"bias": "lora_only"}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_what_peft_makes_of_it(tmp_path, bases, case):
    base, lora = bases[CASES[case][0]], CASES[case][1]
    expected = adapter(base, tmp_path / "a", merge=True, **lora)
    found = made(leaf_assembly(tmp_path / "a", "a", base))
    changed = [n for n, t in tiny.tensors(base).items() if not torch.equal(t, expected[n])]
    assert changed
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=1e-6, atol=1e-6), name


def test_on_a_bf16_base_only_the_rounding_differs(tmp_path, bases):
    """peft rounds the delta to bf16 before it adds it; we round the sum, once."""
    base = bases["bf16"]
    expected = adapter(base, tmp_path / "a", merge=True)
    found = made(leaf_assembly(tmp_path / "a", "a", base), torch.bfloat16)
    for name, tensor in found.items():
        near, own = expected[name].double(), tiny.tensors(base)[name].double()
        delta = (near - own).abs()
        allowed = torch.finfo(torch.bfloat16).eps * (near.abs() + delta) + 1e-9
        assert bool(((tensor.double() - near).abs() <= allowed).all()), name


def test_a_transposed_module_is_turned(tmp_path):
    """GPT-2 keeps its matrices as (in, out); attn.c_proj is square, so only settings tell."""
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tiny.tokenizer(tmp_path / "base")
    lora = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    expected = adapter(tmp_path / "base", tmp_path / "a", merge=True, **lora)
    for name, tensor in made(leaf_assembly(tmp_path / "a", "a", tmp_path / "base")).items():
        assert torch.allclose(tensor, expected[name], rtol=1e-6, atol=1e-6), name


def test_the_delta_stays_low_rank_and_the_rest_is_the_bases(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a", r=4, lora_alpha=10)
    leaf = descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")
    delta = leaf.content("model.layers.0.self_attn.v_proj.weight")
    assert isinstance(delta, LowRank)
    assert (delta.up.shape, delta.down.shape) == ((16, 4), (4, 32))
    assert (delta.up.dtype, delta.down.dtype) == (torch.float32, torch.float32)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    b = tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
    assert torch.equal(delta.up, b * 2.5)
    assert leaf.content("model.norm.weight") is None
    assert leaf.files == ("adapter_config.json", "adapter_model.safetensors")
    assert leaf.parameters == sum(t.numel() for t in tensors.values())
    assert leaf.nbytes == 4 * leaf.parameters


def test_untouched_embeddings_that_peft_saved_are_low_rank_too(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a", target_modules=["embed_tokens"])
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert any(name.endswith("embed_tokens.base_layer.weight") for name in tensors)
    leaf = descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")
    assert isinstance(leaf.content("model.embed_tokens.weight"), LowRank)


def test_names_with_the_adapters_own_name_are_known(tmp_path, bases):
    expected = adapter(bases["mistral"], tmp_path / "a", merge=True, modules_to_save=["lm_head"])
    rewrite(
        tmp_path / "a",
        lambda name, tensor: (
            re.sub(r"(lora_[AB])", r"\1.default", name).replace(
                "lm_head.weight", "lm_head.modules_to_save.default.weight"
            ),
            tensor,
        ),
    )
    for name, tensor in made(leaf_assembly(tmp_path / "a", "a", bases["mistral"])).items():
        assert torch.allclose(tensor, expected[name], rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("block", [None, 100])
def test_adapters_and_fine_tunes_are_summed_together(tmp_path, bases, block, monkeypatch):
    base = bases["mistral"]
    if block:
        steps = {"cpu": (4 * block, block)}
        monkeypatch.setattr("kinship_daemon.weights.assembly._STEPS", steps)
    one = adapter(base, tmp_path / "a", 1, merge=True)
    two = adapter(base, tmp_path / "b", 2, merge=True, target_modules="all-linear")
    full = tiny.finetune(base, tmp_path / "c", 3)
    names = Checkpoint.open(base).tensors
    table = tuple((name, (0.1, 0.2, -0.3, 0.7)) for name in names)
    leaves = (tmp_path / "a", tmp_path / "b", full)
    found = made(Assembly("x", base, leaves, table, full))
    b, c = tiny.tensors(base), tiny.tensors(full)
    for name, tensor in found.items():
        parts = (b[name], one[name], two[name], c[name])
        exact = sum(w * t.double() for w, t in zip((0.1, 0.2, -0.3, 0.7), parts, strict=True))
        assert torch.allclose(tensor.double(), exact, rtol=1e-6, atol=1e-6), name


def test_where_an_adapter_changes_nothing_the_bases_tensor_is_handed_on(tmp_path, bases):
    adapter(bases["bf16"], tmp_path / "a", target_modules=["q_proj"])
    write(leaf_assembly(tmp_path / "a", "a", bases["bf16"]), tmp_path / "out")
    before, after = tiny.tensors(bases["bf16"]), tiny.tensors(tmp_path / "out")
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == [name for name in before if "q_proj" not in name]


def test_an_adapter_is_published_with_its_bases_config_and_tokenizer(tmp_path, bases):
    base = bases["mistral"]
    expected = adapter(base, tmp_path / "a", merge=True)
    assembly = leaf_assembly(tmp_path / "a", "a", base)
    files = write(assembly, tmp_path / "out")
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= files.keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    live = live_model(assembly, dtype=torch.float32, device="cpu").state_dict()
    for name, tensor in expected.items():
        assert torch.allclose(loaded[name], tensor, rtol=1e-6, atol=1e-6)
        assert torch.equal(loaded[name], live[name])


def test_an_adapters_own_tokenizer_goes_along(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a")
    tiny.tokenizer(tmp_path / "a", chat_template="{{ messages[0].content }}")
    write(leaf_assembly(tmp_path / "a", "a", bases["mistral"]), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_an_adapter_that_grew_the_vocabulary_brings_its_rows(tmp_path, bases):
    base = bases["mistral"]
    expected = adapter(
        base, tmp_path / "a", merge=True, grow=2, modules_to_save=["embed_tokens", "lm_head"]
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|a|>", "<|b|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "a")
    write(leaf_assembly(tmp_path / "a", "a", base), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == tiny.VOCABULARY + 2
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=1e-6, atol=1e-6), name
    leaf = descend(Checkpoint.open(base), tmp_path / "a")
    seen = leaf.content("lm_head.weight")
    assert torch.equal(seen, expected["lm_head.weight"][: tiny.VOCABULARY])


def test_a_low_rank_delta_stays_in_its_row_where_the_adapter_names_a_row_of_padding(tmp_path):
    base = tiny.base(tmp_path / "base", vocab_size=64, dtype=torch.float32)
    expected = adapter(base, tmp_path / "a", merge=True, target_modules=["embed_tokens"])
    whole = tiny.tensors(base)
    own = {f"base_model.model.{name}": whole[name] for name in ("lm_head.weight",)}
    own["base_model.model.model.embed_tokens.base_layer.weight"] = whole[EMBEDDINGS]
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(path) | own, path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "a")
    sources = leaf_assembly(tmp_path / "a", "a", base)
    assert torch.allclose(made(sources)[EMBEDDINGS], expected[EMBEDDINGS], atol=1e-6)
    seen = descend(Checkpoint.open(base), tmp_path / "a").content(EMBEDDINGS)
    assert torch.equal(seen[tiny.VOCABULARY], whole[EMBEDDINGS][tiny.VOCABULARY])  # not in the base


# What is refused


def test_an_odd_list_of_saved_modules_is_no_reason_to_fail(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a")
    settings(tmp_path / "a", modules_to_save=5)
    assert descend(Checkpoint.open(bases["mistral"]), tmp_path / "a").contents


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", ["lora_A", "lm_head"])
def test_quantised_tensors_are_refused(tmp_path, bases, part, dtype):
    adapter(bases["mistral"], tmp_path / "a", modules_to_save=["lm_head"])
    rewrite(tmp_path / "a", lambda n, t: (n, t.to(dtype) if part in n else t))
    with pytest.raises(ModelError, match=r"quantised or no weights"):
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "uses DoRA"),
        ({"peft_type": "IA3"}, "a IA3 adapter; only plain LoRA"),
        ({"peft_type": "LOHA"}, "a LOHA adapter"),
        ({"init_lora_weights": "pissa"}, "began as 'pissa'"),
        ({"trainable_token_indices": [3]}, "uses trainable tokens"),
        ({"r": 5}, r"q_proj has rank \[4\], but adapter_config.json says 5"),
        ({"r": 0, "rank_pattern": {}}, "has the r 0"),
        ({"r": None}, "no usable r for"),
        ({"lora_alpha": "many"}, "no usable lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "no usable lora_alpha"),
        ({"alpha_pattern": {r"(.)\1": 3}}, "no usable lora_alpha"),  # might take for ever
        ({"lora_alpha": 10**400}, "a number of 401 digits"),
    ],
)
def test_other_forms_and_odd_settings_are_refused(tmp_path, bases, changes, said):
    adapter(bases["mistral"], tmp_path / "a")
    settings(tmp_path / "a", **changes)
    with pytest.raises(ModelError, match=said):
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")


def test_dora_is_known_by_its_tensors_too(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a", use_dora=True)
    settings(tmp_path / "a", use_dora=False)
    with pytest.raises(ModelError, match="uses DoRA"):
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")


def test_modules_that_the_base_lacks_are_named(tmp_path, bases):
    deep = tiny.base(tmp_path / "deep", layers=4, dtype=torch.float32)
    adapter(deep, tmp_path / "a")
    with pytest.raises(ModelError) as caught:
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")
    assert str(caught.value).endswith(
        "does not fit its base: the base has no model.layers.2.self_attn.q_proj.weight; "
        "the base has no model.layers.2.self_attn.v_proj.weight; "
        "the base has no model.layers.3.self_attn.q_proj.weight; and 1 more"
    )


def test_shapes_that_do_not_fit_are_named(tmp_path, bases):
    wide = tiny.base(tmp_path / "wide", hidden=64, dtype=torch.float32)
    adapter(wide, tmp_path / "a", modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"lm_head.weight is \[51, 64\], the base's is \[51, 32\]"):
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")


@pytest.mark.parametrize("side", "AB")
def test_half_an_adapter_is_refused(tmp_path, bases, side):
    adapter(bases["mistral"], tmp_path / "a")
    gone = f"model.layers.1.self_attn.v_proj.lora_{side}.weight"
    rewrite(tmp_path / "a", lambda n, t: None if n.endswith(gone) else (n, t))
    with pytest.raises(ModelError, match=rf"has no lora_{side} for model.layers.1.self_attn.v_"):
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")


def test_a_head_trained_apart_from_tied_embeddings_is_refused(tmp_path, bases):
    adapter(bases["qwen2"], tmp_path / "a", modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match="trains lm_head apart from what the base ties it to"):
        descend(Checkpoint.open(bases["qwen2"]), tmp_path / "a")


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
def test_an_adapter_that_unties_embeddings_is_refused(tmp_path, bases, lora):
    adapter(bases["qwen2"], tmp_path / "a", **lora)
    with pytest.raises(ModelError, match="apart from what the base ties it to"):
        descend(Checkpoint.open(bases["qwen2"]), tmp_path / "a")


def test_an_adapter_whose_saved_embeddings_stay_tied_is_taken(tmp_path, bases):
    base = bases["qwen2"]
    adapter(base, tmp_path / "a", modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    live = live_model(leaf_assembly(tmp_path / "a", "a", base), dtype=torch.float32, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trained = peft.PeftModel.from_pretrained(model, tmp_path / "a").eval()
    with torch.no_grad():
        found, expected = (each(torch.tensor([[4, 9, 23]])).logits for each in (live, trained))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_saved_head_that_differs_from_tied_embeddings_is_refused(tmp_path, bases):
    adapter(bases["qwen2"], tmp_path / "a")
    own = load_file(tmp_path / "a" / "adapter_model.safetensors")
    whole = tiny.tensors(bases["qwen2"])[EMBEDDINGS]
    own["base_model.model.model.embed_tokens.weight"] = whole.clone()
    for head, fits in ((whole.clone(), True), (whole + 1, False)):
        own["base_model.model.lm_head.weight"] = head
        save_file(own, tmp_path / "a" / "adapter_model.safetensors", {"format": "pt"})
        if fits:
            descend(Checkpoint.open(bases["qwen2"]), tmp_path / "a")
            continue
        with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens"):
            descend(Checkpoint.open(bases["qwen2"]), tmp_path / "a")


def test_pickled_adapters_are_never_read(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickle files are never read"):
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")


def test_an_adapter_needs_its_base(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a")
    with pytest.raises(UsageError, match="give its base too"):
        leaf_assembly(tmp_path / "a", "a")


def test_a_merged_model_beside_its_adapter_is_a_whole_model(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a")
    shutil.copytree(bases["mistral"], tmp_path / "a", dirs_exist_ok=True)
    leaf = descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")
    assert isinstance(leaf.content("model.norm.weight"), torch.Tensor)


def _emptied(side):
    return lambda name, tensor: (name, tensor[:0] if f"lora_{side}" in name else tensor)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _name, _tensor: None, "holds no tensors"),
        (_emptied("A"), "has no elements"),
        (_emptied("B"), "has no elements"),
        (lambda n, t: (n, t * 0 if "lora_B" in n else t), "every lora_B is zero"),
    ],
    ids=["no tensors", "no A", "no B", "zero B"],
)
def test_an_adapter_that_holds_nothing_is_refused(tmp_path, bases, change, said):
    adapter(bases["mistral"], tmp_path / "a")
    rewrite(tmp_path / "a", change)
    with pytest.raises(ModelError, match=said):
        descend(Checkpoint.open(bases["mistral"]), tmp_path / "a")


def test_an_adapter_with_one_zero_b_among_others_is_taken(tmp_path, bases):
    adapter(bases["mistral"], tmp_path / "a")
    zero = "layers.0.self_attn.v_proj.lora_B"
    rewrite(tmp_path / "a", lambda n, t: (n, t * 0 if zero in n else t))
    assert descend(Checkpoint.open(bases["mistral"]), tmp_path / "a").parameters


@pytest.mark.parametrize(
    ("said", "base"),
    [
        ("lab/base", "lab/base"),
        ("Lab/Base", "lab/base"),
        ("openai-community/gpt2", "gpt2"),
        ("gpt2", "openai-community/gpt2"),
        ("/content/model", "lab/base"),
        ("./out/model", "lab/base"),
        (None, "lab/base"),
        ([], "lab/base"),
    ],
)
def test_an_adapter_may_name_its_base_or_a_folder(tmp_path, bases, said, base):
    adapter(bases["mistral"], folder := tmp_path / "a")
    refuse_other_base(settings(folder, base_model_name_or_path=said), base)


@pytest.mark.parametrize("base", ["lab/base", "base"])
def test_an_adapter_of_another_model_of_the_hub_is_refused_by_its_name(tmp_path, bases, base):
    adapter(bases["mistral"], folder := tmp_path / "a")
    settings(folder, base_model_name_or_path="other/model")
    with pytest.raises(ModelError, match=f"trained on other/model, not on {base}"):
        refuse_other_base(folder, base)
