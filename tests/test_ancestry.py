"""Who was merged from whom, and who is no descendant, told from samples."""

import math
import random

import pytest
import torch

from kinship_daemon.errors import KinshipError
from kinship_daemon.weights.header import TensorInfo
from kinship_daemon.weights.sample.ancestry import composition, departure
from kinship_daemon.weights.sample.outlines import Outlines
from kinship_daemon.weights.sample.plan import plan
from kinship_daemon.weights.sample.sketch import sketch
from kinship_daemon.weights.sample.take import BaseSample, Sample

SHAPES = {f"model.layers.{n}.mlp.up_proj.weight": (128, 128) for n in range(4)}
SHAPES |= {"model.norm.weight": (128,), "model.embed_tokens.weight": (64, 64)}
PLAN = plan({n: TensorInfo(n, "BF16", shape, "f", 0) for n, shape in SHAPES.items()}, fraction=1)
NAMES = [f"m{number:02}" for number in range(12)]


def drawn(seed, scale=1.0):
    return scale * torch.randn(PLAN.elements, generator=torch.Generator().manual_seed(seed))


def saved(deltas):
    """What of a delta is left when the model is saved in bfloat16, as models are."""
    return (BASE + deltas).bfloat16().float() - BASE


BASE = drawn(0, 0.02).bfloat16().float()
# Fine-tunes have some of their change in common: their kinship is 0.2, of two of them 0.6.
COMMON = drawn(1, 0.0009)
DELTAS = {name: saved(COMMON + drawn(100 + n, 0.0018)) for n, name in enumerate(NAMES)}
DELTAS["m11"] = saved(0.6 * DELTAS["m10"] + drawn(99, 0.0016))


def vector(deltas):
    return sketch(Sample(PLAN, deltas))


@pytest.fixture(scope="module")
def known():
    return {name: vector(deltas) for name, deltas in DELTAS.items()}


def mixed(weights):
    return sum(weight * DELTAS[name] for name, weight in weights.items())


def test_merges_are_taken_apart_again(known):
    """200 random merges of 2 to 4 of 12 models, saved in bfloat16; whoever is not named has 0."""
    chance = random.Random(5)
    for _ in range(200):
        parents = chance.sample(NAMES, chance.randint(2, 4))
        raw = [chance.random() for _ in parents]
        total = sum(raw) / chance.choice([1.0, 1.0, 1.5])
        truth = {name: weight / total for name, weight in zip(parents, raw, strict=True)}
        found = composition(vector(saved(mixed(truth))), known)
        told = {part.model: part.coefficient for part in found.parts}
        assert told.keys() <= truth.keys()
        for name, weight in truth.items():
            assert abs(told.get(name, 0.0) - weight) < 0.02
        if sorted(truth.values())[-2] > 0.02:
            assert found.is_merge()


def test_errors_are_as_large_as_what_is_off(known):
    off = []
    for seed in range(40):
        made = mixed({"m02": 0.7, "m05": 0.4}) + drawn(seed + 500, 0.0004)
        off += [
            (part.coefficient - {"m02": 0.7, "m05": 0.4}[part.model]) / part.error
            for part in composition(vector(made), known).parts
        ]
    assert len(off) == 80
    assert 0.7 < math.sqrt(sum(x * x for x in off) / len(off)) < 1.4


def test_what_is_no_merge_is_not_called_one(known):
    """300 more siblings, further fine-tunes and scaled copies: less than 1 % false alarms."""
    chance = random.Random(6)
    alarms = 0
    for number in range(300):
        own = drawn(1000 + number, 0.0018)
        parent = DELTAS[chance.choice(NAMES)]
        size = chance.uniform(0.05, 1.0)
        made = (COMMON + own, parent + size * (COMMON + own), size * parent)[number % 3]
        alarms += composition(vector(saved(made)), known).is_merge()
    assert alarms < 3


def test_a_fine_tune_of_a_known_model_names_it_and_what_is_its_own(known):
    found = composition(vector(DELTAS["m03"] + drawn(7, 0.001)), known)
    (part,) = found.parts
    assert part.model == "m03"
    assert part.coefficient == pytest.approx(1.0, abs=4 * part.error)
    own = 0.001**2 / (0.001**2 + 0.0009**2 + 0.0018**2)
    assert found.rest == pytest.approx(own, rel=0.1)


