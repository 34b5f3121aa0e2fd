"""Natural niches: competition, attraction, the archive, and the step in depth."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kinship_daemon.weights.parameters import per_tensor
from kinship_policies.m2n2 import M2N2, attraction, shares
from kinship_policies.policy import Member
from populations import parents, population

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(8)),
]


def solver(name, *right, generation=0):
    score = sum(right) / len(right)
    return Member(
        name, score, {"task": score}, generation, samples={"task": tuple(map(float, right))}
    )


def drawn(policy, people, seeds=range(60)):
    found = []
    for seed in seeds:
        found += parents(policy.propose(replace(people, seed=seed)))
    return found


def test_a_document_is_shared_out_among_those_who_solve_it():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert shares(scores, 1.0).tolist() == [[0.5, 1.0, 0.0], [0.5, 0.0, 0.0]]
    assert shares(scores, 2.0).tolist() == [[0.25, 1.0, 0.0], [0.25, 0.0, 0.0]]
    assert shares(scores, 0.0).tolist() == scores.tolist()


def test_attraction_is_what_the_other_adds():
    worth = np.array([[0.5, 1.0, 0.0], [0.5, 0.0, 0.25], [0.0, 0.0, 2.0]])
    assert attraction(worth, 0).tolist() == [0.0, 0.25, 2.0]
    assert attraction(worth, 1).tolist() == [1.0, 0.0, 1.75]


def test_the_first_parent_is_drawn_by_fitness():
    # Fitness 3 and 1; who knows nothing is never the first.
    people = population(solver("a", 1, 1, 1, 0), solver("b", 0, 0, 0, 1), solver("c", 0, 0, 0, 0))
    first = Counter(pair[0] for pair in drawn(M2N2(children=10), people))
    assert first["c"] == 0
    assert first["a"] / 600 == pytest.approx(0.75, abs=0.08)


def test_the_mate_is_one_who_solves_what_the_first_does_not():
    people = population(solver("a", 1, 1, 0, 0), solver("b", 0, 0, 1, 1), solver("c", 1, 0, 0, 0))
    mates = {pair[1] for pair in drawn(M2N2(), people) if pair[0] == "a"}
    assert mates == {"b"}


def test_where_nobody_adds_anything_the_mate_is_drawn_by_fitness():
    people = population(solver("a", 1, 1, 1), solver("b", 1, 1, 0), solver("c", 0, 0, 0))
    mates = {pair[1] for pair in drawn(M2N2(alpha=0.0), people) if pair[0] == "a"}
    assert mates == {"b"}
    nobody = population(solver("a", 0, 0), solver("b", 0, 0), solver("c", 0, 0))
    assert all(a != b for a, b in drawn(M2N2(), nobody))


def test_niches_keep_who_solves_what_nobody_else_does():
    # x, y, z share two documents: fitness 2/3 each; n alone has one: 1.
    people = population(
        solver("x", 1, 1, 0), solver("y", 1, 1, 0), solver("z", 1, 1, 0), solver("n", 0, 0, 1)
    )
    assert {n for pair in drawn(M2N2(population=2), people) for n in pair} == {"n", "x"}
    plain = M2N2(population=2, alpha=0.0)
    assert {n for pair in drawn(plain, people) for n in pair} == {"x", "y"}


def knows(name, *documents, generation=0):
    return solver(name, *(document in documents for document in range(10)), generation=generation)


def test_the_archive_is_that_of_generation_after_generation():
    # In generation 1, z takes document 2 from a, which leaves (1, where b has 1.5); in generation
    # 2, v takes 3 from b, but a is gone and 1 is b's alone: now the oldest leaves. Of all at once,
    # b would have been the first to leave, and a would have stayed.
    people = population(
        knows("_", 0),
        knows("a", 1, 2),
        knows("b", 1, 3),
        knows("z", 2, 4, 5, 6, generation=1),
        knows("v", 3, 7, 8, 9, generation=2),
    )
    assert {n for pair in drawn(M2N2(population=3), people) for n in pair} == {"b", "z", "v"}


@pytest.mark.parametrize("layers", [8, None])
def test_the_ratio_flips_between_two_layers(layers):
    people = population(solver("a", 1, 0), solver("b", 0, 1))
    cuts = set()
    for seed in range(20):
        (merge,) = M2N2(children=1, layers=layers).propose(replace(people, seed=seed)).merges
        assert merge.method == "slerp"
        t = per_tensor("t", merge.parameters["t"], NAMES, boolean=False)
        ratio = float(t[0])  # the embeddings go with the first layer
        before, after = [float(t[1]), float(t[8])]
        assert before == ratio
        assert after == pytest.approx(1 - ratio)
        between = [x for x in t[1:].tolist() if x not in (before, after)]
        assert len(between) <= (0 if layers else 1)  # where layers are not known, one may lie there
        cuts.add(t[1:].tolist().count(before))
    assert len(cuts) > 3


def test_known_layers_need_not_be_set():
    people = replace(population(solver("a", 1, 0), solver("b", 0, 1)), layers=(((1.0,),),) * 5)
    merge = M2N2().propose(people).merges[0]
    assert len(merge.parameters["t"]) == 5


def test_without_samples_it_says_what_it_needs():
    bare = population(Member("a", 1.0), Member("b", 0.5), solver("c", 1, 0))
    decision = M2N2().propose(bare)
    assert decision.merges == ()
    assert "need every document's score and only 1 of 3 members" in decision.stop


def test_who_was_scored_on_other_documents_does_not_take_part():
    people = population(solver("a", 1, 0), solver("b", 0, 1), solver("c", 0, 0, 1))
    assert {n for pair in drawn(M2N2(), people) for n in pair} == {"a", "b"}


def test_reasons_tell_fitness_and_attraction():
    people = population(solver("a", 1, 1, 0), solver("b", 0, 0, 1))
    reason = M2N2().propose(people).merges[0].reason
    assert "by its fitness" in reason
    assert "by its attraction" in reason
    assert "of 3 among 2" in reason
