"""EMR-Merging: a unified model, and of each fine-tune a mask and a scale that make it again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import command
import ledgers
import tiny
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights.assembly import leaf_assembly
from kinship_daemon.weights.emr import pack, packed_model, packed_names
from kinship_daemon.weights.live_model import live_model
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe
from kinship_daemon.weights.whole_tensor import whole_tensor_assembly
from test_adapter import adapter
from test_vocabulary import grown, permuted


def elected(deltas):
    """The paper's unified task vector, in float64, element by element."""
    stacked = torch.stack([delta.double() for delta in deltas])
    sign = torch.where(stacked.sum(0) > 0, 1.0, -1.0).double()
    agreeing = torch.where(stacked * sign > 0, stacked.abs(), 0.0)
    return sign * agreeing.amax(0)


def definition(base, models):
    """The unified task vector by tensor, and each fine-tune as the paper's mask and scale say."""
    deltas = [{k: (w[k].double() - base[k].double()) for k in base} for w in models]
    unified = {k: elected([d[k] for d in deltas]) for k in base}
    made = []
    for delta in deltas:
        masked = {k: torch.where(delta[k] * unified[k] > 0, unified[k], 0.0) for k in base}
        scale = sum(d.abs().sum() for d in delta.values()) / sum(
            m.abs().sum() for m in masked.values()
        )
        made.append((float(scale), {k: base[k].double() + scale * masked[k] for k in base}))
    return unified, made


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("emr")
    base = tiny.base(scratch / "base")
    models = [tiny.finetune(base, scratch / n, i, scale=0.02 * i) for i, n in enumerate("abc", 1)]
    pack(base, [(model.name, model) for model in models], scratch / "pack")
    return base, models, scratch / "pack"


def test_the_unified_model_has_each_element_of_some_fine_tune_exactly(family):
    base, models, packed = family
    own, of = tiny.tensors(base), [tiny.tensors(model) for model in models]
    unified, _ = definition(own, of)
    found = tiny.tensors(packed / "unified")
    for key, tensor in found.items():
        assert torch.equal(tensor.double(), own[key].double() + unified[key]), key
        kept = torch.stack([w[key] == tensor for w in [own, *of]]).any(0)
        assert bool(kept.all()), key


def test_a_fine_tune_is_unpacked_as_the_paper_says(family, tmp_path, monkeypatch, capfd):
    base, models, packed = family
    _, made = definition(tiny.tensors(base), [tiny.tensors(model) for model in models])
    tasks = json.loads((packed / "tasks.json").read_text())
    assert packed_names(packed) == ["a", "b", "c"]
    for task, (scale, exact) in zip(tasks, made, strict=True):
        assert task["scale"] == pytest.approx(scale, rel=1e-6)
        out = tmp_path / task["name"]
        asked = ["unpack", packed, task["name"], out, "--base", base]
        done = command.call(asked, monkeypatch, capfd)
        assert done.code == 0, done.err
        for key, tensor in tiny.tensors(out).items():
            assert torch.equal(tensor, exact[key].to(tensor.dtype)) or torch.allclose(
                tensor.double(), exact[key], rtol=2**-8, atol=1e-9
            ), key
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert bool(model(torch.arange(9)[None]).logits.isfinite().all())


def test_an_unpacked_model_is_nearer_to_its_own_than_any_one_merge(family):
    base, models, packed = family
    own = tiny.tensors(base)
    mean = {k: sum(tiny.tensors(m)[k].double() for m in models) / 3 for k in own}
    for model in models:
        live = live_model(packed_model(packed, model.name, base), dtype=torch.float32, device="cpu")
        of, found = tiny.tensors(model), live.state_dict()
        off = sum(float((found[k].double() - of[k].double()).square().sum()) for k in own)
        before = sum(float((mean[k] - of[k].double()).square().sum()) for k in own)
        assert off < before


def test_one_model_alone_is_itself(family, tmp_path):
    base, (model, *_), _ = family
    pack(base, [("a", model)], tmp_path / "pack")
    live = live_model(
        packed_model(tmp_path / "pack", "a", base), dtype=torch.bfloat16, device="cpu"
    )
    for key, tensor in tiny.tensors(model).items():
        assert torch.equal(live.state_dict()[key], tensor), key


