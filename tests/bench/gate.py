"""
Does the gate hold what it says? Simulated evolutions, judged by it and by the gate before.

Luck is a publication that is truly no better than its best parent; its share is the mean over
homes of luck among the publications (0 where there are none): the false discovery rate. Power is
the share of judged merges published, of those that are truly better by half a point or more than
all that they are held against.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
from tests.bench.bench import Bench
from tests.bench.gates import Fate, before, ours, with_looks
from tests.bench.homes import Home, all_equal, equal_newcomers, evolutions, one_incumbent
from tests.bench.race import race
from tests.bench.table import Row, verdict

from kinship_daemon.evaluate.settings import Evaluate

__all__ = ["gate"]

Fates = Sequence[Sequence[Fate]]

_MOST_LUCK = 0.05
_HALF_A_POINT = 0.005
_ROUNDS = 10
# What `race` is to reach: share of the documents that losers are asked, and of winners stopped.
_RACE = {"smooth": 0.61, "rugged": 0.38}
_MOST_STOPPED = 0.02
_MOST_ASKED = 0.40
_MOST_POWER_LOST = 0.08
# Beside the default: fewer documents and more winners stopped, and the other way round.
_WIDTHS = (1.9, 2.6)


def gate(bench: Bench) -> list[Row]:
    smooth = partial(evolutions, rugged=0.0)
    rugged = partial(evolutions, rugged=1.0)
    rounds = partial(evolutions, rugged=0.0, rounds=_ROUNDS)
    count = bench.evolutions
    rows: list[Row] = []
    kept: dict[str, list[Home]] = {}
    for name, make, homes in (
        ("equal newcomers", equal_newcomers, count),
        ("all equal", all_equal, count),
        ("smooth", smooth, count),
        ("rugged", rugged, count),
        ("ten in a row", rounds, max(1, count // _ROUNDS)),
        ("one incumbent, the hardest case", one_incumbent, count),
    ):
        bench.progress.runs(f"gate: {homes} homes, {name}")
        made: Iterable[Home] = map(make, range(homes))
        if name in _RACE:
            made = kept[name] = list(made)
        rows.append(_luck(name, made))
    for name, made in kept.items():
        bench.progress.runs(f"looks and race: {name}")
        rows += [_looks(name, made), _race(name, made)]
    return rows


def _luck(name: str, homes: Iterable[Home]) -> Row:
    judged = [(ours(home, require="parents"), ours(home), before(home)) for home in homes]
    by_parents, best, old = zip(*judged, strict=True)
    worst = max(_share(by_parents), _share(best))
    hardest = name.startswith("one incumbent")
    return Row(
        f"gate: {name}",
        _words(by_parents),
        f"{_words(old)}, the gate before",
        bar="" if hardest else f"luck at most {_MOST_LUCK:.0%}",
        verdict="measured" if hardest else verdict(worst <= _MOST_LUCK),
        notes=(
            f"{len(judged):,} homes; where the best published must be beaten, too (the default): "
            f"{_words(best)}; publications a home {_published(best):.2f}, by parents alone "
            f"{_published(by_parents):.2f}, before {_published(old):.2f}",
        ),
        facts={
            kind: {"luck": _share(f), "power": _power(f), "published": _published(f)}
            for kind, f in (("parents", by_parents), ("best", best), ("before", old))
        },
    )


def _looks(name: str, homes: Sequence[Home]) -> Row:
    fixed = [ours(home) for home in homes]
    early, both = (
        [with_looks(h, f, futility=futility) for h, f in zip(homes, fixed, strict=True)]
        for futility in (False, True)
    )
    asked, lost = _asked(both), _power(fixed) - _power(both)
    return Row(
        f"looks: {name}",
        f"{asked:.0%} of the documents",
        "100 %, without looks",
        f"{-100 * lost:+.1f} points of power",
        f"at most {_MOST_ASKED:.0%}, {100 * _MOST_POWER_LOST:.0f} points lost",
        verdict(asked <= _MOST_ASKED, lost <= _MOST_POWER_LOST),
        notes=(
            f"accepting early alone: {_asked(early):.0%} of the documents, "
            f"{100 * (_power(early) - _power(fixed)):+.1f} points; power is {_power(fixed):.0%} "
            "without looks",
        ),
        facts={
            kind: {"asked": _asked(f), "power": _power(f), "luck": _share(f)}
            for kind, f in (("fixed", fixed), ("early", early), ("futility", both))
        },
    )


def _race(name: str, homes: Sequence[Home]) -> Row:
    width = Evaluate().race_width
    found, others = race(homes, width), {each: race(homes, each) for each in _WIDTHS}
    losers, stopped = found.by_parent
    return Row(
        f"race: {name}",
        f"losers asked {found.losers:.0%}",
        f"{found.own_mean:.0%}, by a child's own answers",
        f"{found.winners:.1%} of winners stopped",
        f"at most {_RACE[name]:.0%}, {_MOST_STOPPED:.0%} stopped",
        verdict(
            max(found.losers, losers) <= _RACE[name], max(found.winners, stopped) <= _MOST_STOPPED
        ),
        notes=(
            f"{width} standard deviations below the three best and the better parent; all merges "
            f"asked {found.everyone:.0%}; where that parent alone is to be beaten: losers "
            f"{losers:.0%}, {stopped:.1%} of winners stopped",
            f"founders among themselves asked {found.founders:.0%}, "
            f"{found.founders_stopped:.1%} of the three best stopped",
            *(
                f"{each} standard deviations: losers asked {other.losers:.0%}, all merges "
                f"{other.everyone:.0%}, {other.winners:.1%} of winners stopped"
                for each, other in others.items()
            ),
        ),
        facts={"default": asdict(found), **{str(w): asdict(other) for w, other in others.items()}},
    )


def _words(homes: Fates) -> str:
    power = _power(homes)
    return f"luck {_share(homes):.1%}" + ("" if np.isnan(power) else f", power {power:.0%}")


def _share(homes: Fates) -> float:
    """The false discovery rate."""
    lucky = [sum(f.passed and f.gain <= 0 for f in fates) for fates in homes]
    passed = [max(1, sum(f.passed for f in fates)) for fates in homes]
    return float(np.mean(np.array(lucky) / passed))


def _power(homes: Fates) -> float:
    good = [f.passed for fates in homes for f in fates if f.over_all >= _HALF_A_POINT]
    return float(np.mean(good)) if good else float("nan")


def _published(homes: Fates) -> float:
    return float(np.mean([sum(f.passed for f in fates) for fates in homes]))


def _asked(homes: Fates) -> float:
    return float(np.mean([f.asked for fates in homes for f in fates]))
