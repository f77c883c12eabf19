"""Write the table of operations into ``reference/operations.md``, and the picture.

Run ``python docs/operations.py`` after a change of the engine's rules.
"""

from itertools import groupby
from operator import itemgetter
from pathlib import Path

from dp.per_sample._rules.table import RULES


PAGE = Path(__file__).parent / "reference" / "operations.md"
PICTURE = Path(__file__).parent / "explanation" / "the-engine.svg"
_FIRST, _LAST = "<!-- operations -->", "<!-- end of operations -->"

# By node: what a user calls the operation, and how its gradients are held.
_DESCRIBED = {
    "AddBackward0": ("`+`", "keep"),
    "AddmmBackward0": ("`nn.Linear`, `torch.addmm`", "keep, gram, redo"),
    "BaddbmmBackward0": ("`torch.baddbmm`", "keep, gram, redo"),
    "BmmBackward0": (
        "batched products: `torch.bmm`, `@`, `torch.einsum`",
        "keep, gram, redo",
    ),
    "CatBackward0": ("`torch.cat`, such as of a class token", "keep"),
    "ConvolutionBackward0": (
        "convolutions of 1 to 3 dimensions, also transposed, dilated, in groups",
        "keep, redo",
    ),
    "CudnnBatchNormBackward0": (
        "`nn.InstanceNorm`; `nn.BatchNorm` in evaluation mode",
        "keep",
    ),
    "DivBackward0": ("`/`", "keep"),
    "EmbeddingBackward0": ("`nn.Embedding`", "rows that are looked up"),
    "EmbeddingBagBackward0": (
        "`nn.EmbeddingBag` of sums and means",
        "rows that are looked up",
    ),
    "FusedRmsNormBackward0": ("`nn.RMSNorm`", "keep"),
    "GroupedMmBackward0": ("routed experts: `F.grouped_mm`", "gram, redo"),
    "IndexBackward0": ("`table[index]`", "rows that are looked up"),
    "IndexSelectBackward0": ("`torch.index_select` of rows", "rows that are looked up"),
    "MkldnnRnnLayerBackward0": ("`nn.LSTM` that oneDNN runs", "keep, gram, redo"),
    "MmBackward0": ("`@`, `torch.mm`, `nn.Linear` without a bias", "keep, gram, redo"),
    "MulBackward0": ("`*`", "keep"),
    "MvBackward0": ("a matrix times a vector", "keep"),
    "NativeBatchNormBackward0": (
        "`nn.InstanceNorm`; `nn.BatchNorm` in evaluation mode",
        "keep",
    ),
    "NativeGroupNormBackward0": ("`nn.GroupNorm`", "keep"),
    "NativeLayerNormBackward0": ("`nn.LayerNorm`", "keep"),
    "PreluKernelBackward0": ("`nn.PReLU`", "keep"),
    "ScaledDotProductFlashAttentionForCpuBackward0": (
        "`F.scaled_dot_product_attention` of learned queries, keys or values",
        "keep",
    ),
    "SubBackward0": ("`-`", "keep"),
    "WhereBackward0": ("`torch.where`", "keep"),
}

# The picture: boxes by column and row, with their kind, and what points to what.
_BOXES = {
    "losses [B]": (1, 0, "seed"),
    "NllLossBackward0": (1, 1, "other"),
    "AddmmBackward0 ": (1, 2, "use"),
    "ReluBackward0": (1, 3, "other"),
    "AddmmBackward0": (1, 4, "use"),
    "bias 2": (0, 3, "parameter"),
    "weight 2": (2, 3, "parameter"),
    "bias 1": (0, 5, "parameter"),
    "weight 1": (2, 5, "parameter"),
}
_EDGES = [
    ("losses [B]", "NllLossBackward0"),
    ("NllLossBackward0", "AddmmBackward0 "),
    ("AddmmBackward0 ", "ReluBackward0"),
    ("ReluBackward0", "AddmmBackward0"),
    ("AddmmBackward0 ", "bias 2"),
    ("AddmmBackward0 ", "weight 2"),
    ("AddmmBackward0", "bias 1"),
    ("AddmmBackward0", "weight 1"),
]
_FILLS = {
    "seed": "#ffffff",
    "other": "#eeeeee",
    "use": "#cfe3f7",
    "parameter": "#fbe3c0",
}
_WIDTH, _HEIGHT, _ACROSS, _DOWN = 170, 34, 200, 62


def table() -> str:
    """Return the table in Markdown, one row for each operation."""
    rows = ["| operation | in autograd's graph | how it is held |", "|---|---|---|"]
    described = sorted((_DESCRIBED[name], name) for name in RULES)
    described.sort(key=lambda item: item[0][0].strip("`").lower())
    for (operations, how), same in groupby(described, key=itemgetter(0)):
        nodes = ", ".join(f"`{name}`" for _, name in same)
        rows.append(f"| {operations} | {nodes} | {how} |")
    return "\n".join(rows)


def rewritten(page: str) -> str:
    """Return the page with the table as it is now."""
    before, _, rest = page.partition(f"{_FIRST}\n")
    _, _, after = rest.partition(_LAST)
    return f"{before}{_FIRST}\n\n{table()}\n\n{_LAST}{after}"


def picture() -> str:
    """Return the graph of two linear layers, with what is read from it, as SVG."""
    lines = [_line(*edge) for edge in _EDGES]
    boxes = [_box(name, *place) for name, place in _BOXES.items()]
    notes = [
        _note(1, 2, "output gradient, and the inputs it kept"),
        _note(1, 4, "output gradient, and the inputs it kept"),
        _caption(0, "solid: the backward pass"),
        _caption(2, "dashed: gradients that are never computed"),
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 730 410"'
        ' font-family="sans-serif" font-size="13">\n'
        "<title>The autograd graph of two linear layers</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#444444"/>'
        "</marker></defs>\n"
        '<rect width="730" height="410" fill="#ffffff"/>\n'
        + "\n".join([*lines, *boxes, *notes])
        + "\n</svg>\n"
    )


def _place(name: str) -> tuple[int, int]:
    column, row, _ = _BOXES[name]
    return 10 + column * _ACROSS, 10 + row * _DOWN


def _line(above: str, below: str) -> str:
    (x1, y1), (x2, y2) = _place(above), _place(below)
    dash = ' stroke-dasharray="4"' if _BOXES[below][2] == "parameter" else ""
    return (
        f'<line x1="{x1 + _WIDTH // 2}" y1="{y1 + _HEIGHT}" x2="{x2 + _WIDTH // 2}"'
        f' y2="{y2}" stroke="#444444"{dash} marker-end="url(#tip)"/>'
    )


def _box(name: str, column: int, row: int, kind: str) -> str:
    x, y = 10 + column * _ACROSS, 10 + row * _DOWN
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"'
        f' fill="{_FILLS[kind]}" stroke="#444444"/>'
        f'<text x="{x + _WIDTH // 2}" y="{y + 22}" text-anchor="middle">{name}</text>'
    )


def _note(column: int, row: int, text: str) -> str:
    x, y = 30 + (column + 1) * _ACROSS, 10 + row * _DOWN
    return f'<text x="{x - 20}" y="{y + 22}" fill="#1a5a96">{text}</text>'


def _caption(column: int, text: str) -> str:
    return f'<text x="{10 + column * _ACROSS}" y="395" fill="#444444">{text}</text>'


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
    PICTURE.write_text(picture())
