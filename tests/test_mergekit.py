"""mergekit's YAML: what is read as mergekit reads it, what is refused, and what we write."""

import pytest
import torch
import yaml

import ledgers
import tiny
from kinship_daemon.errors import UsageError
from kinship_daemon.weights.assembly import weights_over
from kinship_daemon.weights.mergekit import collapsed_yaml, read_yaml, to_yaml
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


def test_slices_must_cover_the_model():
    wanted = read_yaml(CLASSIC)
    wanted.check(NAMES)
    with pytest.raises(UsageError, match=r"covers 5 of the model's 32 layers.*\[0, 32\]"):
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


def sources(*ranges):
    return [{"model": m, "layer_range": r} for m, r in zip("ab", ranges, strict=True)]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (SLERP | {"merge_method": "ties"}, "'ties' is not supported; linear and slerp are"),
        (SLERP | {"merge_method": None}, "merge_method None"),
        (SLERP | {"tokenizer_source": "union"}, "'tokenizer_source' is not supported"),
        (SLERP | {"paramters": {}}, "'paramters' is not supported.*did you mean 'parameters'"),
        (SLERP | {"modules": {}}, "'modules' is not supported"),
        (SLERP | {"dtype": "int8"}, "dtype 'int8' is not supported"),
        (SLERP | {"base_model": "a+lora"}, "adapters are not supported"),
        (SLERP | {"base_model": {"path": "a"}}, "expected the name of a model"),
        (SLERP | {"base_model": "c"}, "slerp takes base_model and one other, not c, a, b"),
        ({k: v for k, v in SLERP.items() if k != "base_model"}, "slerp needs base_model"),
        (SLERP | {"parameters": {}}, "needs the parameter 't'"),
        (SLERP | {"parameters": {"t": "half"}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": [0, "half"]}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": []}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": "nan"}}, "t: expected a number"),
        (SLERP | {"parameters": {"t": [{"value": 1}, 2]}}, "t: a condition is"),
        (SLERP | {"parameters": {"t": [{"filter": "x", "v": 2}]}}, "t: a condition is"),
        (SLERP | {"parameters": {"t": 1, "int8_mask": True}}, "slerp has no parameter 'int8_mask'"),
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


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("slerp", ("a", "b"), {"t": 0.5}),
        Recipe(
            "slerp", ("a", "b"), {"t": [{"filter": "mlp", "value": [0.1, 1]}, {"value": 1e-07}]}
        ),
        Recipe("linear", ("a", "b"), {"weight": [0.25, [0.5, 1.0]], "normalize": True}),
        Recipe(
            "linear", ("a", "b"), {"weight": [0.25, [{"filter": "x", "value": 2}, {"value": 1}]]}
        ),
    ],
)
def test_a_recipe_as_made_is_read_back(recipe):
    text = to_yaml(recipe, {"a": "org/a", "b": "kinship/model-1-2"}, "org/base", "bfloat16")
    wanted = read_yaml(text)
    assert wanted.recipe == Recipe(recipe.method, ("org/a", "kinship/model-1-2"), recipe.parameters)
    assert wanted.dtype == "bfloat16"
    assert "org/base" in text


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
