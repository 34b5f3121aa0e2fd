"""Matrix methods: right by slow float64 definitions, on hard matrices, as children of models."""

import shutil

import numpy as np
import pytest
import torch
import yaml

import architectures
import command
import ledgers
import tiny
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights import gram
from kinship_daemon.weights.assembly import assemble, leaf_assembly
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.materialise import write
from kinship_daemon.weights.methods import least_squares
from kinship_daemon.weights.methods.method import needs_inputs
from kinship_daemon.weights.methods.registry import method, methods
from kinship_daemon.weights.recipe import Recipe, check, combine, leaf
from kinship_daemon.weights.whole_tensor import whole_tensor_assembly
from test_adapter import adapter

CPU = torch.device("cpu")
METHODS = [
    name for name, found in methods().items() if found.kind == "matrix" and not needs_inputs(found)
]
# A parent alone is itself; the others change one spectrum, and take two or more.
ALONE = [name for name in METHODS if method(name).parents[0] == 1]
SOLVED = {"wudi", "actmat", "ace", "optmerge"}

# The definitions, in float64 and with numpy's SVD.


def right_multiplied(deltas, sources, scales, ridge):
    grams = [c * s.T @ s for c, s in zip(scales, sources, strict=True)]
    size = len(grams[0])
    shift = ridge * sum(map(np.trace, grams)) / (len(grams) * size)
    grams = [g + shift * np.eye(size) for g in grams]
    return sum(d @ g for d, g in zip(deltas, grams, strict=True)) @ np.linalg.pinv(sum(grams))


def wudi(ds, p):
    return right_multiplied(ds, ds, [1 / np.sum(d * d) for d in ds], p["ridge"])


def actmat(ds, p):
    return right_multiplied(ds, ds, [1] * len(ds), p["ridge"])


def ace(ds, p):
    sources = [d - d.mean(0) for d in ds]
    return right_multiplied(ds, sources, [1 / np.sum(s * s) for s in sources], p["ridge"])


def cut(delta, kept):
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    return u[:, :kept], s[:kept], vt[:kept]


