"""mergekit's YAML: what is read as mergekit reads it, what is refused, and what we write."""

import random

import pytest
import torch
import yaml

import command
import ledgers
import mergekit_oracle
import tiny
from kinship_daemon.errors import UsageError
from kinship_daemon.weights.assembly import weights_over
from kinship_daemon.weights.mergekit import (
    Unsupported,
    collapsed_yaml,
    in_order,
    read_yaml,
    references,
    several_yaml,
    to_yaml,
)
from kinship_daemon.weights.mergekit.writing import _containing
from kinship_daemon.weights.parameters import per_tensor
from kinship_daemon.weights.recipe import Recipe, combine, leaf

# As people publish them.
CLASSIC = """
slices:
  - sources:
      - model: org/first
        layer_range: [0, 5]
      - model: org/second
        layer_range: [0, 5]
merge_method: slerp
base_model: org/second
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""

WEIGHTED = """
models:
  - model: org/first
    parameters:
      weight: 1e-1
  - model: org/second
    parameters:
      weight:
        - filter: mlp
          value: [0, 2]
        - value: 3
merge_method: linear
parameters:
  normalize: false
dtype: float16
"""

NAMES = [
    "lm_head.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("mlp.up", "self_attn.q")),
]


def values(setting, boolean=False) -> dict:
    found = per_tensor("x", setting, NAMES, boolean=boolean)
    return dict(zip(NAMES, found.tolist(), strict=True))


def test_the_classic_slerp():
    wanted = read_yaml(CLASSIC)
    assert wanted.recipe.method == "slerp"
    assert wanted.recipe.parents == ("org/second", "org/first")  # from base_model to the other
    assert (wanted.base, wanted.dtype, wanted.layers) == ("org/second", "bfloat16", 5)
    t = values(wanted.recipe.parameters["t"])
    assert [t[f"model.layers.{i}.self_attn.q.weight"] for i in range(5)] == [0, 0.5, 0.3, 0.7, 1]
    assert [t[f"model.layers.{i}.mlp.up.weight"] for i in range(5)] == [1, 0.5, 0.7, 0.3, 0]
    assert t["lm_head.weight"] == 0.5


def test_weights_by_filter_and_gradient():
    wanted = read_yaml(WEIGHTED)
    assert wanted.recipe.parents == ("org/first", "org/second")
    assert (wanted.base, wanted.dtype, wanted.layers) == ("org/first", "float16", None)
    first, second = wanted.recipe.parameters["weight"]
    assert first == 0.1
    weights = values(second)
    assert [weights[f"model.layers.{i}.mlp.up.weight"] for i in range(5)] == [0, 0.5, 1, 1.5, 2]
    assert weights["lm_head.weight"] == weights["model.layers.2.self_attn.q.weight"] == 3
    assert wanted.recipe.parameters["normalize"] is False


def test_the_nearest_setting_wins_and_the_next_fills_its_gaps():
    text = """
slices:
  - sources:
      - {model: a, layer_range: [0, 5], parameters: {weight: {filter: mlp, value: 1}}}
      - {model: b, layer_range: [0, 5]}
    parameters: {weight: {filter: self_attn, value: 2}}
