"""Per-example gradients from one backward pass over an ordinary autograd graph.

The model is not touched: no hooks, no wrapped modules, no replaced layers. The graph
from the losses back to the parameters says where each parameter is used; autograd is
asked for the gradients at these places only, so it never computes the parameters'
own. What it kept for its backward says the rest.

Shapes: ``B`` examples, ``U`` units of privacy, which are examples unless units are
given, ``N`` losses.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import final

from torch import Tensor

from dp.exceptions import SampleMixingError
from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._graph.public import Declared, PublicTensors
from dp.per_sample._graph.uses import shapes_of
from dp.per_sample._isolation.data_rows import check_batch, kept_data
from dp.per_sample._isolation.mixing_flags import check_flags
from dp.per_sample._isolation.own_sums import OwnSums, own_sums
from dp.per_sample._isolation.units import Units
from dp.per_sample._isolation.verification import Verification, Verifier
from dp.per_sample._known_graphs import KnownGraphs
from dp.per_sample._passes import Passes


__all__ = ("Engine",)


@final
class Engine:
    """Find every example's gradient in the graph of a vector of losses.

    Guarantees:
        * ``p.grad`` is neither read nor written; the graph is freed, as by
          ``backward``.
        * A parameter that no loss depends on has gradients of zero.
        * An operation without a rule is served by a slower path, with one warning
          that names it; nothing is ever left out.
        * Losses by which one unit's gradient reaches another's rows raise: by their
          graph at every step, and by hooks or by wrong rules where it is verified.
        * Where it is verified, sums are those of torch's own backward pass, and the
          norm of a unit that is chosen at random is not smaller than its gradient's.

    Attributes:
        num_passes: How many batches were differentiated.
        has_batch: Whether the last one was compared with a loader's batch.

    Args:
        public: Tensors that are no data, but constants of the program, or functions that
            return such tensors, as they are at the step.
        verification: How often the isolation of units is verified by a second pass.
    """

    def __init__(
        self,
        *,
        public: Iterable[Declared] = (),
        verification: Verification | None = None,
    ) -> None:
        self._graphs = KnownGraphs(PublicTensors(public))
        self._verifier = Verifier(verification or Verification())
        self._warned: set[str] = set()
        self._kept: Passes | None = None
        self.num_passes: int = 0
        self.has_batch: bool = False

    def gradients(
        self,
        losses: Tensor,
        parameters: Sequence[Tensor],
        *,
        loss_scale: float = 1.0,
        units: Tensor | None = None,
        reduction: str = "sum",
        groups: Sequence[int] | None = None,
        batch: Sequence[Tensor] = (),
        unit_of_row: Tensor | None = None,
        admit_data: Callable[[Sequence[Tensor]], object] | None = None,
        keep_graph: bool = False,
    ) -> PerSampleGradients:
        """Return the gradients of every unit's losses with respect to *parameters*.

        Args:
            losses: One loss an example; with units, losses of any shape.
            parameters: Leaves of the graph that require gradients.
            loss_scale: What the losses are multiplied with on the way back, so that
                half-precision gradients do not underflow. The result is divided by it.
            units: The unit of each loss, a whole number. Units are numbered in the
                result in ascending order.
            reduction: Whether a unit's gradient is the sum of its losses' or the mean.
            groups: The group of each parameter, as gradients are to be clipped, whose
                norms are verified; one group if None.
            batch: The tensors of the loader's batch, the examples along the first axis.
            unit_of_row: The unit that each row was drawn as; None if each is one.
            admit_data: Called with the data that the graph keeps, as far as it does,
                before any gradient is computed; raises if the losses are not to be
                differentiated.
            keep_graph: Whether :meth:`own_sums` will be asked for.

        Raises:
            SampleMixingError: If a loss depends on another unit.
            UnsupportedOperationError: If the graph hides where parameters are used,
                or if an example is not finite where an operation without a rule would
                spread that to the others.
            WrongGradientError: If norms or sums are not those of torch's own backward
                pass, where it is verified.
            ValueError: If *units* are no whole numbers of the shape of the losses.
        """
        # Example: losses [0.5, 2.0, 1.0] with units [7, 7, 9] are two units, 0 and 1:
        # with "sum" the losses 2.5 and 1.0, with "mean" 1.25 and 1.0.
        self._kept = None
        whose = Units.of(losses, units)
        nonfinite_U = whose.nonfinite(losses)
        # Nothing to differentiate: every gradient is zero, or dropped, as the norms
        # say. An empty batch comes here too.
        is_detached = losses.grad_fn is None
        nothing = partial(PerSampleGradients, {}, parameters, nonfinite_U)
        if is_detached or not len(nonfinite_U):
            return nothing(is_detached=is_detached)
        root = (losses.grad_fn, losses.output_nr)
        known = self._graphs.find(root, parameters, whose)
        # Before any gradient exists, so that a refused batch has released nothing.
        if admit_data is not None:
            admit_data(kept_data(known.graph.uses, root))
        # One loss alone mixes with nobody.
        if batch and losses.numel() > 1:
            uses, owners, num_units = (
                known.graph.uses,
                known.plan.owners,
                whose.num_units,
            )
            check_batch(uses, owners, batch, unit_of_row, num_units=num_units)
        # One that mixes may have made all others so, hence after the graph's checks.
        if float(nonfinite_U.min()) > 0:
            return nothing()
        factor_U = whose.weights(reduction).to(losses.device) * loss_scale
        groups = [0] * len(parameters) if groups is None else [*groups]
        passes = Passes(
            known,
            losses,
            parameters,
            groups,
            whose,
            factor_U,
            loss_scale,
            nonfinite_U,
        )
        self.num_passes += 1
        self.has_batch = admit_data is not None
        gradients = self._verified(passes, keep_graph=keep_graph)
        if known.plan.is_by_zeros:
            _check_finite(gradients, groups)
        self._kept = passes if keep_graph else None
        self._warn(passes.without_rule)
        return gradients

    @property
    def keeps_graph(self) -> bool:
        """Whether the graph of the last batch was kept."""
        return self._kept is not None

    def own_sums(self, factor_U: Tensor, norms_GU: Tensor) -> OwnSums | None:
        """Return what torch adds up for the batch whose graph was kept, and free it.

        Returns:
            None if no graph was kept, or if torch's pass could not be compared.

        Args:
            factor_U: What the gradient of each unit is multiplied with.
            norms_GU: How long it is in each group of parameters.
        """
        passes, self._kept = self._kept, None
        if passes is None or not (passes.parameters and self._verifier.is_linear):
            return None
        return own_sums(passes, factor_U, norms_GU)

    def _verified(self, passes: Passes, *, keep_graph: bool) -> PerSampleGradients:
        """Run the private pass, and others to verify it if it is their turn."""
        # Without parameters, as DeepSpeed leaves them, there is nothing to verify.
        if not passes.parameters or not self._verifier.is_due():
            return passes.last(keep_graph=keep_graph)
        root = passes.root
        # What was remembered is verified with the rest: by a walk over the graph as it
        # is.
        self._graphs.check_recognised(passes.known, root, passes.parameters)
        # A gradient that is scaled by the batch is torch's own, and no pass shows it.
        check_flags(passes.known.graph.nodes)
        return self._verifier.verified(passes, keep_graph=keep_graph)

    def _warn(self, without_rule: Mapping[str, Sequence[Tensor]]) -> None:
        """Warn once of every operation that no rule serves."""
        for operation, parameters in without_rule.items():
            if operation not in self._warned:
                self._warned.add(operation)
                warnings.warn(
                    f"no rule serves {operation} with parameters of shape"
                    f" {shapes_of(parameters)}:"
                    " their gradients are right, but found by a backward pass of it for"
                    " each example",
                    stacklevel=6,
                )


def _check_finite(gradients: PerSampleGradients, groups: Sequence[int]) -> None:
    """Raise if weights of zero may not have kept units apart: zero times NaN is NaN."""
    if not bool(gradients.squared_norms(groups).isfinite().all()):
        raise SampleMixingError(
            "a loss or a gradient is not finite, or too large, in a batch whose units are"
            " packed in one sequence: attention keeps them apart by weights of zero, and"
            " zero times what is not finite is not zero. Keep losses and gradients finite"
            " (as by a smaller learning rate, or a clamp under a root), or pad sequences"
            " instead of packing them"
        )
