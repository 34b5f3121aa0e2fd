"""Where in a live transformers model each tensor of a checkpoint goes."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

__all__ = ["places"]


def places(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """
    A view of the model's memory for each tensor that `save_pretrained` would write.

    transformers 5 keeps some weights in another form than checkpoints do: the experts of Mixtral
    and Qwen-MoE are one tensor per layer. Its own conversion for saving, run on the live weights,
    gives the part of each expert. A tensor that is not a mere part (its numbers are computed) is
    left out: nothing can be written there.

    Returns:
        By the checkpoint's name. Tied weights appear under each of their names.
    """
    state = model.state_dict()
    if find_spec("transformers.core_model_loading") is None:  # transformers 4
        return state
    revert = import_module("transformers.core_model_loading").revert_weight_conversion
    with _Uncopied():
        found: dict[str, Tensor] = revert(model, dict(state))
    memory = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    return {
        name: place for name, place in found.items() if place.untyped_storage().data_ptr() in memory
    }


class _Uncopied(TorchFunctionMode):
    """Within it nothing is made contiguous: a part of a tensor stays a view."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.contiguous:
            return args[0]
        return func(*args, **(kwargs or {}))
