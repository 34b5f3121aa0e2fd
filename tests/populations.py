"""Small populations for the policies' tests, given by a few facts."""

from kinship_policies.policy import Member, Population


def key(a, b):
    return min(a, b), max(a, b)


def population(*members, kin=None, default=0.5, **facts):
    """
    These members in any order; `kin` by pairs of names, the others at `default`.

    What was merged follows from the members' parents; `merged` adds to it.
    """
    given = {key(*pair): value for pair, value in (kin or {}).items()}
    members = tuple(sorted(members, key=lambda member: member.name))
    names = [member.name for member in members]
    merged = {
        key(a, b) for m in members for i, a in enumerate(m.parents) for b in m.parents[i + 1 :]
    }
    return Population(
        generation=facts.pop("generation", 2),
        members=members,
        kinship=tuple(
            tuple(1.0 if a == b else given.get(key(a, b), default) for b in names) for a in names
        ),
        merged=frozenset(merged | {key(*pair) for pair in facts.pop("merged", ())}),
        **facts,
    )


def fine_tunes(**scores):
    return [Member(name, score, {"task": score}) for name, score in scores.items()]


def child(name, score, *parents, generation=1, method="slerp", **parameters):
    return Member(name, score, {"task": score}, generation, parents, method, parameters)


def parents(decision):
    return [merge.parents for merge in decision.merges]
