"""`python -m tests.real.demo`: slerp beside sums on all pairs of the demo's models, in a minute."""

from itertools import combinations

import numpy as np
from tests.real.lab import PAIR_METHODS

from kinship_daemon.landscapes import open_landscape
from kinship_policies.simulate.landscape import Merge
from kinship_policies.simulate.statistics import interval


def main() -> None:
    """Means over pairs, on validation documents: over the best parent, and over slerp."""
    with open_landscape("demo:founders=6") as landscape:
        world = landscape.world(0, frozenset())
        pairs = list(combinations([founder.name for founder in world.founders], 2))
        best = np.array([max(map(world.true, pair)) for pair in pairs])
        plain = None
        for number, (method, parameters) in enumerate(PAIR_METHODS):
            names = [f"{number} {a} {b}" for a, b in pairs]
            for name, pair in zip(names, pairs, strict=True):
                world.merge(Merge(name, pair, method, parameters))
            scores = np.array([world.true(name) for name in names])
            plain = scores if plain is None else plain
            for what, gain in (("best parent", scores - best), ("slerp", scores - plain)):
                low, high = interval(gain, 0)
                print(f"{method} {parameters}: {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}] {what}")


if __name__ == "__main__":
    main()