merge_method: linear
parameters: {weight: 3}
"""
    first, second = map(values, read_yaml(text).recipe.parameters["weight"])
    mlp, attention = "model.layers.0.mlp.up.weight", "model.layers.0.self_attn.q.weight"
    assert (first[mlp], first[attention], first["lm_head.weight"]) == (1, 2, 3)
    assert (second[mlp], second[attention], second["lm_head.weight"]) == (3, 2, 3)


def test_linear_adds_its_base_model_with_the_weight_of_all():
    text = "{merge_method: linear, base_model: c, models: [{model: a}], parameters: {weight: 2}}"
    wanted = read_yaml(text)
    assert wanted.recipe.parents == ("a", "c")
    assert wanted.recipe.parameters["weight"] == [2, 2]
    assert wanted.base == "c"


def test_slerp_adds_its_base_model_in_front():
    text = "{merge_method: slerp, base_model: c, models: [{model: a}], parameters: {t: 0.2}}"
    assert read_yaml(text).recipe.parents == ("c", "a")


def test_the_result_has_the_dtype_that_is_written_out():
    text = "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}], "
    assert read_yaml(text + "dtype: float32, out_dtype: bfloat16}").dtype == "bfloat16"
    assert read_yaml(text + "dtype: float32}").dtype == "float32"
    assert read_yaml(text + "}").dtype is None


def test_the_ancestor_is_no_parent_and_its_own_parameters_count_for_nothing():
    models = [{"model": "base", "parameters": {"weight": 9}}, {"model": "a"}, {"model": "b"}]
    for listed in (models, models[1:]):
        wanted = read_yaml(yaml.safe_dump(TASK | {"models": listed}))
        assert wanted.recipe == Recipe("task_arithmetic", ("a", "b"), {"weight": [0.5, 0.5]})
        assert wanted.base == "base"


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_spheres_turn_differences_where_base_model_is_given(name):
    recipe = TASK | {"merge_method": name}
    wanted = read_yaml(yaml.safe_dump(recipe))
    assert wanted.recipe == Recipe(name, ("a", "b"), {"weight": [0.5, 0.5], "of_deltas": True})
    assert wanted.base == "base"
    del recipe["base_model"]
    wanted = read_yaml(yaml.safe_dump(recipe))
    assert wanted.recipe == Recipe(name, ("a", "b"), {"weight": [0.5, 0.5]})
    assert wanted.base == "a"


def test_karcher_takes_its_base_model_for_one_more():
    recipe = {"merge_method": "karcher", "base_model": "c", "models": [{"model": "a"}]}
    assert read_yaml(yaml.safe_dump(recipe)).recipe == Recipe("karcher", ("a", "c"), {})


def test_slices_do_not_gain_a_model_from_base_model():
    slices = [{"sources": sources([0, 5], [0, 5])}]
    recipe = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}}
    wanted = read_yaml(yaml.safe_dump(recipe | {"base_model": "c"}))
    assert (wanted.recipe.parents, wanted.base) == (("a", "b"), "c")


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("task_arithmetic", {"int8_mask": True, "density": 0.5, "rescale": True}),
        ("nuslerp", {"nuslerp_flatten": True, "nuslerp_row_wise": False}),
    ],
)
def test_what_makes_no_difference_is_dropped(name, dropped):
    recipe = TASK | {"merge_method": name, "parameters": {"weight": 0.5} | dropped}
    plain = TASK | {"merge_method": name}
    assert read_yaml(yaml.safe_dump(recipe)) == read_yaml(yaml.safe_dump(plain))


def test_empty_keys_and_the_merges_own_name_say_nothing():
    more = {"name": "mine", "slices": None, "tokenizer": None, "chat_template": None}
    assert read_yaml(yaml.safe_dump(TASK | more)) == read_yaml(yaml.safe_dump(TASK))


def test_where_no_condition_decides_the_methods_default_does():
    density = {"filter": "mlp", "value": 0.25}
    models = [{"model": "a", "parameters": {"density": density}}, {"model": "b"}]
    text = yaml.safe_dump(TASK | {"merge_method": "ties", "models": models})
    first, second = read_yaml(text).recipe.parameters["density"]
    found = values(first)
    assert found["model.layers.0.mlp.up.weight"] == 0.25
    assert found["lm_head.weight"] == second == 1


def test_the_tokenizer_is_the_bases_or_a_models():
    for said, tokenizer, donor in (
        ({}, None, "base"),
        ({"tokenizer_source": "union"}, "union", "base"),
        ({"tokenizer": {"source": "base"}}, "base", "base"),
        ({"tokenizer": {}}, "union", "base"),
        ({"tokenizer_source": "b"}, "b", "b"),
        ({"tokenizer": {"source": "c"}}, "c", "c"),
    ):
        wanted = read_yaml(yaml.safe_dump(TASK | said))
        assert (wanted.tokenizer, wanted.donor) == (tokenizer, donor)
        assert wanted.models == tuple(dict.fromkeys(("base", "a", "b", donor)))


def test_adapters_are_parents_by_what_they_are_for():
    models = [{"model": "base+one"}, {"model": "base+two"}, {"model": "c"}]
    wanted = read_yaml(yaml.safe_dump(TASK | {"models": models}))
    assert wanted.recipe.parents == ("base+one", "base+two", "c")
    assert (wanted.base, wanted.donor) == ("base", "base")
    assert wanted.models == ("base", "one", "two", "c")
    wanted = read_yaml(yaml.safe_dump(LINEAR | {"models": models, "parameters": {"weight": 1}}))
    assert (wanted.base, wanted.donor) == ("base", "base")
    between = {"base_model": "base+one", "models": models[:2]}
    wanted = read_yaml(yaml.safe_dump(SLERP | between))
    assert wanted.recipe.parents == ("base+one", "base+two")
    assert (wanted.base, wanted.donor) == ("base", "base")


def test_what_mergekit_may_know_is_told_from_mistakes():
    for recipe in (
        TASK | {"merge_method": "passthrough"},
        TASK | {"models": [{"model": "other+lora"}]},
        TASK | {"models": [{"model": "base+one"}, {"model": "other+two"}]},
        TASK | {"chat_template": "auto"},
        TASK | {"merge_method": "model_stock", "parameters": {"filter_wise": True}},
    ):
        with pytest.raises(Unsupported):
            read_yaml(yaml.safe_dump(recipe))
    with pytest.raises(UsageError) as caught:
        read_yaml(yaml.safe_dump(TASK | {"parameters": {"wait": 1}}))
    assert not isinstance(caught.value, Unsupported)


def test_slices_must_cover_the_model():
    wanted = read_yaml(CLASSIC)
    wanted.check(NAMES)
    with pytest.raises(Unsupported, match=r"covers 5 of the model's 32 layers.*\[0, 32\]"):
        wanted.check(["model.layers.31.mlp.up.weight"])
    read_yaml(WEIGHTED).check(["model.layers.31.mlp.up.weight"])


SLERP = {
    "merge_method": "slerp",
    "base_model": "a",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"t": 0.5},
}
LINEAR = {
    "merge_method": "linear",
    "models": [{"model": m, "parameters": {"weight": 1}} for m in "ab"],
}
TASK = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"weight": 0.5},
}


def sources(*ranges):
    return [{"model": m, "layer_range": r} for m, r in zip("ab", ranges, strict=True)]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (SLERP | {"merge_method": "slrep"}, "'slrep' is not one of ours .*mean 'slerp'"),
        (SLERP | {"merge_method": None}, "merge_method None"),
        (SLERP | {"tokenizer_source": 3}, "tokenizer_source: expected the name of a model"),
        (SLERP | {"tokenizer": {"tokens": {}}}, "tokenizer: 'tokens' is not supported"),
        (SLERP | {"tokenizer": {"sauce": "a"}}, "tokenizer: has a source, not 'sauce'"),
        (SLERP | {"tokenizer_source": "base", "tokenizer": {}}, "either tokenizer or"),
        (SLERP | {"chat_template": "auto"}, "'chat_template' is not supported"),
        (SLERP | {"paramters": {}}, "no 'paramters'; did you mean 'parameters'"),
        (SLERP | {"modules": {}}, "'modules' is not supported"),
        (SLERP | {"dtype": "int8"}, "dtype 'int8' is not supported"),
        (SLERP | {"base_model": "a+b+c"}, "expected the base and one adapter"),
        (SLERP | {"base_model": "a+"}, "expected the base and one adapter"),
        (SLERP | {"tokenizer_source": "a+b"}, "not an adapter"),
        (SLERP | {"base_model": {"path": 1}}, "expected a model's path"),
        (SLERP | {"base_model": {"name": "a"}}, "expected the name of a model"),
        (
            SLERP | {"base_model": {"model": "a", "override_architecture": "X"}},
            "override_architecture of a model is not supported",
        ),
        (SLERP | {"base_model": "c"}, "slerp takes base_model and one other, not c, a, b"),
        ({k: v for k, v in SLERP.items() if k != "base_model"}, "slerp needs base_model"),
        (SLERP | {"parameters": {}}, "needs the parameter 't'"),
        (SLERP | {"parameters": {"t": "half"}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": [0, "half"]}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": []}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": "nan"}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": [{"value": 1}, 2]}}, "t: a condition is"),
        (SLERP | {"parameters": {"t": [{"filter": "x", "v": 2}]}}, "t: a condition is"),
        (TASK | {"parameters": {"wieght": 1}}, "no 'wieght'; did you mean 'weight'"),
        (SLERP | {"t": 0.5}, "'t' is not for the top of a recipe: it belongs under parameters"),
        (SLERP | {"base_modle": "a"}, "no 'base_modle'; did you mean 'base_model'"),
        (SLERP | {"models": [{"modell": "a"}, {"model": "b"}]}, "did you mean 'model'"),
        (TASK | {"base_model": None}, "task_arithmetic needs base_model"),
        ({k: v for k, v in TASK.items() if k != "base_model"}, "task_arithmetic needs base_model"),
        (TASK | {"models": [{"model": "base"}]}, "needs a model beside base_model"),
        (TASK | {"merge_method": "nuslerp", "models": [{"model": "a"}]}, "takes 2 parents, not 1"),
        (
            TASK | {"merge_method": "nuslerp", "parameters": {"weight": 1, "nuslerp_flatten": 0}},
            "nuslerp_flatten is not supported but as true",
        ),
        (
            TASK | {"merge_method": "model_stock", "parameters": {"filter_wise": True}},
            "filter_wise is not supported but as false",
        ),
        (SLERP | {"parameters": [1]}, "parameters: expected a mapping"),
        (
            SLERP | {"models": [{"model": "a", "parameters": {"t": 1}}, {"model": "b"}]},
            "t is not set per model; move it from a to parameters",
        ),
        (SLERP | {"models": [{"model": "a"}, {"model": "a"}]}, "a is there twice"),
        (SLERP | {"models": []}, "models: expected a list"),
        (SLERP | {"models": ["a", "b"]}, "models: expected a mapping"),
        (SLERP | {"models": [{"model": "a", "layer_range": [0, 1]}]}, "an entry has model, param"),
        (SLERP | {"slices": []}, "either models or slices"),
        (LINEAR | {"base_model": "c"}, "c needs the parameter 'weight'"),
        ({"merge_method": "linear"}, "either models or slices"),
        ({"merge_method": "linear", "slices": []}, "only one slice"),
        ({"merge_method": "linear", "slices": [{"sources": []}]}, "sources: expected a list"),
        ({"merge_method": "linear", "slices": [{"sources": sources([0, 8], [8, 16])}]}, "layer_ra"),
        ({"merge_method": "linear", "slices": [{"sources": sources([4, 8], [4, 8])}]}, "layer_ra"),
        ({"merge_method": "linear", "slices": [{"sources": sources([0, 8], None)}]}, "layer_range"),
        (
            {"merge_method": "linear", "slices": [{"sources": sources([0, 8], [0, 8])}] * 2},
            "only one slice",
        ),
        ([SLERP], "not a merge recipe"),
        ("slerp", "not a merge recipe"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(recipe, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(yaml.safe_dump(recipe))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "\x00", "", "- &a [*a]"])
def test_what_is_no_yaml_is_refused(text):
    with pytest.raises(UsageError):
        read_yaml(text)


GRADIENT = [{"filter": "mlp", "value": [0.1, 1]}, {"value": 0.3}]
FILTERED = [0.25, [{"filter": "mlp", "value": 0.5}, {"value": 1}]]
SPAN = [
    Recipe("slerp", ("a", "b"), {"t": 0.5}),
    Recipe("slerp", ("a", "b"), {"t": GRADIENT}),
    Recipe("linear", ("a", "b"), {"weight": [0.25, [0.5, 1.0]], "normalize": True}),
    Recipe("linear", ("a", "b"), {"weight": FILTERED}),
    Recipe("task_arithmetic", ("a", "b"), {"weight": FILTERED, "lambda": 1.25}),
    Recipe("task_arithmetic", ("a", "b", "c"), {"weight": [1, 0.5, 2], "normalize": True}),
    Recipe("nuslerp", ("a", "b"), {"weight": [0.25, [0.5, 1]]}),
    Recipe("nuslerp", ("a", "b"), {"weight": [0.25, 1], "of_deltas": True}),
    Recipe("multislerp", ("a", "b", "c"), {"weight": [1, 0.5, 2]}),
    Recipe("multislerp", ("a", "b", "c"), {"weight": [1, 0.5, 2], "of_deltas": True}),
    Recipe("karcher", ("a", "b", "c"), {"max_iter": 20}),
    Recipe("model_stock", ("a", "b", "c"), {}),
]
ELEMENTWISE = [
    Recipe("ties", ("a", "b", "c"), {"weight": [*FILTERED, 1], "density": [0.5, 0.25, 1]}),
    Recipe("ties", ("a", "b"), {"weight": [1, 1], "density": [0.5, 0.5], "normalize": False}),
    Recipe("breadcrumbs", ("a", "b"), {"weight": [1, 0.5], "density": [0.5, 0.7]}),
    Recipe(
        "breadcrumbs_ties",
        ("a", "b"),
        {"weight": [1, 0.5], "density": [0.9, 0.7], "gamma": [0.02, 0.1], "lambda": 0.5},
    ),
    # Chance decides nothing where all is kept.
    Recipe("dare_linear", ("a", "b"), {"weight": [1, 0.5], "density": [1.0, 1.0]}),
    Recipe("dare_ties", ("a", "b"), {"weight": [1, 0.5], "density": [1.0, 1.0]}),
    Recipe("della", ("a", "b"), {"weight": [1, 0.5], "density": [1.0, 1.0]}),
    Recipe("della_linear", ("a", "b"), {"weight": [1, 0.5], "density": [1.0, 1.0]}),
]

OURS = [
    Recipe("wudi", ("a", "b"), {"ridge": 0.1}),
    Recipe("iso_cts", ("a", "b", "c"), {"common": GRADIENT, "lambda": 1.5}),
    Recipe("metagpt", ("a", "b"), {"lambda": 0.5}),
    Recipe("frobenius", ("a", "b"), {"k": 1.0}),
    Recipe("nan", ("a", "b"), {"delta_norms": True}),
]


def told(recipe: Recipe) -> str:
    return f"{recipe.method}-{'-'.join(recipe.parameters)}"


@pytest.mark.parametrize("recipe", SPAN + ELEMENTWISE + OURS, ids=told)
def test_a_recipe_as_made_is_read_back(recipe):
    names = {"a": "org/a", "b": "kinship/model-1-2", "c": "org/c"}
    text = to_yaml(recipe, names, "org/base", "bfloat16")
    wanted = read_yaml(text)
    parents = tuple(names[parent] for parent in recipe.parents)
    assert wanted.recipe == Recipe(recipe.method, parents, recipe.parameters)
    assert wanted.dtype == "bfloat16"
    assert "org/base" in text


@pytest.mark.parametrize("recipe", SPAN + ELEMENTWISE + OURS, ids=told)
def test_a_method_that_mergekit_lacks_is_said_to_be_ours_alone(recipe):
    registry = pytest.importorskip("mergekit.merge_methods.registry")
    text = to_yaml(recipe, dict(zip("abc", "abc", strict=True)), "org/base", "bfloat16")
    has = {each.spec.name for each in registry.registered_methods()}
    assert (f"# mergekit has no {recipe.method}" in text) == (recipe.method not in has)


@pytest.mark.parametrize("step", [0.5, [0.1, 0.5], GRADIENT])
def test_extrapolation_is_told_as_linear(ledger, step):
    pair = [leaf(ledger, ledger.base), leaf(ledger, "sha256:a")]
    recipe = Recipe("extrapolation", ("a", "base"), {"lambda": step})
    text = to_yaml(recipe, {"a": "org/a", "base": "org/base"}, "org/base", "bfloat16")
    assert "# mergekit has no extrapolation" in text
    wanted = read_yaml(text)
    assert (wanted.recipe.method, wanted.recipe.parents) == ("linear", ("org/a", "org/base"))
    ours, theirs = (combine(ledger, each, pair[::-1]) for each in (recipe, wanted.recipe))
    assert torch.allclose(ours.deltas, theirs.deltas, rtol=0, atol=1e-15)
    assert torch.allclose(ours.base, theirs.base, rtol=0, atol=1e-15)


def test_what_mergekit_cannot_say_is_refused():
    of_deltas = [{"filter": "mlp", "value": True}, {"value": False}]
    recipe = Recipe("nuslerp", ("a", "b"), {"weight": 1, "of_deltas": of_deltas})
    with pytest.raises(UsageError, match="of_deltas for all tensors or for none"):
        to_yaml(recipe, {"a": "a", "b": "b"}, "base", "bfloat16")


def steps(made: torch.Tensor, other: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    """
    How many bf16 values lie between two, counted from 0 for the same.

    Where the inputs cancel, float32's rounding of them is all that is left, and counts for nothing.
    """

    def place(tensor):
        bits = tensor.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    noise = 2.0**-22 * torch.stack([tensor.float().abs() for tensor in inputs]).amax(0)
    apart = (place(made) - place(other)).abs()
    return torch.where((made.float() - other.float()).abs() <= noise, 0, apart)


def both(recipe, folders, base, dtype, place, monkeypatch, capfd):
    """The recipe's YAML as mergekit makes it and as we do: tensors by name, twice."""
    text = to_yaml(recipe, {name: str(folder) for name, folder in folders.items()}, base, dtype)
    (place / "recipe.yml").write_text(text)
    theirs = mergekit_oracle.merge(text, place / "theirs")
    arguments = ["merge", place / "recipe.yml", place / "ours", "--device", "cpu"]
    result = command.call(arguments, monkeypatch, capfd)
    assert result.code == 0, result.err
    ours, theirs = tiny.tensors(place / "ours"), tiny.tensors(theirs)
    assert ours.keys() == theirs.keys()
    assert {t.dtype for t in (*ours.values(), *theirs.values())} == {getattr(torch, dtype)}
    return ours, theirs


