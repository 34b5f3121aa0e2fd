"""The Gram ledger against plain float64, on kind and unkind weights."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from kinship_daemon.errors import KinshipError
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant, LowRank, descend

NAMES = ("scalar", "run", "odd", "block", "blocks")
SHAPES = {"scalar": (), "run": (512,), "odd": (3, 7, 11)}
SHAPES |= {"block": (256, 512), "blocks": (131_072 * 2 + 1_300,)}


def random_weights(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {n: torch.randn(SHAPES[n], generator=noise) * scale for n in NAMES}


def nearby(base: dict[str, torch.Tensor], seed: int, scale: float) -> dict[str, torch.Tensor]:
    noise = random_weights(seed, scale)
    return {n: (base[n].float() + noise[n]).bfloat16() for n in base}


def expected(base, leaves) -> torch.Tensor:
    """The ledger by definition, in float64."""
    grams = []
    for name in sorted(base):
        b = base[name].double().reshape(-1)
        rows = [torch.ones_like(b), b, *(leaf[name].double().reshape(-1) - b for leaf in leaves)]
        grams.append(torch.stack(rows) @ torch.stack(rows).T)
    return torch.stack(grams)


def assert_close(measured: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    """Inner products compare by the lengths of their two rows."""
    lengths = exact.diagonal(dim1=1, dim2=2).sqrt()
    scale = lengths[:, :, None] * lengths[:, None, :]
    assert bool(((measured - exact).abs() <= tolerance * scale).all())


class Family:
    """A base and leaves on disk, opened, and the same in memory."""

    def __init__(self, folder: Path, base, leaves: dict) -> None:
        self.base_weights, self.leaf_weights = base, list(leaves.values())
        self.base = Checkpoint.open(tiny.bare(folder / "base", base))
        self.leaves = {
            name: descend(self.base, tiny.bare(folder / name, leaf))
            for name, leaf in leaves.items()
        }

    def ledger(self, **options) -> gram.Ledger:
        return gram.extend(gram.start(self.base, "b"), self.base, {}, self.leaves, **options)

    def exact(self) -> torch.Tensor:
        return expected(self.base_weights, self.leaf_weights)


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Family:
    base = {name: t.bfloat16() for name, t in random_weights(0, 0.02).items()}
    leaves = {f"leaf{i}": nearby(base, i, 0.001) for i in range(1, 8)}
    return Family(tmp_path_factory.mktemp("gram"), base, leaves)


def test_products_are_those_of_float64(family):
    ledger = family.ledger()
    assert ledger.names == tuple(sorted(NAMES))
    assert ledger.sizes == tuple(family.base_weights[n].numel() for n in sorted(NAMES))
    assert ledger.rows == tuple(family.leaves)
    assert_close(ledger.gram, family.exact(), 3e-7)
    assert torch.equal(ledger.gram, ledger.gram.transpose(1, 2))
    assert_close(ledger.total()[None], family.exact().sum(0)[None], 3e-7)


def test_the_start_is_the_ledger_of_the_base(family):
    ledger = gram.start(family.base, "b")
    assert ledger.rows == ()
    assert_close(ledger.gram, expected(family.base_weights, []), 3e-7)


def test_a_ledger_extended_in_steps_has_the_same_bits(family):
    whole = family.ledger()
    names = list(family.leaves)
    stepwise = gram.start(family.base, "b")
    for count in (1, 2, 4, 7):
        known = {name: family.leaves[name] for name in stepwise.rows}
        new = {name: family.leaves[name] for name in names[:count]}
        stepwise = gram.extend(stepwise, family.base, known, new)
    assert stepwise.rows == whole.rows
    assert torch.equal(stepwise.gram, whole.gram)


def test_the_order_of_joining_changes_no_bit(family):
    names = list(family.leaves)
    shuffled = dict(sorted(family.leaves.items(), key=lambda item: item[0][::-1], reverse=True))
    other = gram.extend(gram.start(family.base, "b"), family.base, {}, shuffled)
    places = torch.tensor([0, 1, *(other.rows.index(name) + 2 for name in names)])
    assert torch.equal(other.gram[:, places][:, :, places], family.ledger().gram)


def test_the_number_of_threads_changes_no_bit(family):
    before = torch.get_num_threads()
    try:
        ledgers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            ledgers.append(family.ledger().gram)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ledgers[0], ledgers[1])
    assert torch.equal(ledgers[0], ledgers[2])


def test_progress_tells_every_byte_once(family):
    seen = []
    family.ledger(progress=seen.append)
    assert sum(seen) == family.base.nbytes + sum(c.nbytes for c in family.leaves.values())


def test_a_subset_of_rows_is_the_ledger_of_those(family):
    kept = family.ledger().keep(("leaf5", "leaf2"))
    assert kept.rows == ("leaf2", "leaf5")
    few = {name: family.leaves[name] for name in kept.rows}
    assert torch.equal(
        kept.gram, gram.extend(gram.start(family.base, "b"), family.base, {}, few).gram
    )


def test_nothing_new_reads_nothing(family):
    ledger = family.ledger()
    assert gram.extend(ledger, family.base, {}, {"leaf1": family.leaves["leaf1"]}) is ledger


def grid(values: torch.Tensor, step: float) -> torch.Tensor:
    """Values on a grid, so that adding multiples of the step stays exact in bf16."""
    return (values.clamp(-3, 3) / step).round() * step


@pytest.mark.parametrize("other", ["constant", "zero", "huge", "faint", "denormal", "one element"])
def test_unkind_deltas(tmp_path, other):
    noise = random_weights(0)
    base = {name: grid(t, 1 / 16).bfloat16() for name, t in noise.items()}
    strange = {
        "constant": {name: t + 0.25 for name, t in base.items()},
        "zero": base,
        "huge": {name: t * 3e37 for name, t in base.items()},
        "faint": base,
        "denormal": base,
        "one element": {name: t.clone() for name, t in base.items()},
    }[other]
    if other in ("faint", "denormal"):
        scale = 1e-25 if other == "faint" else 1e-39
        base = {name: torch.zeros_like(t) for name, t in base.items()}
        strange = {name: (t * scale).bfloat16() for name, t in noise.items()}
    if other == "one element":
        strange["blocks"][-1] += 1
    leaves = {"plain": nearby(base, 1, 0.5), "strange": strange, "copy": strange}
    family = Family(tmp_path, base, leaves)
    ledger = family.ledger()
    assert_close(ledger.gram, family.exact(), 1e-6)
    step = gram.extend(
        gram.start(family.base, "b"), family.base, {}, {"strange": family.leaves["strange"]}
    )
    again = gram.extend(
        step,
        family.base,
        {"strange": family.leaves["strange"]},
        {name: family.leaves[name] for name in ("copy", "plain")},
    )
    places = torch.tensor([0, 1, *(again.rows.index(name) + 2 for name in ledger.rows)])
    assert torch.equal(again.gram[:, places][:, :, places], ledger.gram)


def test_a_huge_and_an_unchanged_model_in_one_ledger(tmp_path):
    base = {"w": torch.full((700,), 3e38).bfloat16()}
    leaves = {"same": base, "opposite": {"w": -base["w"]}}
    family = Family(tmp_path, base, leaves)
    assert_close(family.ledger().gram, family.exact(), 1e-6)


def test_changes_at_other_places_are_measured_once(tmp_path, monkeypatch):
    """Their inner product is 0, which is no sign of numbers too small to be multiplied."""
    base = {name: t.bfloat16() for name, t in random_weights(0).items()}
    leaves = {name: {n: t.clone() for n, t in base.items()} for name in ("front", "rear")}
    for name, part in (("front", slice(None, 99)), ("rear", slice(99, None))):
        leaves[name]["blocks"][part] += 1
    family = Family(tmp_path, base, leaves)
    monkeypatch.setattr(gram, "remeasure", lambda *_: pytest.fail("measured twice"))
    exact = family.exact()
    assert float(exact[sorted(base).index("blocks"), 2, 3]) == 0
    assert_close(family.ledger().gram, exact, 1e-6)
    front, rear = ({name: family.leaves[name]} for name in leaves)
    step = gram.extend(gram.start(family.base, "b"), family.base, {}, front)
    assert torch.equal(gram.extend(step, family.base, front, rear).gram, family.ledger().gram)


def test_models_of_other_float_types(tmp_path):
    base = {name: t.bfloat16() for name, t in random_weights(0).items()}
    leaves = {
        "half": {name: (t + 0.5).half() for name, t in random_weights(1).items()},
        "single": random_weights(2),
        "double": {name: t.double() for name, t in random_weights(3).items()},
    }
    family = Family(tmp_path, base, leaves)
    assert_close(family.ledger().gram, family.exact(), 1e-6)


def test_small_deltas_of_doubles_are_not_drowned_by_single_precision(tmp_path):
    base = {name: t.double() for name, t in random_weights(0).items()}
    leaves = {
        seed: {name: base[name] + 1e-8 * t.double() for name, t in random_weights(seed).items()}
        for seed in (1, 2)
    }
    family = Family(tmp_path, base, {str(seed): leaf for seed, leaf in leaves.items()})
    assert_close(family.ledger().gram, family.exact(), 1e-6)


@pytest.mark.parametrize(
    ("value", "said"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")]
)
def test_a_broken_model_is_named_with_its_tensor(tmp_path, family, value, said):
    broken = {name: t.clone() for name, t in family.leaf_weights[0].items()}
    broken["blocks"][-1] = value
    folder = tiny.bare(tmp_path / "broken", broken)
    new = {"leaf1": family.leaves["leaf1"], "bad": descend(family.base, folder)}
    start = gram.start(family.base, "b")
    message = re.escape(f"{folder}: tensor blocks holds {said}")
    with pytest.raises(gram.BadTensor, match=message) as got:
        gram.extend(start, family.base, {}, new)
    assert (got.value.identity, got.value.tensor) == ("bad", "blocks")
    del new["bad"]
    assert gram.extend(start, family.base, {}, new).rows == ("leaf1",)


@pytest.mark.parametrize("value", [1e200, 1e150])
def test_a_model_of_doubles_that_no_square_holds_is_named(tmp_path, family, value):
    """Its infinite row would make everyone's kinship NaN, for nothing times infinity is none."""
    broken = {name: t.double() for name, t in family.leaf_weights[0].items()}
    broken["block"][3, 4] = value
    folder = tiny.bare(tmp_path / "broken", broken)
    new = {"leaf1": family.leaves["leaf1"], "bad": descend(family.base, folder)}
    message = re.escape(f"{folder}: tensor block holds numbers too large")
    for start in (gram.start(family.base, "b"), gram.unmeasured(family.base, "b")):
        with pytest.raises(gram.BadTensor, match=message) as got:
            gram.extend(start, family.base, {}, new)
        assert got.value.identity == "bad"


