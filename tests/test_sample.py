"""The sample: few bytes, the same blocks of every model, intervals that hold the exact value."""

import shutil
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import ledgers
import tiny
import varied_models
from kinship_daemon import demo
from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.ranges import FolderRanges
from kinship_daemon.sampling import Sampler
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.header import TensorInfo
from kinship_daemon.weights.kinship import METRICS, matrix
from kinship_daemon.weights.recipe import leaf
from kinship_daemon.weights.remote import open_remote
from kinship_daemon.weights.sample.estimate import estimate
from kinship_daemon.weights.sample.jackknife import LEVEL, interval
from kinship_daemon.weights.sample.plan import plan
from kinship_daemon.weights.sample.take import BaseSample, base_sample, take, take_local
from kinship_daemon.weights.vocabulary import is_vocabulary

PARTLY = {"fraction": 0.1, "fewest": 0}


def remote(folder):
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    return open_remote(str(folder), FolderRanges(folder), files)


def exact(base, leaves, metric):
    ledger = ledgers.of(base, leaves)
    return matrix(ledger, [leaf(ledger, name) for name in leaves], metric)


def samples(base, folders, **settings):
    source = remote(base)
    scheme = plan(source.tensors, **settings)
    own = base_sample(scheme, source)
    return [take(scheme, own, remote(folder)) for folder in folders]


def tensor_infos(**shapes):
    return {n: TensorInfo(n, "BF16", shape, "f", 0) for n, shape in shapes.items()}


