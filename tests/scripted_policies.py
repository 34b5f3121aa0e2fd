"""Policies for the tests that are sent to a process of their own: quick to import there."""

import os
from dataclasses import replace

from kinship_policies.policy import Decision, Proposal


class Scripted:
    """Answers with these proposals, generation after generation, then with nothing at all."""

    def __init__(self, *generations):
        self.generations = generations

    def propose(self, population):
        merges = dict(enumerate(self.generations, 1)).get(population.generation, ())
        return Decision(tuple(merges), population.best(2), None)


def merge(*parents, **rest):
    """A proposal by the names of the demo's skills and of merges."""
    names = tuple(name if name.startswith("model-") else f"demo/{name}" for name in parents)
    return Proposal(names, "pair", "as written", **rest)


class Moody:
    """A policy whose code changes: the environment says how it is today."""

    def propose(self, population):
        match os.environ["MOOD_OF_THE_CODE"]:
            case "stops":
                return Decision((), population.best(2), None, stop="enough")
            case "raises":
                raise KeyError("no idea")
            case "strange":
                merges = (merge("add", "nobody"),)
            case "unsound":
                merges = (merge("add", "max", parameters={"tt": 1}),)
            case "rewords":
                merges = (replace(merge("add", "max"), reason="as written, in other words"),)
            case "explores":
                merges = (replace(merge("add", "max"), role="exploration"),)
            case _:
                merges = (merge("add", "max"),)
        return Decision(merges, population.best(2), None)