def test_a_broken_base_is_named(tmp_path, family):
    broken = {name: t.clone() for name, t in family.base_weights.items()}
    broken["scalar"] = torch.tensor(torch.nan).bfloat16()
    with pytest.raises(gram.BadTensor) as caught:
        gram.start(Checkpoint.open(tiny.bare(tmp_path, broken)), "b")
    assert caught.value.identity == "b"


def test_a_leaf_with_the_bytes_of_its_base_is_a_row_of_zeros(family):
    same = descend(family.base, family.base.path)
    ledger = gram.extend(gram.start(family.base, "b"), family.base, {}, {"b": same})
    assert ledger.rows == ("b",)
    assert not bool(ledger.gram[:, 2].any())


def test_a_saved_ledger_is_read_back_bit_by_bit(tmp_path, family):
    ledger = family.ledger()
    ledger.save(tmp_path / "one")
    ledger.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    again = gram.Ledger.load(tmp_path / "one")
    assert (again.base, again.rows) == (ledger.base, ledger.rows)
    assert (again.names, again.sizes) == (ledger.names, ledger.sizes)
    assert torch.equal(again.gram, ledger.gram)


def test_a_damaged_or_foreign_ledger_says_how_to_go_on(tmp_path, family):
    path = tmp_path / "ledger"
    family.ledger().save(path)
    content = path.read_bytes()
    renamed = content.replace(b"leaf1", b"\xff" * 5)
    for damaged in (content[:-1], content[:100], b"", b"x" * 100, renamed):
        path.write_bytes(damaged)
        with pytest.raises(KinshipError, match="remove it and it is computed again"):
            gram.Ledger.load(path)
    with pytest.raises(KinshipError, match="remove it"):
        gram.Ledger.load(tmp_path / "absent")
    with pytest.raises(KinshipError, match="remove it"):
        gram.Ledger.load(tiny.bare(tmp_path / "m", family.base_weights) / "model.safetensors")