def large(layers=32, hidden=4096):
    """Mistral-7B's tensors."""
    found = {"model.embed_tokens.weight": (32000, hidden), "lm_head.weight": (32000, hidden)}
    for n in range(layers):
        found |= {
            f"model.layers.{n}.input_layernorm.weight": (hidden,),
            f"model.layers.{n}.self_attn.q_proj.weight": (hidden, hidden),
            f"model.layers.{n}.self_attn.k_proj.weight": (hidden // 4, hidden),
            f"model.layers.{n}.mlp.up_proj.weight": (7 * hidden // 2, hidden),
        }
    return tensor_infos(**found)


def test_a_plan_is_the_same_for_ever():
    """Samples of different months are compared: if this fails, _VERSION has to change."""
    found = plan(tensor_infos(**{"a.weight": (300, 400)}), fraction=0.01, fewest=0)
    assert found.identity == "sample-1-d223693918a6563e"
    assert found.strata[0].blocks[:3] == ((1408, 1472), (14592, 14656), (18112, 18176))
    assert found.strata[-1].blocks[-1] == (119168, 119232)


def test_of_large_models_no_more_is_read_than_the_fraction():
    tensors = large()
    scheme = plan(tensors, fraction=0.002)
    nbytes = sum(info.nbytes for info in tensors.values())
    assert 0.0019 * nbytes < scheme.nbytes < 0.002 * nbytes
    assert sum(stratum.drawn for stratum in scheme.strata) < 3000


def test_every_tensor_is_sampled_in_proportion_and_the_smallest_whole():
    tensors = large()
    scheme = plan(tensors, fraction=0.002)
    for name, blocks in scheme.blocks:
        share = sum(end - start for start, end in blocks) / tensors[name].elements
        assert len(blocks) >= 2
        assert share == 1 if "norm" in name else 0.0015 < share < 0.0022
    assert [name for name, _ in scheme.blocks] == sorted(tensors)


def test_blocks_lie_within_their_tensors_and_apart_and_those_of_vocabulary_within_a_row():
    tensors = large(layers=1, hidden=1000)
    for name, blocks in plan(tensors, fraction=0.01).blocks:
        assert all(end <= start for (_, end), (start, _) in pairwise(blocks))
        assert blocks[0][0] >= 0
        assert blocks[-1][1] <= tensors[name].elements
        if is_vocabulary(name):
            assert all(start // 1000 == (end - 1) // 1000 for start, end in blocks)


def test_weights_stand_for_all_elements():
    for shape in ((1000, 777), (999_983,), (3, 5, 20_011)):
        infos = tensor_infos(**{"a": shape})
        strata = plan(infos, fraction=0.05, fewest=0).strata
        stood = sum(s.elements * s.total / s.drawn for s in strata)
        assert stood == pytest.approx(infos["a"].elements, rel=0.01)


def test_another_seed_fraction_or_base_is_another_plan():
    tensors = large(layers=1)
    plans = [
        plan(tensors, fraction=0.002),
        plan(tensors, fraction=0.002, seed=1),
        plan(tensors, fraction=0.003),
        plan(large(layers=2), fraction=0.002),
    ]
    assert len({each.identity for each in plans}) == 4
    assert plans[0].strata != plans[1].strata
    assert plan(dict(reversed(tensors.items())), fraction=0.002).strata == plans[0].strata


@pytest.mark.parametrize("fraction", [0, -1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(UsageError, match="fraction"):
        plan(large(layers=1), fraction=fraction)


def test_a_base_without_weights_is_refused():
    with pytest.raises(ModelError, match="no weights"):
        plan({"a": TensorInfo("a", "F8_E4M3", (8, 8), "f", 0)}, fraction=0.1)


def test_a_small_model_is_read_whole_and_known_exactly(tiny_base, tiny_finetunes):
    leaves = {folder.name: folder for folder in tiny_finetunes}
    taken = samples(tiny_base, tiny_finetunes, fraction=0.002)
    for metric in METRICS:
        found = estimate(taken, metric)
        truth = exact(tiny_base, leaves, metric)
        torch.testing.assert_close(found.value, truth, rtol=1e-6, atol=1e-6)
        assert float(found.error.abs().max()) < 1e-12


def test_a_sample_is_the_difference_at_the_plans_places(tiny_base, tiny_finetunes):
    (taken,) = samples(tiny_base, tiny_finetunes[1:2], **PARTLY)
    base, own = tiny.tensors(tiny_base), tiny.tensors(tiny_finetunes[1])
    wanted = [
        (own[name].float() - base[name].float()).reshape(-1)[start:end]
        for name, blocks in taken.plan.blocks
        for start, end in blocks
    ]
    assert torch.equal(taken.deltas, torch.cat(wanted))
    assert 0.05 < len(taken.deltas) / sum(t.numel() for t in base.values()) < 0.5


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """Models unlike each other and inside, of three dtypes, and what the ledger says of them."""
    base, leaves = varied_models.family(tmp_path_factory.mktemp("wild") / "models")
    truth = {metric: exact(base, leaves, metric) for metric in METRICS}
    return SimpleNamespace(base=base, leaves=leaves, truth=truth)


@pytest.fixture(scope="module")
def of_demo():
    leaves = {name: demo.HUB / "demo" / name for name in ("add", "max", "reverse", "sort")}
    base = demo.HUB / demo.BASE
    truth = {metric: exact(base, leaves, metric) for metric in METRICS}
    return SimpleNamespace(base=base, leaves=leaves, truth=truth)


def covered(models, seeds, metric, **settings):
    """In how many pairs and seeds the interval holds the exact value, and of how many."""
    rows, columns = torch.triu_indices(len(models.leaves), len(models.leaves), 1)
    base = remote(models.base)
    leaves = [remote(folder) for folder in models.leaves.values()]
    held, errors = [], []
    for seed in range(seeds):
        scheme = plan(base.tensors, seed=seed, **settings)
        own = base_sample(scheme, base)
        found = estimate([take(scheme, own, each) for each in leaves], metric)
        low, high = interval(found, metric)
        truth = models.truth[metric]
        held.append(((low <= truth) & (truth <= high))[rows, columns])
        errors.append(found.error[rows, columns])
    return torch.stack(held).double(), torch.stack(errors)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_hold_the_exact_kinship_of_the_demos_models(metric, of_demo):
    held, errors = covered(of_demo, 34, metric, fraction=0.12, fewest=0)
    assert held.numel() >= 200
    assert float(held.mean()) >= 0.9
    assert float(errors.min()) > 0
    if metric != "euclidean":
        assert LEVEL * float(errors.median()) < 0.04


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_hold_the_exact_kinship_of_strange_models(metric, wild):
    held, errors = covered(wild, 14, metric, fraction=0.002)
    assert held.numel() >= 200
    assert float(held.mean()) >= 0.9
    if metric != "euclidean":
        assert LEVEL * float(errors.median()) < 0.05


def test_a_larger_sample_is_more_certain_as_the_square_root_of_its_size(wild):
    folders = list(wild.leaves.values())
    few, many = (
        estimate(samples(wild.base, folders, fraction=f, fewest=0), "pcc").error
        for f in (0.01, 0.16)
    )
    assert 2 < float((few / many).nanmedian()) < 7


def test_a_models_twin_is_certain_to_be_one(wild):
    folder = wild.leaves["heavy_rows"]
    same = samples(wild.base, [folder, folder], fraction=0.002)
    for metric, value in (("pcc", 1.0), ("cosine", 1.0), ("euclidean", 0.0)):
        found = estimate(same, metric)
        assert found.value.tolist() == [[value] * 2] * 2
        assert float(found.error.max()) < 1e-9


def test_the_order_of_models_does_not_matter(wild):
    taken = samples(wild.base, list(wild.leaves.values()), fraction=0.002)
    found, turned = estimate(taken, "pcc"), estimate(taken[::-1], "pcc")
    assert torch.equal(found.value, found.value.T)
    torch.testing.assert_close(turned.value.flip(0, 1), found.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turned.error.flip(0, 1), found.error, rtol=1e-9, atol=1e-12)


def test_kinship_with_a_copy_of_the_base_is_undefined(tiny_base, tiny_finetunes):
    found = estimate(samples(tiny_base, [tiny_base, tiny_finetunes[0]], **PARTLY), "pcc")
    assert bool(found.value[0].isnan().all())
    assert bool(found.error[0].isnan().all())
    assert float(found.value[1, 1]) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "NaN"), (float("inf"), "infinity"), (3e38, r"numbers beyond 1e\+25")],
)
def test_a_broken_model_is_refused_by_its_tensor(tmp_path, tiny_base, tiny_finetunes, value, said):
    broken = shutil.copytree(tiny_finetunes[0], tmp_path / "broken")
    tiny.edit(broken, {"model.norm.weight": torch.full((32,), value).bfloat16()})
    with pytest.raises(ModelError, match=rf"broken: tensor model\.norm\.weight holds {said}"):
        samples(tiny_base, [broken], **PARTLY)
    with pytest.raises(ModelError, match=said):
        base_sample(plan(remote(broken).tensors, **PARTLY), remote(broken))


def test_nothing_but_the_blocks_is_read(wild):
    source = remote(wild.leaves["dense"])
    scheme = plan(remote(wild.base).tensors, fraction=0.02)
    own = base_sample(scheme, remote(wild.base))
    before, told = source.ranges.bytes_read, []
    take(scheme, own, source, progress=told.append)
    assert source.ranges.bytes_read - before == sum(told)
    # Gaps between neighbours are read, too, where that saves a request.
    assert scheme.nbytes <= sum(told) < 1.5 * scheme.nbytes


def test_a_base_that_cannot_be_sampled_is_no_candidates_fault(tmp_path, tiny_base):
    broken = shutil.copytree(tiny_base, tmp_path / "broken")
    weights = tiny.tensors(broken)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KinshipError, match=r"the base cannot be sampled .*holds NaN") as failed:
        Sampler.of(broken, 0.5, tmp_path / "sample.safetensors")
    assert not isinstance(failed.value, ModelError)


def test_the_bases_sample_is_kept(tmp_path, tiny_base):
    source = remote(tiny_base)
    scheme = plan(source.tensors, **PARTLY)
    own = base_sample(scheme, source)
    own.save(tmp_path / "kept")
    found = BaseSample.load(tmp_path / "kept", scheme)
    here = base_sample(scheme, Checkpoint.open(tiny_base))
    for name, values in own.values.items():
        assert torch.equal(values, found.values[name])
        assert torch.equal(values, here.values[name])
        assert values.dtype == torch.bfloat16
    with pytest.raises(KinshipError, match="another plan"):
        BaseSample.load(tmp_path / "kept", plan(source.tensors, fraction=0.2, fewest=0))
    (tmp_path / "kept").write_bytes(b"x")
    with pytest.raises(KinshipError, match="not a readable sample"):
        BaseSample.load(tmp_path / "kept", scheme)


def test_a_folder_gives_the_same_sample(tiny_base, tiny_finetunes):
    opened = Checkpoint.open(tiny_base)
    for folder, taken in zip(
        tiny_finetunes, samples(tiny_base, tiny_finetunes, **PARTLY), strict=True
    ):
        own = base_sample(taken.plan, opened)
        local = take_local(taken.plan, own, descend(opened, folder))
        assert torch.equal(local.deltas, taken.deltas)


def test_an_adapters_sample_is_that_of_its_dense_delta(tmp_path, tiny_base):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    lora = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"])
    )
    for name, weight in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    lora.save_pretrained(tmp_path / "adapter")
    opened = Checkpoint.open(tiny_base)
    merged = dict(lora.merge_and_unload().named_parameters())
    for settings in (PARTLY, {"fraction": 1.0}):
        scheme = plan(opened.tensors, **settings)
        own = base_sample(scheme, opened)
        found = take_local(scheme, own, descend(opened, tmp_path / "adapter"))
        wanted = [
            (merged[name].detach() - opened.tensor(name).float()).reshape(-1)[start:end]
            for name, blocks in scheme.blocks
            for start, end in blocks
        ]
        torch.testing.assert_close(found.deltas, torch.cat(wanted), rtol=1e-4, atol=1e-6)
        assert float(found.deltas.abs().max()) > 0.01


