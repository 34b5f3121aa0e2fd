"""However many generations lie between, a merge is one combination of leaves."""

import pytest

from kinship_daemon.context import Rows
from kinship_daemon.steps.assemblies import combination
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from small_lineage import finetune, merge, open_lineage

GENERATIONS = 1000
NAMES = ("a", "b", "c")


def test_a_thousand_generations_collapse_to_their_leaves(tiny_base, tiny_finetunes, tmp_path):
    base = Checkpoint.open(tiny_base)
    leaves = {f"sha256:{name}": descend(base, tiny_finetunes[i]) for i, name in enumerate(NAMES)}
    ledger = gram.extend(gram.unmeasured(base, "base"), base, {}, leaves, device="cpu")
    half = {"method": "linear", "parameters": {"weight": [0.5, 0.5]}}
    with open_lineage(tmp_path / "lineage.db") as lineage:
        for name in NAMES:
            lineage.add_model(finetune(name, weights=f"sha256:{name}"))
        before = "demo/a"
        for generation in range(1, GENERATIONS + 1):
            parents = (before, f"demo/{NAMES[generation % 3]}")
            recipe = {**half, "parents": list(parents)}
            model = merge(f"m{generation}", parents, generation, recipe=recipe, status="admitted")
            lineage.add_model(model)
            before = model.id
        found = combination(lineage, Rows(ledger), lineage.require(before))
    # Each generation halves what came before: the last leaf has 1/2 + 1/16 + ..., and so on.
    last, second, third = (NAMES[(GENERATIONS - i) % 3] for i in range(3))
    expected = {last: 4 / 7, second: 2 / 7, third: 1 / 7}
    order = [row.removeprefix("sha256:") for row in found.rows]
    for factors in found.deltas.tolist():
        assert factors == pytest.approx([expected[name] for name in order])
