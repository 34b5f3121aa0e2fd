"""Differential evolution: who stands for a line, the mask, and the mates."""

import math
from dataclasses import replace

import pytest
import torch

from kinship_daemon.weights.parameters import per_tensor
from kinship_policies.evolver import KINDS, Evolver
from populations import child, fine_tunes, parents, population

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{kind}.weight"
        for layer in range(8)
        for kind in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
]


def weights(merge):
    """(tensors, 2) weights of the individual and of its mate."""
    assert merge.method == "linear"
    columns = [per_tensor("weight", w, NAMES, boolean=False) for w in merge.parameters["weight"]]
    return torch.stack(columns, 1)


def linear(name, score, *names, generation=1):
    return child(name, score, *names, generation=generation, method="linear", weight=[0.5, 0.5])


def test_every_individual_is_crossed_with_another_the_best_first():
    people = population(*fine_tunes(a=1.0, b=3.0, c=2.0), generation=1)
    decision = Evolver().propose(people)
    assert [pair[0] for pair in parents(decision)] == ["b", "c", "a"]
    assert all(a != b for a, b in parents(decision))
    mates = {
        pair
        for seed in range(20)
        for pair in parents(Evolver().propose(replace(people, seed=seed)))
    }
    assert len(mates) == 6  # everybody with everybody else
    best = parents(Evolver(mate="best").propose(people))
    assert best == [("b", "c"), ("c", "b"), ("a", "b")]


def test_only_the_best_fine_tunes_have_lines():
    people = population(*fine_tunes(a=1.0, b=3.0, c=2.0))
    assert {pair[0] for pair in parents(Evolver(population=2).propose(people))} == {"b", "c"}


def test_a_child_that_is_better_takes_its_parents_place():
    people = population(
        *fine_tunes(a=0.5, b=0.4),
        linear("c", 0.6, "a", "b"),
        linear("d", 0.4, "b", "a"),  # as good as b, not better
        linear("e", 0.55, "c", "b", generation=2),
        linear("f", math.nan, "c", "b", generation=3),
        linear("g", 0.7, "c", "b", generation=4),
    )
    assert [pair[0] for pair in parents(Evolver().propose(people))] == ["g", "b"]


def test_an_individual_without_a_score_gives_way_to_any_child_that_has_one():
    people = population(*fine_tunes(a=math.nan, b=0.4), linear("c", 0.1, "a", "b"))
    assert {pair[0] for pair in parents(Evolver().propose(people))} == {"b", "c"}


@pytest.mark.parametrize("factor", [0.5, 0.25])
def test_crossed_parts_move_to_the_mate_and_the_others_stay(factor):
    people = population(*fine_tunes(a=1.0, b=3.0), generation=1)
    crossed = []
    for seed in range(60):
        policy = Evolver(factor=factor, layers=8)
        for merge in policy.propose(replace(people, seed=seed)).merges:
            both = weights(merge)
            assert torch.equal(both.sum(1), torch.ones(len(NAMES), dtype=torch.float64))
            assert set(both[:, 1].tolist()) <= {0.0, factor}
            crossed.append((both[:, 1] > 0).double().mean())
    assert float(torch.stack(crossed).mean()) == pytest.approx(0.5, abs=0.05)


def test_the_mask_is_of_kinds_and_groups_of_layers():
    people = population(*fine_tunes(a=1.0, b=3.0), generation=1)
    merge = Evolver(layers=8, groups=4).propose(people).merges[0]
    of_mate = dict(zip(NAMES, weights(merge)[:, 1].tolist(), strict=True))
    for kind in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm"):
        column = [of_mate[f"model.layers.{layer}.{kind}.weight"] for layer in range(8)]
        assert column[0::2] == column[1::2]  # two layers to a group
    settings = merge.parameters["weight"][0]
    assert [setting.get("filter") for setting in settings] == [*KINDS, None]


def test_unknown_layers_blur_only_the_edges_of_groups():
    people = population(*fine_tunes(a=1.0, b=3.0), generation=1)
    for seed in range(10):
        merge = Evolver(groups=2).propose(replace(people, seed=seed)).merges[0]
        both = weights(merge)
        assert torch.allclose(both.sum(1), torch.ones(len(NAMES), dtype=torch.float64))
        for kind in range(3):
            between = [x for x in both[1 + kind :: 3, 1].tolist() if x not in (0.0, 0.5)]
            assert len(between) <= 1


def test_at_least_one_part_is_crossed_and_with_rate_1_all_are():
    people = population(*fine_tunes(a=1.0, b=3.0), generation=1)
    for seed in range(20):
        merge = Evolver(rate=0.001).propose(replace(people, seed=seed)).merges[0]
        assert "in 1 of 36 parts" in merge.reason
    full = Evolver(rate=1.0).propose(people).merges[0]
    assert set(weights(full).flatten().tolist()) == {0.5}


def test_it_stops_without_two_fine_tunes_and_after_its_last_generation():
    alone = population(*fine_tunes(a=1.0), child("b", 2.0, "a", "gone"))
    assert "two fine-tunes" in Evolver().propose(alone).stop
    people = population(*fine_tunes(a=1.0, b=3.0), generation=16)
    assert "generation 15 was to be the last" in Evolver().propose(people).stop


def test_no_cross_is_made_twice_and_when_all_are_it_stops():
    policy = Evolver(rate=1.0, groups=1)  # every mask is the same: one cross for each two
    people = population(*fine_tunes(a=1.0, b=3.0), generation=1)
    first = policy.propose(people)
    assert parents(first) == [("b", "a"), ("a", "b")]
    worse = [
        child(f"c{i}", 0.1, *m.parents, method=m.method, **m.parameters)
        for i, m in enumerate(first.merges)
    ]
    assert parents(policy.propose(population(*people.members, worse[0]))) == [("a", "b")]
    done = policy.propose(population(*people.members, *worse))
    assert done.merges == ()
    assert "made before" in done.stop
