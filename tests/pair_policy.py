"""A policy for the soaks, sent to a process of its own: it waits for two, and merges them once."""

from dataclasses import dataclass

from kinship_policies.policy import Decision, Proposal


@dataclass(frozen=True)
class PairPolicy:
    """Stops until both parents are there, and when they are merged."""

    parents: tuple[str, str]

    def propose(self, population):
        pair = tuple(self.parents)
        stop, merges = None, ()
        if not all(name in population for name in pair):
            stop = "waits for its parents"
        elif tuple(sorted(pair)) in population.merged:
            stop = "has merged them"
        else:
            merges = (Proposal(pair, "pair", "as written"),)
        return Decision(merges, population.best(2), None, stop=stop)
