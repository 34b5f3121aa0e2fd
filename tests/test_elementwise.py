"""Elementwise merges: right by float64 definitions and by mergekit, whatever the order of work."""

import pickle
import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

import ledgers
import mergekit_oracle
import tiny
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights.assembly import assemble, leaf_assembly
from kinship_daemon.weights.materialise import write
from kinship_daemon.weights.methods import blocks, sparse
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe, combine, leaf
from kinship_daemon.weights.whole_tensor import WholeTensorAssembly, whole_tensor_assembly

CPU = torch.device("cpu")
METHODS = [
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "ties",
]
EXACT = ["breadcrumbs", "breadcrumbs_ties", "ties"]
CHANCE = ["dare_linear", "dare_ties", "della", "della_linear"]
ELECTING = {"breadcrumbs_ties", "dare_ties", "della", "ties"}

# The definitions, in float64.


def by_magnitude(delta: torch.Tensor, skip: int, count: int) -> torch.Tensor:
    order = delta.abs().flatten().sort(descending=True, stable=True).indices
    kept = torch.zeros(delta.numel(), dtype=torch.float64)
    kept[order[skip : skip + count]] = 1
    return delta * kept.view(delta.shape)


def sparse_reference(name: str, delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    if density >= 1:
        return delta
    size = delta.numel()
    if name == "ties":
        return by_magnitude(delta, 0, max(1, int(density * size)) if density > 0 else 0)
    count = int(density * size)
    least = max(0, size - count - int(gamma * size))
    return by_magnitude(delta, size - count - least, count)


def summed(parts: list[torch.Tensor], weights: list[float], p: dict, elect: bool) -> torch.Tensor:
    weighted = [w * part for w, part in zip(weights, parts, strict=True)]
    total = torch.zeros_like(parts[0])
    divisor = torch.zeros_like(parts[0])
    sign = torch.where(sum(weighted) >= 0, 1.0, -1.0)
    for w, part in zip(weights, weighted, strict=True):
        chosen = (part.sign() == sign) if elect else torch.ones_like(part, dtype=torch.bool)
        total += torch.where(chosen, part, 0.0)
        divisor += torch.where(chosen, w, 0.0)
    divisor[divisor.abs() < 1e-8] = 1
    return p["lambda"] * (total / divisor if p["normalize"] else total)


def reference(name: str, deltas: list[torch.Tensor], p: dict) -> torch.Tensor:
    """A method without chance, or any at density 1."""
    gammas = p.get("gamma", [0.0] * len(deltas))
    parts = []
    for delta, density, gamma in zip(deltas, p["density"], gammas, strict=True):
        whole = delta.double()
        part = sparse_reference(name, whole, density, gamma)
        before, after = float(whole.abs().sum()), float(part.abs().sum())
        rescaled = p["rescale"] and density < 1 and min(before, after) >= 1e-7
        parts.append(part * (before / after) if rescaled else part)
    return summed(parts, p["weight"], p, name in ELECTING)


# The tools of the tests.


def noise(seed: int, *shape: int, scale: float = 0.01) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def chance(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + index)


def settings(name: str, count: int = 2, **changes) -> dict:
    """All parameters of a method for `count` parents: its defaults, or else `changes`."""
    found = {}
    for parameter in method(name).parameters:
        value = changes.pop(parameter.name, parameter.default)
        if parameter.per_model and not isinstance(value, list):
            value = [1.0 if value is None else value] * count
        found[parameter.name] = value
    assert not changes
    return found


def merged(name: str, deltas: list[torch.Tensor], **changes) -> torch.Tensor:
    own = [delta.clone() for delta in deltas]
    return method(name)(own, settings(name, len(deltas), **changes), chance)


def close(result: torch.Tensor, exact: torch.Tensor) -> bool:
    return torch.allclose(result.double(), exact, rtol=2e-6, atol=1e-9)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setitem(blocks._BLOCK, "cpu", 97)
    monkeypatch.setattr(sparse, "_COUNTED", 101)


# Methods on tensors.


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_method_without_chance_is_its_definition(small_blocks, name, normalize, rescale, count):
    deltas = [noise(seed, 31, 17) for seed in range(count)]
    changes = {
        "weight": [0.5, -0.3, 1.7][:count],
        "density": [0.5, 0.25, 0.9][:count],
        "lambda": 0.7,
        "normalize": normalize,
        "rescale": rescale,
    }
    if name != "ties":
        changes["gamma"] = [0.05, 0.0, 0.3][:count]
    exact = reference(name, deltas, settings(name, count, **changes))
    assert close(merged(name, deltas, **changes), exact)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_and_names_are_mergekits(name):
    pytest.importorskip("mergekit")
    from mergekit.merge_methods.registry import get

    theirs = {p.name: p.default for p in get(name).spec.parameters if p.name != "int8_mask"}
    ours = {p.name: p.default for p in method(name).parameters if p.name != "seed"}
    assert ours.pop("weight") is None
    theirs.pop("weight")
    assert ours == theirs


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_at_density_one_nothing_is_dropped(name, normalize):
    deltas = [noise(seed, 40, 9) for seed in range(3)]
    changes = {"weight": [0.2, 0.3, 1.5], "density": 1.0, "normalize": normalize}
    exact = reference(name, deltas, settings(name, 3, **changes))
    assert close(merged(name, deltas, **changes), exact)


@pytest.mark.parametrize("name", METHODS)
def test_at_density_zero_nothing_is_left(name):
    result = merged(name, [noise(1, 8, 4), noise(2, 8, 4)], density=0.0)
    assert result.shape == (8, 4)
    assert not bool(result.any())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(0,), (1,), (), (3, 1), (2, 3, 4)])
