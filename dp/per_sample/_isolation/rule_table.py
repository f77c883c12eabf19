"""The table of how owners pass operations, by the names of autograd's nodes.

What has no entry is asked itself, see :mod:`dp.per_sample._isolation.own_backward`: no
rule costs time, not correctness. So does an output besides the first, unless a rule
knows about outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from typing import Any, Final, final

from dp.per_sample._graph.nodes import Node
from dp.per_sample._isolation import (
    attention_rules as attention,
    integer_rules as integers,
    placement_rules as placement,
    routing_rules as routing,
    static_rules as static,
)
from dp.per_sample._isolation.integer_rules import IntegerRule
from dp.per_sample._isolation.mixing_flags import flags_of
from dp.per_sample._isolation.static_rules import (
    OutputRule,
    RowsRule,
    Shapes,
    along,
    axis_of,
)


__all__ = (
    "ATTENTION",
    "UNKNOWN",
    "FollowingRule",
    "Kind",
    "arguments_reader",
    "rule_for_owners",
)


class Kind(Enum):
    """What the owners behind a node follow from."""

    STATIC = auto()  # Shapes and arguments, which a known graph is compared by.
    ROUTING = auto()  # What it kept of this batch, at every step.
    UNKNOWN = auto()  # Its own backward, at every step.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FollowingRule:
    """How owners pass one kind of node.

    Attributes:
        rows: The rule for owners that are written out; None to ask the node itself.
        integers: The rule for regular owners; None to write them out.
        of_output: The rule for every output, if there are several.
        kind: What the answer follows from.
        regular_is_static: Whether what integers answer holds for all batches of such
            shapes, although other owners follow from what the node kept.
        reads: The arguments that the rule reads. A graph is known only if they are
            equal, unless the rule runs at every step.
    """

    rows: RowsRule | None = None
    integers: IntegerRule | None = None
    of_output: OutputRule | None = None
    kind: Kind = Kind.STATIC
    regular_is_static: bool = False
    reads: tuple[str, ...] = ()

    @property
    def is_asked(self) -> bool:
        """Whether the node's own backward is the rule."""
        return self.rows is None and self.of_output is None

    def is_static(self, shapes: Shapes, *, of_regular: bool = False) -> bool:
        """Whether the answer for these inputs holds for every batch of such shapes."""
        if of_regular and self.regular_is_static:
            return True
        # A dense product moves nothing; which kind it is shows only in what the node kept.
        if self.rows is routing.mm:  # Only the right side of a product is routed.
            return shapes[-1] is None
        return self.kind is Kind.STATIC


UNKNOWN: Final = FollowingRule(kind=Kind.UNKNOWN)


def rule_for_owners(node: Node) -> FollowingRule:
    """Return how owners pass a node."""
    return _RULES.get(type(node)) or _remembered(type(node))


_RULES: Final[dict[type, FollowingRule]] = {}


def _remembered(kind: type) -> FollowingRule:
    name = kind.__name__
    rule = _BY_NAME.get(name)
    # Torch numbers the overloads of an operation: SumBackward0 and SumBackward1 are alike.
    # A custom function's name ends in no digit, and may be that of an operation.
    if rule is None and name[-1].isdigit():
        rule = _BY_OPERATION.get(name.rstrip("0123456789").removesuffix("Backward"))
    following = UNKNOWN if rule is None else rule
    if not issubclass(kind, _FUNCTIONS):  # Users' classes may have any number.
        _RULES[kind] = following
    return following


def _functions() -> Any:
    from torch.autograd.function import BackwardCFunction  # noqa: PLC0415 -- a base class

    return BackwardCFunction


_FUNCTIONS: Final = _functions()


def _one_axis(node: Node, rank: int) -> Sequence[int]:
    return [axis_of(node._saved_dim, rank)]  # noqa: SLF001 -- see _graph.nodes


