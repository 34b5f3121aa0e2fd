"""
What prompts have in common, and what of it is worth computing once. Pure: token numbers only.

Prompts are cut at two places at most. A *root* is what all prompts of a family begin with, such as
the examples that every document is shown. A *group* is what follows it in the prompts of one
document, its question. What is left, the choices, are *leaves*. Where nothing is shared every
prompt is a group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

__all__ = ["Answer", "Segment", "Tokens", "common", "cut", "width"]

Tokens = Sequence[int]

# What sharing has to save, in tokens: one more row in a batch, one more pass of the model.
_ROW = 8
_PASS = 64


@dataclass(frozen=True)
class Answer:
    """
    A token whose probability is wanted.

    Attributes:
        place: Of the token before it, which predicts it, counted from its segment's first.
        request, index: Whose answer it is a token of, and the how-manyth.
    """

    place: int
    token: int
    request: int
    index: int


@dataclass
class Segment:
    """
    Tokens of one or more prompts that are computed once.

    Attributes:
        start: How many tokens come before them.
        children: What follows them; empty where nothing does.
    """

    tokens: Tokens
    start: int
    answers: list[Answer] = field(default_factory=list)
    children: list[Segment] = field(default_factory=list)


@dataclass
class _Branch:
    """Prompts first to end - 1 agree in their first `depth` tokens, and not in the next."""

    first: int
    end: int
    depth: int
    children: list[int]
    after: int = 0  # the number of the first branch that is not below this one


def cut(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Segment]:
    """
    The roots, in the order of their tokens. Their own tokens are none where nothing is worth it.

    Args:
        prompts: What the model reads for each request, the answer's last token not included.
        answers: The answer's tokens; the last places of the prompt predict them.
    """
    texts = sorted({tuple(prompt) for prompt in prompts})
    tree = _tree(texts)
    lengths = [0, *accumulate(len(text) for text in texts)]
    paths: dict[Tokens, list[Segment]] = {}
    roots = []
    for begin, groups in _families(tree, lengths):
        root = Segment(texts[groups[0].first][:begin], 0)
        roots.append(root)
        for group in groups:
            shared = texts[group.first][begin : group.depth]
            root.children.append(Segment(shared, begin))
            for text in texts[group.first : group.end]:
                path = [root, root.children[-1]]
                if group.end - group.first > 1:
                    path.append(Segment(text[group.depth :], group.depth))
                    path[1].children.append(path[2])
                paths[text] = path
    for request, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        path = paths[tuple(prompt)]
        for index, token in enumerate(answer):
            at = len(prompt) - len(answer) + index
            owner = next(s for s in path if s.start <= at < s.start + len(s.tokens))
            owner.answers.append(Answer(at - owner.start, token, request, index))
    return roots


def width(roots: Sequence[Segment]) -> int:
    """Places of the widest row: every level is as wide as its longest segment."""
    return max((_width([root]) for root in roots), default=0)


def _width(level: Sequence[Segment]) -> int:
    below = [child for segment in level for child in segment.children]
    return max(len(segment.tokens) for segment in level) + (_width(below) if below else 0)


def _tree(texts: Sequence[Tokens]) -> list[_Branch]:
    """Every branch before those below it; these follow it without a gap. `texts` are sorted."""
    tree: list[_Branch] = []
    waiting = [(0, len(texts), -1)] if texts else []
    while waiting:
        first, end, parent = waiting.pop()
        depth = common(texts[first], texts[end - 1])
        number = len(tree)
        tree.append(_Branch(first, end, depth, []))
        if parent >= 0:
            tree[parent].children.append(number)
        if end - first > 1:
            runs = _runs(texts, first, end, depth)
            waiting += [(a, b, number) for a, b in reversed(runs)]
    for number, branch in reversed(list(enumerate(tree))):
        branch.after = tree[branch.children[-1]].after if branch.children else number + 1
    return tree


def common(one: Tokens, other: Tokens) -> int:
    """With how many tokens both begin."""
    pairs = zip(one, other, strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b),
        min(len(one), len(other)),
    )


def _runs(texts: Sequence[Tokens], first: int, end: int, depth: int) -> list[tuple[int, int]]:
    """Where texts that agree in `depth` tokens agree in the next, too; none is as good as one."""
    places = groupby(range(first, end), key=lambda i: texts[i][depth : depth + 1])
    runs = [list(run) for _, run in places]
    return [(run[0], run[-1] + 1) for run in runs]


def _families(
    tree: Sequence[_Branch], lengths: Sequence[int]
) -> list[tuple[int, Sequence[_Branch]]]:
    """(tokens of the root, groups) of the cheapest way to share the prompts out."""
    costs, roots = [0] * len(tree), [-1] * len(tree)  # -1: each child is a family of its own
    for number, branch in reversed(list(enumerate(tree))):
        found = {-1: sum(costs[child] for child in branch.children)} if branch.children else {}
        for begin in {0, branch.depth} if branch.children else {0}:
            own = min(_group_costs(tree, number, begin, lengths)[0], _apart(branch, begin, lengths))
            found[begin] = own + _PASS + (begin + _PASS if begin else 0)
        roots[number], costs[number] = min(found.items(), key=lambda one: (one[1], -one[0]))
    families, waiting = [], [0] if tree else []
    while waiting:
        number = waiting.pop()
        if roots[number] < 0:
            waiting += reversed(tree[number].children)
        else:
            families.append((roots[number], _groups(tree, number, roots[number], lengths)))
    return families


def _apart(branch: _Branch, begin: int, lengths: Sequence[int]) -> int:
    """Tokens of the prompts below a branch beyond their first `begin`, nothing more shared."""
    return lengths[branch.end] - lengths[branch.first] - (branch.end - branch.first) * begin


def _group_costs(
    tree: Sequence[_Branch], top: int, begin: int, lengths: Sequence[int]
) -> tuple[int, Sequence[bool]]:
    """
    Tokens, if questions are shared where that is worth it, and which branches below are groups.

    The pass that the choices then need is in them.
    """
    size = tree[top].after - top
    costs, together = [0] * size, [True] * size
    for at in reversed(range(size)):
        branch = tree[top + at]
        costs[at] = branch.depth - begin + _apart(branch, branch.depth, lengths)
        if branch.children:
            separately = sum(costs[child - top] for child in branch.children)
            together[at] = costs[at] + _ROW < separately
            costs[at] = costs[at] + _ROW if together[at] else separately
    return costs[0] + _PASS, together


def _groups(
    tree: Sequence[_Branch], top: int, begin: int, lengths: Sequence[int]
) -> Sequence[_Branch]:
    cost, together = _group_costs(tree, top, begin, lengths)
    shared = cost < _apart(tree[top], begin, lengths)
    groups, waiting = [], [top]
    while waiting:
        number = waiting.pop()
        branch = tree[number]
        if not branch.children or (shared and together[number - top]):
            groups.append(branch)
        else:
            waiting += reversed(branch.children)
    return groups