def test_weights_are_never_whole_in_private_memory(tmp_path):
    weights = {f"w{i}": torch.randn(1 << 23).bfloat16() for i in range(3)}
    family = Family(tmp_path, weights, {"a": weights, "b": {n: -t for n, t in weights.items()}})
    total = 3 * family.base.nbytes
    del weights, family.base_weights, family.leaf_weights

    def private() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    before, peak = private(), []
    family.ledger(progress=lambda _: peak.append(private()))
    assert max(peak) - before < total / 4


@pytest.mark.gpu
def test_a_gpu_gives_the_same_products(family):
    assert_close(family.ledger(device="cuda").gram, family.exact(), 1e-6)


def in_blocks(family: Family, ledger: gram.Ledger, groups, new) -> gram.Ledger:
    """The new leaves measured against one group of the known at a time."""
    joining = {name: family.leaves[name] for name in new}
    parts = []
    for group in groups:
        known = {name: family.leaves[name] for name in group}
        parts.append(gram.extend(ledger.keep(group), family.base, known, joining))
    return ledger.joined(parts)


@pytest.mark.parametrize(
    "groups",
    [
        [["leaf1", "leaf2", "leaf3", "leaf4", "leaf5"]],
        [["leaf4", "leaf1"], ["leaf5"], ["leaf3", "leaf2"]],
        [["leaf1", "leaf2", "leaf3"], [], ["leaf3", "leaf4", "leaf5"]],
    ],
)
@pytest.mark.parametrize("new", [["leaf7"], ["leaf7", "leaf6"]])
def test_newcomers_measured_group_by_group_have_the_same_bits(family, groups, new):
    first = {name: family.leaves[name] for name in ("leaf3", "leaf1", "leaf5", "leaf2", "leaf4")}
    ledger = gram.extend(gram.start(family.base, "b"), family.base, {}, first)
    joining = {name: family.leaves[name] for name in new}
    whole = gram.extend(ledger, family.base, first, joining)
    joined = in_blocks(family, ledger, groups, new)
    assert (joined.base, joined.rows, joined.names) == (whole.base, whole.rows, whole.names)
    assert torch.equal(joined.gram, whole.gram)