# Each element of the output is of one element of every input, so owners stay where they
# are. Gates are among them (Clamp, MaskedFill, Relu, Where), and count as open.
_POINTWISE: Final = """
    Abs Acos Acosh Add Addcdiv Addcmul Alias Angle Asin Asinh Atan Atan2 Atanh
    BinaryCrossEntropy BinaryCrossEntropyWithLogits Ceil Celu Clamp ClampMax ClampMin
    Clone Complex Conj ConjPhysical Copysign Cos Cosh Deg2Rad Digamma Div Elu Erf Erfc
    Erfinv Exp Exp2 Expm1 Fill FakeQuantizePerTensorAffineCachemask Floor Fmax Fmin Fmod
    Frac FusedDropout Gelu Hardshrink Hardsigmoid Hardswish Hardtanh HuberLoss Hypot I0
    L1Loss Ldexp LeakyRelu Lerp Lgamma Lift LiftFresh Log Log10 Log1P Log2 LogSigmoid
    Logaddexp Logaddexp2 Logit MaskedFill Maximum Minimum Mish MseLoss Mul NanToNum
    NativeDropout Neg NegView Polar Pow PreluKernel Rad2Deg Reciprocal Relu Remainder
    Round RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh SmoothL1Loss
    SoftMarginLoss Softplus Softshrink SpecialEntr SpecialErfcx SpecialI0E SpecialI1
    SpecialI1E SpecialLogNdtr SpecialNdtri Sqrt Square Sub Tan Tanh Threshold ToCopy Tril
    Triu Trunc Where Xlogy Expand
    EluBackward GeluBackward HardshrinkBackward HardswishBackward HardtanhBackward
    HuberLossBackward LeakyReluBackward LogSigmoidBackward MseLossBackward
    NativeDropoutBackward SigmoidBackward SmoothL1LossBackward SoftMarginLossBackward
    SoftplusBackward SoftshrinkBackward TanhBackward ThresholdBackward
    BinaryCrossEntropyBackward
"""
# Whoever owns the result owns all that was reduced. Max, Median and the like choose an
# entry by its value, another one in every batch: any may be it.
_REDUCTIONS: Final = """
    Amax Amin Kthvalue LinalgVectorNorm Logsumexp Max Mean Median Min Mode Nanmedian
    Nansum Norm Prod Std Sum Var
"""
# Every entry along the axis depends on the others, so units along it meet, as in a
# softmax over the batch. Of Glu one half of the axis gates the other.
_COUPLING: Final = """
    Cummax Cummin Cumprod Cumsum Glu LogSoftmax Logcumsumexp Sort Topk
"""
# [N, C, H, W]: only images are apart; windows and samples overlap along the rest.
_IMAGES: Final = """
    AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D AvgPool2D
    AvgPool3D GridSampler2D GridSampler3D MaxPool2DWithIndices MaxPool3DWithIndices
    Im2Col UpsampleBicubic2D UpsampleBilinear2D
    UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D
    UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D
    UpsampleTrilinear3D
"""
# [B, heads, T, D]: a softmax runs over all positions.
ATTENTION: Final = (
    "ScaledDotProductCudnnAttention",
    "ScaledDotProductEfficientAttention",
    "ScaledDotProductFlashAttention",
    "ScaledDotProductFlashAttentionForCpu",
    "ScaledDotProductFusedAttentionOverrideable",
)
# Without a rule, but what their backward answers follows from arguments alone.
_ASKED_ONCE: Final[Mapping[str, tuple[str, ...]]] = {
    "AsStrided": ("size", "storage_offset", "stride"),
    "ChannelShuffle": ("groups",),
    "Diagonal": ("dim1", "dim2", "offset"),
    "PixelShuffle": ("upscale_factor",),
    "PixelUnshuffle": ("downscale_factor",),
    "Rot90": ("dims", "k"),
    "Trace": (),
    "Unfold": ("dimension", "size", "step"),
}