def test_a_parent_seen_after_its_child_is_not_called_a_merge(known):
    child = vector(mixed({"m00": 0.5, "m01": 0.5}))
    found = composition(known["m00"], {"child": child, "m01": known["m01"]})
    assert [(p.model, round(p.coefficient, 2)) for p in found.parts] == [
        ("child", 2.0),
        ("m01", -1.0),
    ]
    assert not found.is_merge()


def test_coefficients_hold_whatever_the_sizes_of_the_deltas(known):
    tiny = {name: vector(DELTAS[name] * 2.0**-60) for name in NAMES}
    made = mixed({"m00": 0.3, "m01": 0.6})
    told = {p.model: p.coefficient * 2.0**-60 for p in composition(vector(made), tiny).parts}
    assert told == pytest.approx({"m00": 0.3, "m01": 0.6}, abs=1e-3)


def test_copies_among_the_known_and_a_base_do_no_harm(known):
    zero = vector(torch.zeros(PLAN.elements))
    more = known | {"again": known["m00"], "nothing": zero}
    found = composition(vector(mixed({"m00": 0.5, "m01": 0.5})), more)
    assert [p.coefficient for p in found.parts] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert math.isnan(composition(zero, known).rest)
    assert composition(known["m00"], {}).parts == ()
    assert composition(known["m00"], {"nothing": zero}).parts == ()


def test_parents_are_among_those_whose_outlines_are_most_alike(known):
    outlines = Outlines()
    others = {f"other{n:03}": vector(drawn(1000 + n, 0.002)) for n in range(200)}
    outlines.add(known | others)
    names = [*known, *others]
    assert outlines.unknown(["new", *names]) == ["new"]
    chance = random.Random(6)
    for _ in range(20):
        parents = chance.sample(NAMES, 4)
        newcomer = vector(saved(mixed(dict.fromkeys(parents, 0.25))))
        near = outlines.most_alike(newcomer, names, 16)
        assert (len(near), near) == (16, sorted(near))
        assert set(parents) <= set(near)
    assert outlines.most_alike(newcomer, ["m01", "m00"], 16) == ["m00", "m01"]


def test_vectors_of_another_plan_are_refused(known):
    other = plan(dict(PLAN.tensors), fraction=1, seed=1)
    with pytest.raises(KinshipError, match="different plans"):
        composition(known["m00"], {"other": sketch(Sample(other, torch.ones(other.elements)))})


def base_sample():
    values, at = {}, 0
    for name, blocks in PLAN.blocks:
        size = sum(end - start for start, end in blocks)
        values[name] = BASE[at : at + size]
        at += size
    return BaseSample(PLAN.identity, values)


def test_a_descendant_is_like_its_base_and_a_stranger_is_not():
    base = base_sample()
    descendant = departure(Sample(PLAN, DELTAS["m00"]), base)
    assert descendant.likeness > 0.99
    assert descendant.distance == pytest.approx(math.hypot(0.0009, 0.0018) / 0.02, rel=0.05)
    assert (descendant.matrices, descendant.unlike, descendant.stranger) == (4, 0, False)
    stranger = departure(Sample(PLAN, drawn(9, 0.02) - BASE), base)
    assert abs(stranger.likeness) < 0.05
    assert stranger.distance == pytest.approx(math.sqrt(2), rel=0.05)
    assert (stranger.unlike, stranger.stranger) == (4, True)


def test_neurons_in_another_order_make_a_stranger():
    """It computes the same, and an average with it does not."""
    order = torch.randperm(128, generator=torch.Generator().manual_seed(3))
    base, deltas = base_sample(), []
    for name, _ in PLAN.blocks:
        own = base.values[name]
        moved = own.view(SHAPES[name])[order].flatten() if "mlp" in name else own
        deltas.append(moved - own)
    assert departure(Sample(PLAN, torch.cat(deltas)), base).stranger