def test_adapters_measured_group_by_group_have_the_same_bits(mixed):
    names = list(mixed.leaves)
    for new in names:
        first = {name: mixed.leaves[name] for name in names if name != new}
        ledger = gram.extend(gram.start(mixed.base, "b"), mixed.base, {}, first)
        whole = gram.extend(ledger, mixed.base, first, {new: mixed.leaves[new]})
        joined = in_blocks(mixed, ledger, [[name] for name in first], [new])
        assert torch.equal(joined.gram, whole.gram)


def test_the_first_newcomers_of_a_base_are_one_part(family):
    for ledger in (gram.unmeasured(family.base, "b"), gram.start(family.base, "b")):
        joined = in_blocks(family, ledger, [[]], family.leaves)
        assert torch.equal(joined.gram, family.ledger().gram)


def test_parts_without_newcomers_change_nothing(family):
    ledger = family.ledger()
    joined = ledger.joined([ledger.keep(["leaf1"]), ledger.keep(ledger.rows)])
    assert joined.rows == ledger.rows
    assert torch.equal(joined.gram, ledger.gram)


def test_parts_that_do_not_make_a_whole_are_refused(family):
    whole = family.ledger()
    names = [f"leaf{i}" for i in range(1, 7)]
    ledger = whole.keep(names)
    part, rest = whole.keep(["leaf1", "leaf2", "leaf7"]), whole.keep([*names[2:], "leaf7"])
    assert torch.equal(ledger.joined([part, rest]).gram, whole.gram)
    with pytest.raises(KinshipError, match=r"not measured against leaf3 \(4 of 6 in no part\)"):
        ledger.joined([part])
    with pytest.raises(KinshipError, match=r"against leaf1 \(6 of 6"):
        ledger.joined([])
    with pytest.raises(KinshipError, match="different new rows"):
        ledger.joined([part, whole.keep(names)])
    stranger = replace(rest, base="another")
    with pytest.raises(KinshipError, match="not of the ledger of base b"):
        ledger.joined([part, stranger])


def low_rank(rows: int, columns: int, rank: int, seed: int) -> LowRank:
    noise = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(n, generator=noise) for n in ((rows, rank), (rank, columns)))
    return LowRank(up * 0.1, down)