_POINT = FollowingRule(rows=static.pointwise, integers=integers.pointwise)
_VIEW = FollowingRule(rows=static.view, integers=integers.view)
_REDUCED = FollowingRule(
    rows=static.reduction, integers=integers.reduction, reads=("dim",)
)
_COUPLED = FollowingRule(
    rows=static.couples(_one_axis), integers=integers.couples(_one_axis), reads=("dim",)
)
_TRANSFORMED = FollowingRule(
    rows=static.couples(along), integers=integers.couples(along), reads=("dim",)
)
_IMAGE = FollowingRule(rows=static.leading(1), integers=integers.leading(1))
# Regular owners are of whole rows of tokens, in which nothing has to be apart.
_HEADS = FollowingRule(
    rows=attention.fused_attention,
    integers=integers.leading(2),
    kind=Kind.ROUTING,
    regular_is_static=True,
)
_SOFTMAX = FollowingRule(
    rows=attention.softmax,
    integers=integers.couples(_one_axis),
    kind=Kind.ROUTING,
    regular_is_static=True,
    reads=("dim",),
)
_CONVOLUTION = FollowingRule(
    rows=static.with_weights(static.images), integers=integers.convolution
)
_BATCH_NORM = FollowingRule(
    rows=static.with_weights(static.batch_norm),
    integers=integers.batch_norm,
    reads=("training",),
)
_LAYER_NORM = FollowingRule(
    rows=static.with_weights(static.normalized),
    integers=integers.layer_norm,
    reads=("normalized_shape",),
)
_PIECES = FollowingRule(
    of_output=placement.pieces,
    integers=integers.elsewhere,
    reads=("dim", "split_size"),
)


def _routing(
    rows: RowsRule, integer_rule: IntegerRule | None = integers.elsewhere
) -> FollowingRule:
    # In integers, units along another axis than the index's are not moved by it.
    return FollowingRule(rows=rows, integers=integer_rule, kind=Kind.ROUTING)


def _groups() -> Iterator[tuple[str, FollowingRule]]:
    """Give the rules that serve many operations each."""
    yield _POINTWISE, _POINT
    yield "View UnsafeView ReshapeAlias Squeeze Unsqueeze", _VIEW
    yield _REDUCTIONS, _REDUCED
    yield _COUPLING, _COUPLED
    yield "SafeSoftmax Softmax", _SOFTMAX
    yield "FftC2C FftC2R FftR2C", _TRANSFORMED
    yield _IMAGES, _IMAGE
    # Of [1, B, T], as torch.stft pads signals, only the last axis is coupled.
    for axes in (1, 2, 3):
        names = f"ReflectionPad{axes}D ReplicationPad{axes}D"
        yield (
            names,
            FollowingRule(rows=static.leading(-axes), integers=integers.leading(-axes)),
        )
    yield " ".join(ATTENTION), _HEADS
    yield "Convolution ConvolutionOverrideable NativeGroupNorm", _CONVOLUTION
    yield "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm", _BATCH_NORM
    yield "NativeLayerNorm FusedRmsNorm", _LAYER_NORM
    yield "Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes", _PIECES
    yield (
        "NllLoss NllLoss2D",
        FollowingRule(rows=static.nll, integers=integers.nll, reads=("reduction",)),
    )
    yield "CtcLoss CudnnCtcLoss", FollowingRule(rows=static.ctc, integers=integers.ctc)
    yield "Cdist EuclideanDist", FollowingRule(rows=static.distances)
    yield "Dot Mv Vdot", FollowingRule(rows=static.mv)
    yield "Index UnsafeIndex", _routing(routing.index, integers.index)
    yield (
        "Scatter ScatterAdd ScatterReduce",
        _routing(routing.scatter, integers.scatter),
    )
    yield "IndexAdd IndexCopy IndexReduce", _routing(routing.with_source)
    yield "IndexPut IndexPutImpl UnsafeIndexPut", _routing(routing.index_put, None)


