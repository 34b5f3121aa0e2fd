"""What `base_model` means, which differs from method to method, and mergekit's other parameters."""

from enum import Enum

from kinship_daemon.weights.methods.registry import method

__all__ = ["FIXED", "ON_DELTAS", "WITHOUT_EFFECT", "Role", "lacks", "role_of"]


class Role(Enum):
    """
    What `base_model` is to the merge.

    FIRST is the first of the models, where the interpolation begins; PARENT is one of the models
    like any other, whose tokenizer and config go along; ANCESTOR is what differences are taken
    from, and no model of its own; ORIGIN is that where it is given, and else the method works on
    full weights.
    """

    FIRST = "first"
    PARENT = "parent"
    ANCESTOR = "ancestor"
    ORIGIN = "origin"


_ROLES = {
    "extrapolation": Role.PARENT,  # ours alone; its second model is often the base
    "karcher": Role.PARENT,
    "linear": Role.PARENT,
    "multislerp": Role.ORIGIN,
    "nuslerp": Role.ORIGIN,
    "slerp": Role.FIRST,
}

# Our parameter of the methods where `base_model` is an ORIGIN: there is one, or there is none.
ON_DELTAS = "of_deltas"

# mergekit reads these and makes the same model whatever they say.
WITHOUT_EFFECT = {
    None: frozenset({"int8_mask"}),  # of any method
    "task_arithmetic": frozenset({"density", "rescale"}),
}

# mergekit has these; we have the method as it is with this value.
FIXED = {
    "model_stock": {"filter_wise": False},
    "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
}

_OURS_ALONE = frozenset({"emr", "extrapolation", "frobenius", "metagpt", "nan"})


def role_of(name: str) -> Role:
    """Of any method, mergekit's or not: a method that we do not know takes differences."""
    return _ROLES.get(name, Role.ANCESTOR)


def lacks(name: str) -> bool:
    """Whether mergekit 0.1.5 has no such method: none on whole matrices, nor some of ours."""
    return name in _OURS_ALONE or method(name).kind == "matrix"