def test_without_vocabulary_the_other_tensors_are_compared(tiny_base, tiny_finetunes):
    source = remote(tiny_base)
    scheme = plan(source.tensors, fraction=1.0)
    rest = scheme.without_vocabulary()
    own = base_sample(scheme, source)
    assert rest.identity == scheme.identity
    taken = [
        take(rest if folder.name == "b" else scheme, own, remote(folder))
        for folder in tiny_finetunes
    ]
    found = estimate(taken, "pcc").value
    leaves = {folder.name: folder for folder in tiny_finetunes}
    truth = exact(tiny_base, leaves, "pcc")
    assert float(found[0, 2]) == pytest.approx(float(truth[0, 2]), abs=1e-6)
    base, a, b = (tiny.tensors(folder) for folder in (tiny_base, *tiny_finetunes[:2]))
    names = [name for name in sorted(base) if not is_vocabulary(name)]
    deltas = [
        torch.cat([(w[n].double() - base[n].double()).flatten() for n in names]) for w in (a, b)
    ]
    assert float(found[0, 1]) == pytest.approx(
        float(torch.corrcoef(torch.stack(deltas))[0, 1]), abs=1e-6
    )


def test_other_rows_are_refused_unless_their_places_are_known(tmp_path, tiny_base, tiny_finetunes):
    longer = shutil.copytree(tiny_finetunes[0], tmp_path / "longer")
    own = tiny.tensors(longer)
    # Two rows fewer than the base's, in another order, the last of these two nowhere.
    rows = torch.cat([torch.arange(9, 49), torch.tensor([-1, -1]), torch.arange(9)])
    changes = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        moved = torch.zeros(49, 32).bfloat16()
        moved[rows[rows >= 0]] = own[name][rows >= 0]
        changes[name] = moved
    tiny.edit(longer, changes)
    source = remote(tiny_base)
    scheme = plan(source.tensors, fraction=1.0)
    base = base_sample(scheme, source)
    with pytest.raises(ModelError, match="has 49 rows, the base's 51"):
        take(scheme, base, remote(longer))
    found = take(scheme, base, remote(longer), rows)
    plain = take(scheme, base, remote(tiny_finetunes[0]))
    at = 0
    for name, blocks in scheme.blocks:
        for start, end in blocks:
            ours, theirs = (s.deltas[at : at + end - start] for s in (found, plain))
            at += end - start
            if is_vocabulary(name) and rows[start // 32] < 0:
                assert float(ours.abs().max()) == 0
            else:
                assert torch.equal(ours, theirs)
