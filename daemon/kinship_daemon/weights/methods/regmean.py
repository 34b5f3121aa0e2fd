"""RegMean (arXiv 2212.09849): keeps what each parent makes of its own inputs, by least squares."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.least_squares import solve_inputs
from kinship_daemon.weights.methods.method import Parameter, Settings, input_method
from kinship_daemon.weights.methods.singular import share

__all__ = ["regmean"]


@input_method(
    Parameter("off_diagonal", default=0.9, doc="what G_i keep beside the diagonal, from 0 to 1"),
    Parameter("ridge", default=1e-6, doc="added to each G_i, of its mean eigenvalue"),
    parents=(1, None),
)
def regmean(deltas: Sequence[Tensor], parameters: Settings, inputs: Sequence[Tensor]) -> Tensor:
    """
    X sum_i G_i = sum_i d_i G_i, where G_i is the mean of x x^T over the inputs x of parent i's
    layer on texts of its task, all but its diagonal times `off_diagonal`.

    The paper's 0.9 keeps sums of few texts from being singular; inputs that no text has are
    averaged by the ridge. A mean over tokens, so that a parent with more texts counts no more.
    Needs texts: `kinship-daemon merge --texts`.
    """
    kept = share(parameters, "off_diagonal")

    def gram(i: int) -> Tensor:
        found = inputs[i].to(deltas[i].device).mul(kept)
        found.diagonal().copy_(inputs[i].diagonal())
        return found

    return solve_inputs(deltas, gram, sum(float(each.trace()) for each in inputs), parameters)