def test_tensors_of_any_shape_can_be_merged(name, shape):
    result = merged(name, [torch.ones(shape), torch.ones(shape)], density=0.5)
    assert result.shape == shape
    assert bool(result.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_deltas_of_zero_stay_zero(name):
    result = merged(name, [torch.zeros(20, 5), torch.zeros(20, 5)], density=0.5, rescale=True)
    assert not bool(result.any())


def test_signs_are_elected_by_weight():
    first, second = torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([-2.0, 3.0, 1.0, 5.0])
    # Weighted: 3 against -2; both; -3 against 1; 5 alone, since 0 has no sign.
    result = merged("ties", [first, second], weight=[3.0, 1.0])
    assert result.tolist() == [1.0, 1.5, -1.0, 5.0]


def test_a_draw_of_signs_goes_to_the_positive():
    result = merged("ties", [torch.tensor([-2.0, 2.0]), torch.tensor([2.0, -2.0])])
    assert result.tolist() == [2.0, 2.0]


def test_weights_that_cancel_are_not_divided_by():
    deltas = [noise(1, 50), noise(2, 50), noise(3, 50)]
    weights = [0.1, 0.2, -0.3]
    for name in METHODS:
        changes = {"weight": weights, "normalize": True}
        exact = reference(name, deltas, settings(name, 3, **changes))
        assert close(merged(name, deltas, **changes), exact)
        assert float(exact.abs().max()) < 1


@pytest.mark.parametrize("name", CHANCE)
def test_chance_keeps_the_mean_and_the_sum_of_magnitudes(name):
    delta = noise(1, 500, 400).abs()
    changes = {"density": 0.4, "normalize": False}
    plain = merged(name, [delta], rescale=False, **changes)
    kept = plain != 0
    assert torch.equal(plain[kept], delta[kept])
    assert float(kept.float().mean()) == pytest.approx(0.4, abs=0.005)
    rescaled = merged(name, [delta], rescale=True, **changes)
    assert float(rescaled.double().sum()) == pytest.approx(float(delta.double().sum()), rel=1e-6)
    assert torch.equal(rescaled != 0, kept)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_over_many_draws_dare_is_unbiased(name):
    delta = noise(1, 60, scale=1.0)
    draws = 3000
    total = torch.zeros(60)
    for seed in range(draws):
        parameters = settings(name, 1, density=0.5)
        generator = torch.Generator().manual_seed(seed)
        total += method(name)([delta.clone()], parameters, lambda _, g=generator: g)
    assert torch.allclose(total / draws, delta, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_keeps_large_changes_more_often(name):
    delta = torch.arange(1.0, 101.0).repeat(5000, 1)
    result = merged(name, [delta], density=0.5, epsilon=0.3, rescale=False)
    shares = (result != 0).float().mean(0)
    assert torch.allclose(shares, torch.linspace(0.2, 0.8, 100), atol=0.035)


@pytest.mark.parametrize("name", CHANCE)
def test_parents_are_thinned_independently(name):
    ones = torch.ones(100_000)
    both = merged(name, [ones, ones], density=0.5, rescale=False, normalize=False)
    assert float((both == 2).float().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ties", {"density": 1.5}, "density is a share from 0 to 1, not 1.5"),
        ("dare_ties", {"density": [0.5, -0.1]}, "density is a share from 0 to 1, not -0.1"),
        ("breadcrumbs", {"gamma": 2.0}, "gamma is a share from 0 to 1, not 2"),
        ("della", {"density": 0.1}, "epsilon is 0.15: it has to be below 0.1"),
        ("della_linear", {"density": 0.5, "epsilon": -0.5}, "epsilon is -0.5"),
    ],
)
def test_parameters_out_of_range_are_refused(name, changes, said):
    with pytest.raises(UsageError, match=said):
        merged(name, [noise(1, 4), noise(2, 4)], **changes)


# Children of models.


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base in float32 and three fine-tunes: no two magnitudes are equal."""
    scratch = tmp_path_factory.mktemp("float32")
    base = tiny.base(scratch / "base", dtype=torch.float32)
    return base, [tiny.finetune(base, scratch / name, seed) for seed, name in enumerate("abc", 1)]


def child(base, leaves, name, **parameters) -> WholeTensorAssembly:
    names = ledgers.of(base, {}).names
    recipe = Recipe(name, tuple(folder.name for folder in leaves), {"weight": 1.0} | parameters)
    parents = [leaf_assembly(folder, folder.name) for folder in leaves]
    return whole_tensor_assembly(recipe, parents, names, base, "recipe:child", leaves[0])


def made(assembly, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    sources = assembly.open()
    shape = next(info.shape for info in sources.tensors if info.name == name)
    return torch.cat(list(sources.blocks(name, dtype, CPU))).view(shape)


def all_made(assembly) -> dict[str, torch.Tensor]:
    return {info.name: made(assembly, info.name) for info in assembly.open().tensors}


def exact_child(base, leaves, name, **changes) -> dict[str, torch.Tensor]:
    own, weights = tiny.tensors(base), [tiny.tensors(folder) for folder in leaves]
    parameters = settings(name, len(leaves), **changes)
    return {
        key: own[key].double() + reference(name, [w[key] - own[key] for w in weights], parameters)
        for key in own
    }


@pytest.mark.parametrize("name", EXACT)
def test_a_child_is_the_base_plus_the_merged_delta(family, name):
    base, leaves = family
    changes = {"density": [0.5, 0.3, 0.8], "weight": [1.0, 0.5, 0.25]}
    exact = exact_child(base, leaves, name, **changes)
    result = all_made(child(base, leaves, name, **changes))
    assert list(result) == sorted(exact)
    for key, tensor in result.items():
        assert torch.allclose(tensor.double(), exact[key], rtol=2e-6, atol=2e-8), key


@pytest.mark.parametrize("changes", [{}, {"normalize": True, "rescale": True, "lambda": 0.5}])
@pytest.mark.parametrize("name", EXACT)
def test_mergekit_makes_the_same_child(tmp_path, family, name, changes):
    base, leaves = family
    densities, weights = [0.5, 0.3, 0.8], [1.0, 0.5, -0.25]
    wanted = {
        "merge_method": name,
        "base_model": str(base),
        "models": [
            {"model": str(folder), "parameters": {"density": density, "weight": weight}}
            for folder, density, weight in zip(leaves, densities, weights, strict=True)
        ],
        "parameters": changes,
        "dtype": "float32",
    }
    theirs = tiny.tensors(mergekit_oracle.merge(yaml.safe_dump(wanted), tmp_path / "theirs"))
    ours = all_made(child(base, leaves, name, density=densities, weight=weights, **changes))
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize("name", CHANCE)
def test_mergekit_makes_the_same_child_where_nothing_is_dropped(tmp_path, family, name):
    base, leaves = family
    models = [{"model": str(folder), "parameters": {"weight": 0.6}} for folder in leaves]
    wanted = {
        "merge_method": name,
        "base_model": str(base),
        "models": models,
        "dtype": "float32",
    }
    theirs = tiny.tensors(mergekit_oracle.merge(yaml.safe_dump(wanted), tmp_path / "theirs"))
    for key, tensor in all_made(child(base, leaves, name, weight=0.6)).items():
        assert torch.allclose(tensor, theirs[key], rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize("name", CHANCE)
def test_chance_depends_on_the_seed_and_not_on_the_order_of_work(family, name):
    base, leaves = family
    assembly = child(base, leaves, name, density=0.5, seed=3)
    sources = assembly.open()
    names = [info.name for info in sources.tensors]
    backwards = {
        key: torch.cat(list(sources.blocks(key, torch.float32, CPU))) for key in reversed(names)
    }
    for key, tensor in all_made(pickle.loads(pickle.dumps(assembly))).items():
        assert torch.equal(tensor.flatten(), backwards[key])
    other = all_made(child(base, leaves, name, density=0.5, seed=4))
    assert any(not torch.equal(other[key].flatten(), backwards[key]) for key in names)


def test_no_two_tensors_are_thinned_alike(family):
    base, leaves = family
    assembly = child(base, leaves[:1], "dare_linear", density=0.5, rescale=False)
    own = tiny.tensors(base)
    kept = [
        made(assembly, f"model.layers.{layer}.mlp.up_proj.weight")
        != own[f"model.layers.{layer}.mlp.up_proj.weight"]
        for layer in (0, 1)
    ]
    assert not torch.equal(*kept)


def test_filters_and_gradients_give_each_tensor_its_parameters(family):
    base, leaves = family
    density = [{"filter": "mlp", "value": [0.2, 0.6]}, {"value": 1.0}]
    assembly = child(base, leaves[:2], "ties", density=[density, 1.0], weight=[1.0, 0.0])
    own, theirs = tiny.tensors(base), tiny.tensors(leaves[0])
    for key, share in (
        ("model.layers.0.mlp.up_proj.weight", 0.2),
        ("model.layers.1.mlp.up_proj.weight", 0.6),
        ("model.layers.1.self_attn.q_proj.weight", 1.0),
    ):
        moved = made(assembly, key) != own[key]
        assert int(moved.sum()) == int(share * moved.numel())
        assert torch.allclose(made(assembly, key)[moved], theirs[key][moved], atol=1e-7)


def test_a_tensor_that_nobody_changed_is_handed_on_exactly(tmp_path, tiny_base):
    changed = ["model.layers.0.mlp.up_proj.weight"]
    leaves = [
        tiny.finetune(tiny_base, tmp_path / name, seed, tensors=changed)
        for seed, name in enumerate("ab", 1)
    ]
    assembly = child(tiny_base, leaves, "dare_ties", density=0.5)
    own = tiny.tensors(tiny_base)
    for info in assembly.open().tensors:
        same = torch.equal(made(assembly, info.name, torch.bfloat16), own[info.name])
        assert same == (info.name not in changed)


def test_a_parent_may_be_a_merge_of_leaves(family):
    base, leaves = family
    ledger = ledgers.of(base, {folder.name: folder for folder in leaves})
    halves = combine(
        ledger,
        Recipe("linear", ("a", "b"), {"weight": 1.0}),
        [leaf(ledger, "a"), leaf(ledger, "b")],
    )
    folders = {folder.name: folder for folder in leaves}
    first = assemble(ledger, halves, base, folders, "recipe:ab", donor=leaves[0])
    second = assemble(ledger, leaf(ledger, "c"), base, folders, "c", donor=leaves[2])
    recipe = Recipe("ties", ("ab", "c"), {"weight": 1.0, "density": 0.5})
    assembly = whole_tensor_assembly(
        recipe, [first, second], ledger.names, base, "recipe:x", leaves[0]
    )
    own, (a, b, c) = tiny.tensors(base), map(tiny.tensors, leaves)
    parameters = settings("ties", 2, density=0.5)
    for key, tensor in all_made(assembly).items():
        mean = ((a[key].double() + b[key].double()) / 2).float()
        exact = own[key] + reference("ties", [mean - own[key], c[key] - own[key]], parameters)
        # The two magnitudes next to the threshold may be swapped by a rounding of the mean.
        wrong = ~torch.isclose(tensor.double(), exact, rtol=1e-5, atol=1e-6)
        assert int(wrong.sum()) <= 2, key


def test_the_base_and_plain_checkpoints_may_be_parents(family):
    base, leaves = family
    names = ledgers.of(base, {}).names
    parents = [leaf_assembly(base, "base"), leaf_assembly(leaves[0], "a")]
    recipe = Recipe("ties", ("base", "a"), {"weight": 1.0})
    assembly = whole_tensor_assembly(recipe, parents, names, base, "x", leaves[0])
    theirs = tiny.tensors(leaves[0])
    for key, tensor in all_made(assembly).items():
        # A delta of 0 has no sign, so it is not averaged in.
        assert torch.allclose(tensor, theirs[key], atol=1e-7)


def test_a_parents_names_may_have_the_prefix_that_the_bases_lack(tmp_path):
    folders, prefix = [tmp_path / each for each in ("base", "a", "b")], "transformer."
    for seed, folder in enumerate(folders):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4)
            GPT2LMHeadModel(config).save_pretrained(folder)
    expected = all_made(child(folders[0], folders[1:], "ties"))
    own = tiny.tensors(folders[0])
    (folders[0] / "model.safetensors").unlink()
    save_file({k.removeprefix(prefix): t for k, t in own.items()}, folders[0] / "model.safetensors")
    found = all_made(child(folders[0], folders[1:], "ties"))
    assert found.keys() == {key.removeprefix(prefix) for key in expected}
    assert all(torch.equal(found[key.removeprefix(prefix)], t) for key, t in expected.items())


def test_a_written_child_is_the_same_every_time(tmp_path, tiny_base, tiny_finetunes):
    assembly = child(tiny_base, tiny_finetunes, "della", density=0.5)
    first = write(assembly, tmp_path / "first")
    second = write(assembly, tmp_path / "second", shard_bytes=20_000)
    assert first["tokenizer.json"] == second["tokenizer.json"]
    one, other = tiny.tensors(tmp_path / "first"), tiny.tensors(tmp_path / "second")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}


def test_all_tokens_of_all_parents_are_there(tmp_path, family):
    base, leaves = family
    wide = shutil.copytree(leaves[1], tmp_path / "wide")
    grown = {
        key: torch.cat([tensor, torch.full((1, tensor.shape[1]), 0.5)])
        for key, tensor in tiny.tensors(wide).items()
        if key in ("lm_head.weight", "model.embed_tokens.weight")
    }
    tiny.edit(wide, grown)
    tiny.config(wide, vocab_size=tiny.VOCABULARY + 1)
    add_token(wide, "<new>")
    assembly = child(base, [leaves[0], wide], "ties")
    result = made(assembly, "lm_head.weight")
    plain = made(child(base, leaves[:2], "ties"), "lm_head.weight")
    assert torch.equal(result[:-1], plain)
    # Nobody else has it: no delta, so it comes as it is.
    assert torch.equal(result[-1], torch.full((32,), 0.5))
    assert assembly.open().rows == tiny.VOCABULARY + 1


def add_token(folder, token: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)


# What goes wrong.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -3e38])
def test_a_number_that_is_none_is_refused_naming_the_tensor(tmp_path, family, value):
    base, leaves = family
    key = "model.layers.1.mlp.up_proj.weight"
    broken = shutil.copytree(leaves[1], tmp_path / "broken")
    tensor = tiny.tensors(broken)[key].clone()
    tensor[3, 4] = value
    tiny.edit(broken, {key: tensor})
    assembly = child(base, [leaves[0], broken], "ties", density=0.5)
    with pytest.raises(
        ModelError, match=rf"{key} of the parent broken.* NaN, infinity or numbers beyond"
    ):
        made(assembly, key)
    assert bool(made(assembly, "lm_head.weight").isfinite().all())


def test_a_parent_of_another_shape_is_refused(tmp_path, family):
    base, leaves = family
    odd = shutil.copytree(leaves[0], tmp_path / "odd")
    tiny.edit(odd, {"model.norm.weight": torch.ones(31)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight is 31, the base's is 32"):
        child(base, [odd, leaves[1]], "ties").open()


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("linear", {}, "linear is a span method"),
        ("ties", {"denstiy": 0.5}, "did you mean 'density'"),
        ("ties", {"density": [0.5]}, "density has 1 values for 2 parents"),
        ("ties", {"density": [{"filter": "mlp", "value": 1.5}, {"value": 1}]}, "ties: density is"),
        ("della", {"density": 0.9}, "della: epsilon is 0.15"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_read(family, name, parameters, said):
    base, leaves = family
    if isinstance(parameters.get("density"), list) and len(parameters["density"]) == 2:
        parameters = {"density": [parameters["density"], 1.0]}
    with pytest.raises(UsageError, match=said):
        child(base, leaves[:2], name, **parameters)


def test_a_recipe_needs_all_its_parents(family):
    base, leaves = family
    recipe = Recipe("ties", ("a", "b"), {"weight": 1.0})
    parents = [leaf_assembly(leaves[0], "a")]
    with pytest.raises(UsageError, match="a recipe of 2 parents was given 1"):
        whole_tensor_assembly(recipe, parents, ["x"], base, "x", base)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_makes_the_same_child(family, name):
    base, leaves = family
    sources = child(base, leaves, name, density=0.5).open()
    for info in sources.tensors:
        here = torch.cat(list(sources.blocks(info.name, torch.float32, CPU)))
        there = torch.cat(list(sources.blocks(info.name, torch.float32, torch.device("cuda"))))
        assert torch.allclose(here, there.cpu(), rtol=1e-6, atol=1e-7)