def adapter(folder: Path, deltas: dict[str, LowRank]) -> Descendant:
    return Descendant(folder, 0, 0, {name: (lambda d=delta: d) for name, delta in deltas.items()})


@pytest.fixture
def mixed(tmp_path):
    """A full fine-tune, one that keeps a tensor, and adapters of different ranks and tensors."""
    base = random_weights(0)
    family = Family(
        tmp_path, {n: t.bfloat16() for n, t in base.items()}, {"full": nearby(base, 1, 0.02)}
    )
    wide, narrow = low_rank(256, 512, 8, 2), low_rank(256, 512, 3, 3)
    family.leaves["wide"] = adapter(tmp_path / "wide", {"block": wide})
    family.leaves["narrow"] = adapter(tmp_path / "narrow", {"block": narrow})
    family.leaves["idle"] = adapter(tmp_path / "idle", {})
    for delta in (wide, narrow, None):
        weights = {n: t.double() for n, t in family.base_weights.items()}
        if delta is not None:
            weights["block"] = weights["block"] + delta.up.double() @ delta.down.double()
        family.leaf_weights.append(weights)
    return family


def test_adapters_are_measured_without_being_multiplied_out(mixed):
    assert_close(mixed.ledger().gram, mixed.exact(), 1e-6)


def test_adapters_join_in_any_company(mixed):
    ledger = gram.start(mixed.base, "b")
    for name in mixed.leaves:
        known = {row: mixed.leaves[row] for row in ledger.rows}
        ledger = gram.extend(ledger, mixed.base, known, {name: mixed.leaves[name]})
    assert_close(ledger.gram, mixed.exact(), 1e-6)
    assert torch.equal(ledger.gram, mixed.ledger().gram)


def test_an_adapter_with_nan_is_named(mixed, tmp_path):
    broken = low_rank(256, 512, 2, 4)
    broken.down[1, 5] = torch.nan
    mixed.leaves["broken"] = adapter(tmp_path / "broken", {"block": broken})
    with pytest.raises(gram.BadTensor, match="tensor block holds NaN") as got:
        mixed.ledger()
    assert got.value.identity == "broken"


def test_factors_whose_products_single_precision_cannot_hold(mixed, tmp_path):
    long = low_rank(256, 512, 2, 4)
    long.down[0] = 3e38
    mixed.leaves["long"] = adapter(tmp_path / "long", {"block": long})
    weights = {n: t.double() for n, t in mixed.base_weights.items()}
    weights["block"] = weights["block"] + long.up.double() @ long.down.double()
    mixed.leaf_weights.append(weights)
    assert_close(mixed.ledger().gram, mixed.exact(), 1e-6)


def test_a_model_joins_while_it_is_made(family):
    names = list(family.leaves)
    last = names.pop()
    few = {name: family.leaves[name] for name in names}
    ledger = gram.extend(gram.start(family.base, "b"), family.base, {}, few)
    made = family.leaves[last]
    with gram.Joining(ledger, family.base, few, {last: made.path}) as rows:
        for name in reversed(ledger.names):  # in whatever order they are made
            rows.add(name, [made.content(name)])
        joined = rows.ledger()
    assert joined.rows == family.ledger().rows
    assert torch.equal(joined.gram, family.ledger().gram)


def test_an_unmeasured_base_is_measured_with_the_others(family, mixed):
    for each in (family, mixed):
        blank = gram.unmeasured(each.base, "b")
        whole = gram.extend(blank, each.base, {}, each.leaves)
        assert torch.equal(whole.gram, each.ledger().gram)
    only = {"narrow": mixed.leaves["narrow"]}
    start = gram.extend(gram.start(mixed.base, "b"), mixed.base, {}, only)
    blank = gram.extend(gram.unmeasured(mixed.base, "b"), mixed.base, {}, only)
    assert torch.equal(blank.gram, start.gram)


def test_a_broken_base_is_named_though_it_was_not_measured_first(tmp_path, family):
    broken = {name: t.clone() for name, t in family.base_weights.items()}
    broken["run"][3] = torch.inf
    base = Checkpoint.open(tiny.bare(tmp_path / "broken", broken))
    leaves = {"leaf1": descend(base, family.leaves["leaf1"].path)}
    with pytest.raises(gram.BadTensor, match="tensor run holds infinity") as got:
        gram.extend(gram.unmeasured(base, "b"), base, {}, leaves)
    assert got.value.identity == "b"