def optmerge(ds, p):
    parts = [cut(d, max(1, min(d.shape) // len(ds))) for d in ds]
    largest = [u * s @ vt for u, s, vt in parts]
    return right_multiplied(largest, largest, [1 / np.sum(d * d) for d in ds], p["ridge"])


def polar(matrix):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    kept = s > 1e-6 * s.max()
    return u[:, kept] @ vt[kept]


def beside(parts):
    u, s, vt = zip(*parts, strict=True)
    return np.concatenate(u, 1), np.concatenate(s), np.concatenate(vt, 0)


def tsv(ds, p):
    u, s, vt = beside([cut(d, max(1, min(d.shape) // len(ds))) for d in ds])
    return polar(u) * s @ polar(vt)


def iso_c(ds, p):
    u, s, vt = np.linalg.svd(sum(ds), full_matrices=False)
    return s.mean() * u @ vt


def iso_cts(ds, p):
    size = min(ds[0].shape)
    own = round((size - int(p["common"] * size)) / len(ds))
    common = cut(sum(ds), size - own * len(ds))
    left = np.eye(len(ds[0])) - common[0] @ common[0].T
    u, s, vt = beside([common, *(cut(left @ d, own) for d in ds)])
    return s.mean() * polar(u) @ polar(vt)


def subspace_boosting(ds, p):
    u, s, vt = np.linalg.svd(sum(ds) / len(ds), full_matrices=False)
    least = s[np.argmax(np.cumsum(s) / s.sum() >= p["beta"])]
    return u * np.maximum(s, least) @ vt


def star(ds, p):
    found = []
    for d in ds:
        u, s, vt = np.linalg.svd(d, full_matrices=False)
        kept = int(np.argmax(np.cumsum(s) / s.sum() >= p["eta"])) + 1
        found.append(u[:, :kept] * (s[:kept] * s.sum() / s[:kept].sum()) @ vt[:kept])
    return sum(found) / len(found)


def svc(ds, p):
    u, s, vt = np.linalg.svd(sum(ds), full_matrices=False)
    for r in range(len(s)):
        whole = u[:, r] @ sum(ds)
        each = [u[:, r] @ d for d in ds]
        s[r] *= len(ds) / sum(max(p["alpha"], whole @ a / (a @ a)) for a in each)
    return u * s @ vt


REFERENCE = {
    f.__name__: f
    for f in (wudi, actmat, ace, optmerge, tsv, iso_c, iso_cts, subspace_boosting, star, svc)
}


def test_every_matrix_method_has_its_definition_here():
    assert list(REFERENCE) != []
    assert sorted(REFERENCE) == METHODS


# The tools of the tests.


def noise(seed, *shape, scale=0.001):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def settings(name, **changes):
    return {p.name: changes.pop(p.name, p.default) for p in method(name).parameters} | changes


def merged(name, deltas, **changes):
    return method(name)([delta.clone() for delta in deltas], settings(name, **changes))


def off_by(found, wanted):
    """Of two matrices, relative to the second."""
    off = (torch.as_tensor(found).double() - torch.as_tensor(wanted).double()).norm()
    return float(off / torch.as_tensor(wanted).double().norm())


# Methods on matrices.

SHAPES = [(48, 30), (30, 48), (36, 36), (12, 60), (60, 12)]
CHANGES = [{}, {"ridge": 0.3, "beta": 0.3, "eta": 0.8, "common": 0.5, "alpha": 0.7}]


@pytest.mark.parametrize("changes", CHANGES, ids=["defaults", "others"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_definition(name, shape, changes):
    known = {p.name for p in method(name).parameters}
    own = settings(name, **{key: value for key, value in changes.items() if key in known})
    for count in (2, 3):
        # Unequal lengths, and a part that all share.
        common = noise(9, *shape)
        deltas = [common + (i + 1) * noise(i, *shape) for i in range(count)]
        exact = REFERENCE[name]([d.double().numpy() for d in deltas], own)
        assert off_by(merged(name, deltas, **own), exact) < 2e-5


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_parents_does_not_matter(name):
    deltas = [(i + 1) * noise(i, 20, 33) for i in range(3)]
    assert off_by(merged(name, deltas[::-1]), merged(name, deltas)) < 3e-5


@pytest.mark.parametrize("factor", [1e-4, 300.0])
@pytest.mark.parametrize("name", METHODS)
def test_deltas_of_another_length_give_a_child_of_that_length(name, factor):
    deltas = [noise(i, 25, 20) for i in range(2)]
    scaled = merged(name, [factor * delta for delta in deltas])
    assert off_by(scaled / factor, merged(name, deltas)) < 1e-5
    assert off_by(merged(name, deltas, **{"lambda": 0.3}), 0.3 * merged(name, deltas)) < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_one_parent_gives_the_parent_or_is_refused(name):
    delta = noise(1, 18, 40)
    if name in ALONE:
        assert off_by(merged(name, [delta]), delta) < 1e-6
    else:
        with pytest.raises(UsageError, match=f"{name} takes 2 to any number parents, not 1"):
            check(Recipe(name, ("a",), {}), ())


@pytest.mark.parametrize("name", sorted(SOLVED - {"optmerge"} | {"svc"}))
def test_parents_that_agree_give_what_they_agree_on(name):
    delta = noise(1, 30, 20)
    assert off_by(merged(name, [delta, delta, delta]), delta) < 1e-5


def orthogonal(count, rank, rows=40, columns=32):
    """Deltas with singular vectors at right angles to those of the others, and to all ones."""
    rng = np.random.default_rng(0)
    ones = np.ones((rows, 1)) / rows**0.5
    left = np.linalg.qr(np.concatenate([ones, rng.normal(size=(rows, count * rank))], 1))[0][:, 1:]
    right = np.linalg.qr(rng.normal(size=(columns, count * rank)))[0]
    blocks = [slice(i * rank, (i + 1) * rank) for i in range(count)]
    # Of one length: no two singular values are the same.
    s = np.linspace(1.0, 1.5, rank) * 1e-3
    deltas = [left[:, each] * s @ right[:, each].T for each in blocks]
    return [torch.from_numpy(delta).float() for delta in deltas]


@pytest.mark.parametrize("name", sorted(SOLVED | {"tsv", "svc"}))
def test_parents_with_nothing_in_common_add_up(name):
    deltas = orthogonal(3, 4)
    # The ridge, 0.01 of the mean eigenvalue, is that of these directions times 4 / 32.
    assert off_by(merged(name, deltas), sum(deltas)) < (3e-3 if name in SOLVED else 1e-5)


def test_of_parents_with_nothing_in_common_iso_makes_all_directions_alike():
    deltas = orthogonal(3, 4)
    for name, changes in (("iso_c", {}), ("iso_cts", {"common": 0.5})):
        s = torch.linalg.svdvals(merged(name, deltas, **changes))
        assert torch.allclose(s[:12], s[:1].expand(12), rtol=1e-4)
        assert float(s[0]) == pytest.approx(1.25e-3, rel=1e-4)
        assert float(s[12]) < 1e-6 * float(s[0])


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_deltas_of_low_rank_stay_in_what_they_span(name, rank):
    deltas = [noise(i, 40, rank) @ noise(10 + i, rank, 30) for i in range(2)]
    found = merged(name, deltas)
    assert bool(found.isfinite().all())
    _, _, span = torch.linalg.svd(torch.cat(deltas).double(), full_matrices=False)
    span = span[: 2 * rank]
    outside = found.double() - found.double() @ span.T @ span
    # float32, of systems whose condition is rank / n times the ridge.
    assert float(outside.norm()) < (2e-4 if name in SOLVED else 1e-6) * float(found.norm())
    assert float(found.norm()) < 10 * sum(float(delta.norm()) for delta in deltas)
    assert off_by(merged(name, deltas[::-1]), found) < 2e-4


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "deltas",
    [
        [torch.zeros(7, 5)] * 2,
        [torch.full((7, 5), 0.01)] * 2,
        [torch.full((7, 5), 0.01), torch.full((7, 5), -0.01)],
        [torch.zeros(7, 5), noise(1, 7, 5)],
        [noise(1, 7, 5), -noise(1, 7, 5)],
        [noise(1, 1, 9), noise(2, 1, 9)],
        [noise(1, 9, 1), noise(2, 9, 1), noise(3, 9, 1)],
        [noise(1, 1, 1), noise(2, 1, 1)],
        [noise(1, 6, 6), 1e-6 * noise(2, 6, 6)],
        [1e25 * noise(1, 9, 6), 1e25 * noise(2, 9, 6)],
        [1e25 * noise(1, 2, 6), noise(2, 2, 6)],
        [1e-25 * noise(1, 6, 6), 1e-25 * noise(2, 6, 6)],
    ],
    ids=[
        *("zeros", "same", "opposite", "one zero", "cancel", "a row", "a column", "one", "tiny"),
        *("huge", "huge beside small", "minute"),
    ],
)
def test_hard_matrices_give_finite_children_no_longer_than_their_parents(name, deltas):
    found = merged(name, deltas)
    assert found.shape == deltas[0].shape
    assert bool(found.isfinite().all())
    # Boosted, every one of few directions is as strong as the strongest.
    longest = sum(float(delta.double().norm()) for delta in deltas) * min(deltas[0].shape) ** 0.5
    assert float(found.double().norm()) <= longest * (1 + 1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_no_matrix_is_averaged(name):
    found = merged(name, [noise(i, 50) for i in range(3)], **{"lambda": 2.0})
    assert torch.allclose(found, 2 * sum(noise(i, 50) for i in range(3)) / 3)


def test_wudis_loss_is_least_there():
    deltas = [noise(i, 20, 30) for i in range(3)]

    def loss(x):
        return sum(float(((x - d) @ d.T / d.norm()).square().sum()) for d in deltas)

    found = merged("wudi", deltas, ridge=1e-6)
    assert loss(found) < 0.999 * loss(sum(deltas))
    for other in (sum(deltas) / 3, *(found + noise(5 + i, 20, 30, scale=1e-5) for i in range(5))):
        assert loss(found) < loss(other)


def test_a_sum_that_float32_cannot_factor_is_solved_with_a_larger_ridge(monkeypatch):
    factor = torch.linalg.cholesky_ex
    for shape, count in (((30, 20), 2), ((30, 20), 3), ((5, 20), 2)):
        failed = iter([1, 1, 0])
        monkeypatch.setattr(
            least_squares.torch.linalg,
            "cholesky_ex",
            lambda system, failed=failed: (factor(system)[0], torch.tensor(next(failed))),
        )
        deltas = [noise(i, *shape) for i in range(count)]
        found = merged("actmat", deltas)
        exact = REFERENCE["actmat"]([d.double().numpy() for d in deltas], {"ridge": 1.0})
        assert off_by(found, exact) < 1e-5
        assert next(failed, None) is None


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("wudi", {"ridge": 0.0}, "ridge is 0: it has to be 1e-06 or more"),
        ("optmerge", {"ridge": -1.0}, "ridge is -1"),
        ("iso_cts", {"common": 1.5}, "common is a share from 0 to 1, not 1.5"),
        ("star", {"eta": 40.0}, "eta is a share from 0 to 1, not 40"),
        ("subspace_boosting", {"beta": -0.1}, "beta is a share"),
        ("svc", {"alpha": 0.0}, "alpha is 0: it has to be above 0"),
    ],
)
def test_parameters_out_of_range_are_refused_before_anything_is_read(family, name, changes, said):
    base, leaves = family
    with pytest.raises(UsageError, match=f"{name}: {said}"):
        child(base, leaves[:2], name, **changes)


# Children of models.


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base in bf16 and three fine-tunes."""
    scratch = tmp_path_factory.mktemp("matrix")
    base = tiny.base(scratch / "base")
    return base, [tiny.finetune(base, scratch / name, seed) for seed, name in enumerate("abc", 1)]


def child(base, leaves, name, **parameters):
    names = ledgers.of(base, {}).names
    recipe = Recipe(name, tuple(folder.name for folder in leaves), parameters)
    parents = [leaf_assembly(folder, folder.name) for folder in leaves]
    return whole_tensor_assembly(recipe, parents, names, base, "recipe:child", leaves[0])


def all_made(assembly, dtype=torch.float32):
    sources = assembly.open()
    return {
        info.name: torch.cat(list(sources.blocks(info.name, dtype, CPU))).view(info.shape)
        for info in sources.tensors
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_child_is_the_base_and_matrices_merged_and_the_rest_averaged(family, name):
    base, leaves = family
    own, weights = tiny.tensors(base), [tiny.tensors(folder) for folder in leaves]
    made = all_made(child(base, leaves, name))
    assert list(made) == sorted(own)
    for key, tensor in made.items():
        deltas = [w[key].double() - own[key].double() for w in weights]
        is_matrix = own[key].dim() == 2 and "embed" not in key and "lm_head" not in key
        if is_matrix:
            exact = REFERENCE[name]([d.numpy() for d in deltas], settings(name))
        else:
            exact = sum(deltas) / 3
        # Of the whole weight: it is added to in float32.
        off = (tensor.double() - own[key].double() - torch.as_tensor(exact)).norm()
        assert float(off) < 1e-4 * float(torch.as_tensor(exact).norm()), key


@pytest.mark.parametrize("name", ["tsv", "wudi"])
def test_a_written_child_is_bf16_and_the_same_every_time(tmp_path, family, name):
    base, leaves = family
    write(child(base, leaves, name), tmp_path / "first")
    write(child(base, leaves, name), tmp_path / "second", shard_bytes=20_000)
    one, other = tiny.tensors(tmp_path / "first"), tiny.tensors(tmp_path / "second")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}


def test_the_childs_ledger_row_can_be_measured_while_it_is_made(tmp_path, family):
    base, leaves = family
    opened = Checkpoint.open(base)
    folders = {folder.name: folder for folder in leaves}
    known = {name: descend(opened, folder) for name, folder in folders.items()}
    ledger = ledgers.of(base, folders)
    with gram.Joining(ledger, opened, known, {"child": tmp_path / "out"}, device="cpu") as rows:
        write(
            child(base, leaves, "iso_c"),
            tmp_path / "out",
            made=lambda name, weights: rows.add(name, [weights]),
        )
        row = rows.ledger()
    again = ledgers.of(base, folders | {"child": tmp_path / "out"})
    assert torch.equal(row.gram[:, -1], again.gram[:, -1])


def test_a_parameter_may_differ_from_tensor_to_tensor(family):
    base, leaves = family
    scale = [{"filter": "mlp", "value": 0.0}, {"value": 1.0}]
    own = tiny.tensors(base)
    made = all_made(child(base, leaves, "svc", **{"lambda": scale}))
    whole = all_made(child(base, leaves, "svc"))
    for key, tensor in made.items():
        assert torch.equal(tensor, own[key].float() if "mlp" in key else whole[key]), key


def test_a_tensor_that_nobody_changed_is_handed_on_exactly(tmp_path, tiny_base):
    changed = ["model.layers.0.mlp.up_proj.weight"]
    leaves = [
        tiny.finetune(tiny_base, tmp_path / n, i, tensors=changed) for i, n in enumerate("ab")
    ]
    own = tiny.tensors(tiny_base)
    for key, tensor in all_made(child(tiny_base, leaves, "tsv"), torch.bfloat16).items():
        assert torch.equal(tensor, own[key]) == (key not in changed)


@pytest.mark.parametrize("name", ["wudi", "iso_c"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_number_that_is_none_is_refused_naming_the_tensor(tmp_path, family, value, name):
    """Two of the largest sum to infinity, over which an eigenvalue solver fails."""
    base, leaves = family
    key = "model.layers.1.mlp.up_proj.weight"
    broken = shutil.copytree(leaves[1], tmp_path / "broken")
    tensor = tiny.tensors(broken)[key].clone()
    tensor[3, 4] = value
    tiny.edit(broken, {key: tensor})
    twin = shutil.copytree(broken, tmp_path / "twin")
    with pytest.raises(ModelError, match=rf"{key} of the parent broken.* NaN, infinity or numbers"):
        all_made(child(base, [broken, twin], name))


def test_tied_embeddings_are_averaged_and_stay_tied(tmp_path):
    base = tiny.base(tmp_path / "base", tied=True)
    leaves = [tiny.finetune(base, tmp_path / name, seed) for seed, name in enumerate("ab", 1)]
    write(child(base, leaves, "wudi"), tmp_path / "out")
    made = tiny.tensors(tmp_path / "out")
    assert "lm_head.weight" not in made
    key = "model.embed_tokens.weight"
    mean = sum(tiny.tensors(folder)[key].float() for folder in leaves) / 2
    assert torch.allclose(made[key].float(), mean, rtol=2**-8)


def test_an_adapter_may_be_a_parent(tmp_path, family):
    base, leaves = family
    adapter(base, tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    folders = {"a": leaves[0], "lora": tmp_path / "lora"}
    ledger = ledgers.of(base, folders)
    parents = [
        assemble(ledger, leaf(ledger, row), base, folders, row, donor=leaves[0]) for row in folders
    ]
    recipe = Recipe("wudi", tuple(folders), {})
    made = all_made(whole_tensor_assembly(recipe, parents, ledger.names, base, "x", leaves[0]))
    own, theirs = tiny.tensors(base), tiny.tensors(leaves[0])
    key = "model.layers.0.self_attn.k_proj.weight"
    # The adapter has no delta there: what the fine-tune does to its inputs stays.
    delta = theirs[key].double() - own[key].double()
    exact = right_multiplied(
        [delta.numpy(), 0 * delta.numpy()],
        [delta.numpy()] * 2,
        [1 / float(delta.norm()) ** 2, 0],
        0.01,
    )
    assert off_by(made[key].double() - own[key].double(), exact) < 1e-4
    low_rank = (
        made["model.layers.0.self_attn.q_proj.weight"]
        - own["model.layers.0.self_attn.q_proj.weight"]
    )
    assert bool(low_rank.isfinite().all())


def test_a_parent_may_be_a_merge_of_leaves(family):
    base, leaves = family
    folders = {folder.name: folder for folder in leaves}
    ledger = ledgers.of(base, folders)
    halves = combine(
        ledger, Recipe("linear", ("a", "b"), {"weight": 1.0}), [leaf(ledger, x) for x in "ab"]
    )
    first = assemble(ledger, halves, base, folders, "recipe:ab", donor=leaves[0])
    second = assemble(ledger, leaf(ledger, "c"), base, folders, "c", donor=leaves[2])
    recipe = Recipe("tsv", ("ab", "c"), {})
    made = all_made(
        whole_tensor_assembly(recipe, [first, second], ledger.names, base, "x", leaves[0])
    )
    own, (a, b, c) = tiny.tensors(base), map(tiny.tensors, leaves)
    key = "model.layers.1.mlp.gate_proj.weight"
    mean = (a[key].double() + b[key].double()) / 2 - own[key].double()
    exact = tsv([mean.numpy(), (c[key].double() - own[key].double()).numpy()], {})
    assert off_by(made[key].double() - own[key].double(), exact) < 1e-4


def test_biases_are_averaged(tmp_path):
    base = architectures.base("Qwen2ForCausalLM", tmp_path / "base")
    leaves = [tiny.finetune(base, tmp_path / name, seed) for seed, name in enumerate("ab", 1)]
    key = "model.layers.0.self_attn.q_proj.bias"
    mean = sum(tiny.tensors(folder)[key].float() for folder in leaves) / 2
    assert torch.allclose(all_made(child(base, leaves, "tsv"))[key], mean, atol=1e-6)


def test_a_recipe_in_yaml_is_merged_by_hand(tmp_path, family, monkeypatch, capfd):
    base, leaves = family
    recipe = {
        "merge_method": "optmerge",
        "base_model": str(base),
        "models": [{"model": str(folder)} for folder in leaves],
        "parameters": {"lambda": [0.5, 1.5], "ridge": 0.02},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = command.call(
        ["merge", tmp_path / "recipe.yml", tmp_path / "out", "--device", "cpu"], monkeypatch, capfd
    )
    assert done.code == 0, done.err
    by_hand = tiny.tensors(tmp_path / "out")
    changes = {"lambda": [0.5, 1.5], "ridge": 0.02}
    for key, tensor in all_made(child(base, leaves, "optmerge", **changes), torch.bfloat16).items():
        assert torch.equal(by_hand[key], tensor), key


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_makes_nearly_the_same_child(family, name):
    base, leaves = family
    on_cpu = child(base, leaves, name)
    names = ledgers.of(base, {}).names
    recipe = Recipe(name, tuple(folder.name for folder in leaves), {})
    there = whole_tensor_assembly(recipe, on_cpu.parents, names, base, "x", leaves[0], "cuda")
    for key, tensor in all_made(there).items():
        assert torch.allclose(tensor, all_made(on_cpu)[key], rtol=1e-4, atol=1e-6), key