def test_a_mask_has_one_bit_a_number(family):
    base, models, packed = family
    numbers = sum(tensor.numel() for tensor in tiny.tensors(base).values())
    for number in range(len(models)):
        size = (packed / f"mask-{number}.safetensors").stat().st_size
        assert numbers / 8 <= size < numbers / 8 + 4000


def test_adapters_and_a_model_that_changed_nothing_are_packed(family, tmp_path):
    base, (model, *_), _ = family
    adapter(base, tmp_path / "lora", seed=2)
    same = tiny.finetune(base, tmp_path / "same", 1, tensors=())
    models = [("a", model), ("lora", tmp_path / "lora"), ("same", same)]
    pack(base, models, tmp_path / "pack")
    own = tiny.tensors(base)
    live = live_model(
        packed_model(tmp_path / "pack", "same", base), dtype=torch.bfloat16, device="cpu"
    )
    assert all(torch.equal(live.state_dict()[key], tensor) for key, tensor in own.items())
    live = live_model(
        packed_model(tmp_path / "pack", "lora", base), dtype=torch.bfloat16, device="cpu"
    )
    changed = {
        key for key, tensor in own.items() if not torch.equal(live.state_dict()[key], tensor)
    }
    assert changed
    assert all("self_attn" in key for key in changed)


@pytest.mark.parametrize("make", [permuted, lambda *a: grown(*a, tokens=("<new>",))])
def test_models_with_other_tokens_are_refused(family, tmp_path, make):
    base, (model, *_), _ = family
    other = make(base, tmp_path / "other", 1)
    with pytest.raises(UsageError, match="with tokens of their own cannot be packed"):
        pack(base, [("a", model), ("other", other)], tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_what_is_no_pack_is_told(family, tmp_path):
    base, models, packed = family
    with pytest.raises(UsageError, match="has no d; there are a, b, c"):
        packed_model(packed, "d", base)
    with pytest.raises(UsageError, match="is no pack"):
        packed_names(tmp_path)
    with pytest.raises(UsageError, match="have one name"):
        pack(base, [("a", models[0]), ("a", models[1])], tmp_path / "pack")
    foul = [{"name": "a", "scale": 1.0, "mask": "../../mask-0.safetensors"}]
    (tmp_path / "tasks.json").write_text(json.dumps(foul))
    with pytest.raises(UsageError, match="is no pack"):
        packed_names(tmp_path)
    foul = [{"name": "a", "scale": 1.0, "mask": "mask-0.safetensors"}]
    (tmp_path / "tasks.json").write_text(json.dumps(foul))
    (tmp_path / "mask-0.safetensors").write_bytes(b"nothing")
    (tmp_path / "unified").symlink_to(packed / "unified")
    with pytest.raises(ModelError, match=r"no mask of .* can be read"):
        live_model(packed_model(tmp_path, "a", base), dtype=torch.float32, device="cpu")


def test_by_hand(family, tmp_path, monkeypatch, capfd):
    base, models, _ = family
    done = command.call(["pack", tmp_path / "out", *models, "--base", base], monkeypatch, capfd)
    assert done.code == 0, done.err
    assert packed_names(tmp_path / "out") == [str(model) for model in models]
    again = command.call(["pack", tmp_path / "out", *models, "--base", base], monkeypatch, capfd)
    assert "exists and is not empty" in again.err


@pytest.mark.parametrize("size", [1, 7, 300_001])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_election_is_its_definition(count, size):
    noise = torch.Generator().manual_seed(size)
    deltas = [torch.randn(size, generator=noise) for _ in range(count)]
    if count > 1:
        deltas[1][0] = -deltas[0][0]  # a sum of 0, of two
    exact = elected(deltas)
    found = method("emr")([delta.clone() for delta in deltas], {}, None)
    assert torch.equal(found.double(), exact)


def test_it_is_a_merge_method_as_well(family):
    base, models, packed = family
    names = ledgers.of(base, {}).names
    recipe = Recipe("emr", ("a", "b", "c"), {})
    parents = [leaf_assembly(model, model.name) for model in models]
    made = whole_tensor_assembly(recipe, parents, names, base, "x", base).open()
    for info in made.tensors:
        blocks = made.blocks(info.name, torch.bfloat16, torch.device("cpu"))
        found = torch.cat(list(blocks)).view(info.shape)
        assert torch.equal(found, tiny.tensors(packed / "unified")[info.name])