_BY_OPERATION: Final[Mapping[str, FollowingRule]] = {
    **{name: rule for names, rule in _groups() for name in names.split()},
    **{name: FollowingRule(reads=reads) for name, reads in _ASKED_ONCE.items()},
    "Addmm": FollowingRule(rows=static.product(1, 2), integers=integers.product(1, 2)),
    "Baddbmm": FollowingRule(
        rows=static.product(1, 2), integers=integers.product(1, 2)
    ),
    "Bmm": FollowingRule(
        rows=attention.bmm,
        integers=integers.product(0, 1),
        kind=Kind.ROUTING,
        regular_is_static=True,
    ),
    "Cat": FollowingRule(
        rows=placement.cat, integers=integers.elsewhere, reads=("dim",)
    ),
    "ConstantPadNd": FollowingRule(
        rows=placement.pad, integers=integers.pad, reads=("pad",)
    ),
    # No integers: rows of the table belong to whoever looked them up in this batch.
    "Embedding": _routing(routing.embedding, None),
    "Flip": FollowingRule(
        rows=placement.flip, integers=integers.unless_moved("dims"), reads=("dims",)
    ),
    "Gather": _routing(routing.gather),
    "IndexSelect": _routing(routing.index_select),
    "MaskedScatter": _routing(routing.masked_scatter, None),
    "MaskedSelect": _routing(routing.masked_select, None),
    "MkldnnRnnLayer": FollowingRule(of_output=static.sequences, reads=("batch_sizes",)),
    "Mm": FollowingRule(rows=routing.mm, integers=integers.mm, kind=Kind.ROUTING),
    "PackPaddedSequence": _routing(routing.pack_padded, None),
    "Permute": FollowingRule(
        rows=static.permute, integers=integers.permute, reads=("dims",)
    ),
    "Repeat": FollowingRule(rows=placement.repeat),
    "Roll": FollowingRule(
        rows=placement.roll,
        integers=integers.unless_moved("dims"),
        reads=("dims", "shifts"),
    ),
    "Select": FollowingRule(
        rows=placement.select, integers=integers.select, reads=("dim", "index")
    ),
    "Slice": FollowingRule(
        rows=placement.slices,
        integers=integers.elsewhere,
        reads=("dim", "start", "end", "step"),
    ),
    "SparseAddmm": _routing(routing.sparse_addmm, None),
    "Stack": FollowingRule(
        rows=placement.stack, integers=integers.stack, reads=("dim",)
    ),
    "T": FollowingRule(rows=static.t, integers=integers.t),
    "Transpose": FollowingRule(
        rows=static.transpose, integers=integers.transpose, reads=("dim0", "dim1")
    ),
    "Unbind": FollowingRule(
        of_output=placement.pieces, integers=integers.select, reads=("dim",)
    ),
    "ViewAsComplex": FollowingRule(rows=static.view_as_complex),
    "ViewAsReal": FollowingRule(rows=static.view_as_real),
    **{
        name: FollowingRule(of_output=static.each_reduction, reads=("dim",))
        for name in ("Aminmax", "StdMean", "VarMean")
    },
}
# A copy between devices, torch's own although its name has no number.
_BY_NAME: Final[Mapping[str, FollowingRule]] = {"CopyBackwards": _POINT}


def arguments_reader(node: Node) -> Callable[[Node], Any] | None:
    """Return what reads a kind of nodes' arguments that its owners follow from.

    None if there are none to read.
    """
    kind = type(node)
    if kind not in _READERS:
        rule = rule_for_owners(node)
        # A flag such as an embedding's scale_grad_by_freq divides by counts over the
        # batch, so it has to be compared like an axis.
        reads = (*rule.reads, *flags_of(kind.__name__))
        names = [f"_saved_{name}" for name in reads if hasattr(kind, f"_saved_{name}")]
        _READERS[kind] = attrgetter(*names) if names else None
    return _READERS[kind]


_READERS: Final[dict[type, Callable[[Node], Any] | None]] = {}