@pytest.mark.parametrize("recipe", SPAN, ids=told)
def test_mergekit_makes_the_same_of_a_span_recipe(
    recipe, tiny_base, tiny_finetunes, tmp_path, monkeypatch, capfd
):
    folders = {folder.name: folder for folder in tiny_finetunes}
    ours, theirs = both(recipe, folders, str(tiny_base), "bfloat16", tmp_path, monkeypatch, capfd)
    sources = [tiny.tensors(folder) for folder in (tiny_base, *tiny_finetunes)]
    apart = torch.cat(
        [
            steps(tensor, theirs[name], [source[name] for source in sources]).flatten()
            for name, tensor in ours.items()
        ]
    )
    assert apart.max() <= 2
    assert (apart <= 1).double().mean() >= 0.999


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A base and fine-tunes in float32, where rounding hides no difference of method."""
    scratch = tmp_path_factory.mktemp("wide")
    base = tiny.base(scratch / "base", dtype=torch.float32)
    return base, {n: tiny.finetune(base, scratch / n, seed=i) for i, n in enumerate("abc", start=1)}


@pytest.mark.parametrize("recipe", ELEMENTWISE, ids=told)
def test_mergekit_makes_the_same_of_an_elementwise_recipe(
    recipe, wide, tmp_path, monkeypatch, capfd
):
    base, folders = wide
    ours, theirs = both(recipe, folders, str(base), "float32", tmp_path, monkeypatch, capfd)
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-6, atol=1e-7), name


FIRST = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n"
LAST = "merge_method: linear\nmodels: [{model: child}, {model: c}]\n"


def test_merges_of_merges_are_told_in_several_documents():
    text = several_yaml({"child": FIRST}, LAST)
    documents = in_order(text)
    assert [document.name for document in documents] == ["child", None]
    assert [references(document.text) for document in documents] == [("a", "b"), ("child", "c")]
    # mergekit takes them in any order.
    turned = in_order(f"{LAST}---\nname: child\n{FIRST}")
    assert [document.name for document in turned] == ["child", None]
    assert in_order(FIRST)[0].text == FIRST


def test_mergekit_reads_several_documents_alike():
    multimerge = pytest.importorskip("mergekit.scripts.multimerge")
    merges, needed = multimerge.load_config(several_yaml({"child": FIRST}, LAST), "scratch")
    assert needed == {"child": set(), None: {"child"}}
    assert merges["child"].merge_method == "slerp"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FIRST}---\n{LAST}", "all but the last one made have a name"),
        (f"name: x\n{FIRST}---\nname: y\n{FIRST}", "all but the last one made have a name"),
        (f"name: x\n{FIRST}---\nname: x\n{FIRST}---\n{LAST}", "two merges are called x"),
        (f"name: ../x\n{FIRST}---\n{LAST}", "expected a plain name"),
        (f"name: a\n{FIRST}---\n{LAST}", "use each other: a, None"),
        ("a: &a [*a]\n---\n{}\n", "names nothing, or what it is a part of"),
        ("name: x\nmodels: &a [*a]\n---\n{}\n", "names nothing, or what it is a part of"),
        ("1\n---\n2\n", "not a merge recipe"),
    ],
)
def test_several_documents_that_make_no_sense_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        in_order(text)


def test_models_are_found_wherever_mergekit_looks_for_them():
    text = """
slices:
  - base_model: one
    sources: [{model: two+three, layer_range: [0, 1]}, {model: one, layer_range: [0, 1]}]
    parameters: {source: 1, t: {filter: model, value: 2}}
merge_method: passthrough
tokenizer:
  source: union
  tokens:
    model: {source: four}
    <s>: {source: {kind: model_token, model: five, token: <s>}}
chat_template: chatml
"""
    assert references(text) == ("one", "two", "three", "four", "five")


def test_one_weight_for_all_is_written_for_each():
    recipe = Recipe("linear", ("a", "b"), {"weight": 0.5})
    wanted = read_yaml(to_yaml(recipe, {"a": "a", "b": "b"}, "base", "float32"))
    assert wanted.recipe.parameters == {"weight": [0.5, 0.5]}


def same_after_reading(ledger, child, names, base) -> str:
    """The collapsed YAML, after checking that what it says is the child."""
    text = collapsed_yaml(ledger, child, names, base, "bfloat16")
    wanted = read_yaml(text)
    assert wanted.recipe.method == "linear"
    rows = {name: row for row, name in names.items()} | {base: ledger.base}
    parents = [leaf(ledger, rows[name]) for name in wanted.recipe.parents]
    again = combine(ledger, wanted.recipe, parents)
    assert again.rows == child.rows
    assert torch.allclose(again.base, child.base, rtol=0, atol=1e-12)
    assert torch.allclose(again.deltas, child.deltas, rtol=0, atol=1e-12)
    return text


@pytest.fixture(scope="module")
def ledger(tiny_base, tiny_finetunes):
    leaves = {f"sha256:{folder.name}": folder for folder in tiny_finetunes}
    return ledgers.of(tiny_base, leaves, "sha256:base")


REPOS = {f"sha256:{name}": f"org/{name}" for name in "abc"}


def test_a_linear_tree_collapses_to_one_number_a_leaf(ledger):
    a, b, c = (leaf(ledger, row) for row in REPOS)
    pair = Recipe("linear", ("x", "y"), {"weight": 1.0})
    child = combine(ledger, pair, [combine(ledger, pair, [a, b]), c])
    text = same_after_reading(ledger, child, REPOS, "org/base")
    wanted = yaml.safe_load(text)
    assert wanted["models"] == [
        {"model": f"org/{name}", "parameters": {"weight": weight}}
        for name, weight in (("a", 0.25), ("b", 0.25), ("c", 0.5))
    ]
    assert wanted["parameters"] == {"normalize": False}
    assert wanted["base_model"] == "org/a"  # whose tokenizer goes along


def test_a_slerp_tree_collapses_to_weights_by_tensor(ledger):
    a, b, c = (leaf(ledger, row) for row in REPOS)
    slerp = Recipe("slerp", ("x", "y"), {"t": 0.3})
    child = combine(ledger, slerp, [combine(ledger, slerp, [a, b]), c])
    text = same_after_reading(ledger, child, REPOS, "org/base")
    assert [m["model"] for m in yaml.safe_load(text)["models"]] == ["org/a", "org/b", "org/c"]


def test_the_base_is_listed_where_it_has_a_weight(ledger):
    base, a = leaf(ledger, ledger.base), leaf(ledger, "sha256:a")
    weight = [[{"filter": "mlp", "value": 1.0}, {"value": 0.0}], 1.0]
    child = combine(ledger, Recipe("linear", ("x", "y"), {"weight": weight}), [base, a])
    text = same_after_reading(ledger, child, REPOS, "org/base")
    models = yaml.safe_load(text)["models"]
    assert [model["model"] for model in models] == ["org/a", "org/base"]
    assert models[1]["parameters"]["weight"][-1] == {"value": 0.0}
    assert len(models[1]["parameters"]["weight"]) == 1 + 6  # three mlp tensors in two layers


def test_the_base_alone_can_be_collapsed(ledger):
    same_after_reading(ledger, leaf(ledger, ledger.base), REPOS, "org/base")


def test_names_that_are_part_of_others_are_all_found():
    draw = random.Random(0)
    for longest in (1, 3, 9):
        names = sorted(
            {"".join(draw.choices("ab.", k=draw.randint(1, longest))) for _ in range(50)}
        )
        expected = {name: {other for other in names if name in other} for name in names}
        assert _containing(names) == expected


def test_a_filter_that_is_part_of_another_name_is_no_trap(tmp_path):
    names = ("w", "w.more", "a.w", "v", "a.w.more", "other")
    noise = torch.Generator().manual_seed(0)
    base = {name: torch.randn(20, generator=noise) for name in names}
    tiny.bare(tmp_path / "base", base)
    for name in "xy":
        tiny.bare(
            tmp_path / name, {n: t + torch.randn(20, generator=noise) for n, t in base.items()}
        )
    ledger = ledgers.of(tmp_path / "base", {name: tmp_path / name for name in "xy"})
    pair = [leaf(ledger, "x"), leaf(ledger, "y")]
    # `w` differs, while names that contain it share the others' weight.
    two = [("w.more", 1), ("a.w", 1), ("w", 2), ("*", 1)]
    weight = [[{"filter": name, "value": value} for name, value in two], 1]
    trees = [
        Recipe("slerp", ("x", "y"), {"t": 0.3}),
        Recipe("linear", ("x", "y"), {"weight": weight, "normalize": False}),
    ]
    for recipe in trees:
        child = combine(ledger, recipe, pair)
        same_after_reading(ledger, child, {"x": "org/x", "y": "org/y"}, "org/base")
    assert weights_over(child)[:, 1].tolist() == [1, 1, 1, 1, 2, 1]


IGNORED = """
merge_method: linear
random_seed: 0
int8_mask: true
models:
  - {model: a, parameters: {weight: 0.6, density: 0.5}, comment: mine}
  - {model: {model: {path: b, revision: v1}, lora: null}, parameters: {weight: 0.4}}
"""


def test_what_mergekit_reads_over_is_left_out_and_said():
    wanted = read_yaml(IGNORED)
    assert wanted.recipe.parameters == {"weight": [0.6, 0.4]}
    assert wanted.recipe.parents == ("a", "b@v1")
    assert wanted.ignored == ("random_seed", "int8_mask", "comment", "density")


def test_mergekit_reads_over_the_same_keys():
    config = pytest.importorskip("mergekit.config")
    theirs = config.MergeConfiguration.model_validate(yaml.safe_load(IGNORED))
    assert {model.model.path for model in theirs.referenced_models()} == {"a", "b"}
    assert theirs.merge_method == "linear"


def test_where_all_merges_have_a_name_the_one_that_no_other_uses_is_wanted():
    text = f"name: child\n{FIRST}---\nname: last\n{LAST}"
    assert [document.name for document in in_order(text)] == ["child", None]
