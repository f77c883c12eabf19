"""Which methods of peft train privately, and what they need declared.

``python tests/benchmarks/peft_methods.py --write`` trains a small Llama by every method
of peft and writes the table into docs/reference/peft.md. A method trains if, for two
batches, the sums of clipped gradients that ``DPOptimizer`` would release are those of a
loop over examples. Of every method the least declaration is found: nothing, the frozen
weights and buffers of the model, or constants besides that its forward pass makes.

What is refused has to be refused by name, and for the reason that is stated here: any
other error stops the command.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from peft.tuners.waveft import waverec2d
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dp
from dp.per_sample import Declared


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "peft.md"
START, END = "<!-- generated: start -->", "<!-- generated: end -->"
EXAMPLES, LENGTH, WORDS, WIDTH = 4, 6, 32, 16
C = 0.5  # Some of the gradients are clipped.
FROZEN = "frozen weights and buffers"

Constants = Callable[[nn.Module], Sequence[Declared]]
LAYERS = {"target_modules": ["q_proj", "v_proj"]}
CAUSAL = {"task_type": "CAUSAL_LM"}
PROMPT = {**CAUSAL, "num_virtual_tokens": 3}


@dataclass(frozen=True)
class Method:
    """One method of peft.

    Attributes:
        options: Of its configuration.
        made: Returns the constants that its forward pass makes.
        says: What they are, for the table.
        refused: Why it is refused; empty if it is not.
        error: What the refusal has to say.
        dtype: Of the model: some methods take no other one.
        tasks: Whether every example has a task.
    """

    options: Mapping[str, Any]
    made: Constants = lambda _model: []
    says: str = ""
    refused: str = ""
    error: str = ""
    dtype: torch.dtype = torch.float64
    tasks: bool = False


def of_layers(attribute: str) -> Constants:
    """Return a function that finds what adapters keep as plain attributes."""

    def constants(model: nn.Module) -> list[Tensor]:
        kept = [
            value["default"]
            for module in model.modules()
            if isinstance(value := getattr(module, attribute, None), dict)
        ]
        tensors = [torch.as_tensor(one) for one in kept]
        return [*tensors, *(row for one in tensors if one.dim() == 2 for row in one)]

    return constants


def identities(_model: nn.Module) -> list[Tensor]:
    return [torch.eye(WIDTH), 2 * torch.eye(WIDTH)]


def ranks(model: nn.Module) -> list[Tensor]:
    """Return how many singular values AdaLoRA keeps, as it divides by them."""
    return [p.detach() + 1e-5 for n, p in model.named_parameters() if "ranknum" in n]


def wavelets(model: nn.Module) -> list[Tensor]:
    """Return where WaveFT's numbers go, and the filters that it transforms them with."""
    _, _, low, high = waverec2d._get_filter_tensors(
        "db1", flip=False, device=torch.device("cpu"), dtype=torch.get_default_dtype()
    )
    filters = waverec2d._construct_2d_filt(low, high)
    return [filters, *of_layers("waveft_indices")(model)]


def norms_of_dora(model: nn.Module) -> list[Declared]:
    """Return a function that computes the norms of the adapted weights."""
    layers = [m for m in model.modules() if hasattr(m, "lora_magnitude_vector")]

    def norms() -> Iterator[Tensor]:
        for layer in layers:
            if layer.lora_magnitude_vector:
                dora = layer.lora_magnitude_vector["default"]
                a, b = layer.lora_A["default"], layer.lora_B["default"]
                weight = layer.get_base_layer().weight
                low_rank = dora.get_lora_weight(a, b)
                yield dora.get_weight_norm(weight, low_rank, layer.scaling["default"])

    return [norms]


def tokens(_model: nn.Module) -> list[Tensor]:
    return [torch.arange(1, 6)]


METHODS: Mapping[str, Method] = {
    "LORA": Method({**LAYERS, "r": 2}),
    "LORA, DoRA": Method(
        {**LAYERS, "r": 2, "use_dora": True},
        norms_of_dora,
        "a function that returns the norms it divides by",
    ),
    "ADALORA": Method(
        {
            **LAYERS,
            "init_r": 4,
            "target_r": 2,
            "total_step": 10,
            "tinit": 1,
            "tfinal": 2,
        },
        ranks,
        "the number of ranks, plus 1e-5",
    ),
    "ADAMSS": Method(LAYERS),
    "ADAPTION_PROMPT": Method({**CAUSAL, "adapter_len": 3, "adapter_layers": 1}),
    "BEFT": Method(LAYERS),
    "BOFT": Method({**LAYERS, "boft_block_size": 4}, identities, "the identity matrix"),
    "C3A": Method({**LAYERS, "block_size": 4}),
    "CARTRIDGE": Method({**PROMPT, "num_frozen_tokens": 0}),
    "CARTRIDGE, frozen tokens": Method(
        PROMPT,
        refused="`torch.cat` joins trained tokens with frozen ones, and keeps nothing by"
        " which these could be told from data; set `num_frozen_tokens=0`",
        error="CatBackward0",
    ),
    "CPT": Method(
        {
            **CAUSAL,
            "cpt_token_ids": [1, 2, 3],
            "cpt_mask": [1, 1, 1],
            "cpt_tokens_type_mask": [1, 2, 4],
        }
    ),
    "DEFT": Method(LAYERS),
    "DELORA": Method({**LAYERS, "r": 2}),
    "FOURIERFT": Method(
        {**LAYERS, "n_frequency": 8},
        of_layers("indices"),
        "the places of its frequencies",
        dtype=torch.float32,
    ),
    "FROD": Method(
        LAYERS,
        refused="the weight is a sparse tensor, whose gradients for each example would"
        " be sparse",
        error="sparse weight",
    ),
    "GLORA": Method(LAYERS),
    "GRALORA": Method({**LAYERS, "r": 2, "gralora_k": 2}),
    "HIRA": Method({**LAYERS, "r": 2}),
    "HRA": Method({**LAYERS, "r": 2}, identities, "twice the identity matrix"),
    "IA3": Method(
        {
            "target_modules": ["q_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        }
    ),
    "LILY": Method(
        {**LAYERS, "r": 2},
        refused="it mixes examples: the weights of its experts are averaged over all"
        " tokens of the batch",
        error="units meet in",
    ),
    "LN_TUNING": Method({**CAUSAL, "target_modules": ["input_layernorm", "norm"]}),
    "LOHA": Method({**LAYERS, "r": 2}, of_layers("scaling"), "its scale, as a tensor"),
    "LOKR": Method({**LAYERS, "r": 2}),
    "MISS": Method({**LAYERS, "r": 2}),
    "OFT": Method({**LAYERS, "oft_block_size": 4}),
    "OFT, Cayley": Method({**LAYERS, "oft_block_size": 4, "use_cayley_neumann": False}),
    "SHIRA": Method({**LAYERS, "r": 2}),
    "PROMPT_TUNING": Method(PROMPT),
    "MULTITASK_PROMPT_TUNING": Method({**PROMPT, "num_tasks": 2}, tasks=True),
    "OSF": Method(
        {**LAYERS, "effective_rank": 4},
        refused="`torch.cat` joins trained factors with frozen ones, and keeps nothing by"
        " which these could be told from data",
        error="CatBackward0",
    ),
    "P_TUNING": Method({**PROMPT, "encoder_hidden_size": 8}),
    "PEANUT": Method(LAYERS),
    "POLY": Method({**LAYERS, **CAUSAL, "r": 2, "n_tasks": 2}, tasks=True),
    "PREFIX_TUNING": Method(PROMPT),
    "PSOFT": Method({**LAYERS, "r": 2}, dtype=torch.float32),
    "PVERA": Method({**LAYERS, "r": 2}),
    "RANDLORA": Method({**LAYERS, "r": 2}),
    "ROAD": Method({**LAYERS, "group_size": 8}),
    "SHADOW": Method(CAUSAL),
    "SUPERTUNING": Method(LAYERS),
    "TINYLORA": Method(LAYERS),
    "TRAINABLE_TOKENS": Method(
        {"target_modules": ["embed_tokens"], "token_indices": [1, 2, 3, 4, 5]},
        tokens,
        "the numbers of the tokens",
    ),
    "UNILORA": Method(LAYERS),
    "VBLORA": Method(
        {**LAYERS, "num_vectors": 8, "vector_length": 4, "r": 2, "topk": 2}
    ),
    "VERA": Method({**LAYERS, "r": 2}),
    "WAVEFT": Method(
        {**LAYERS, "n_frequency": 8},
        wavelets,
        "the places of its coefficients, and its filters",
    ),
    "XLORA": Method({"task_type": "CAUSAL_LM", "hidden_size": WIDTH, "xlora_depth": 1}),
}


@dataclass
class Row:
    """What one method came to."""

    name: str
    num_trained: int = 0
    declared: str = ""
    deviation: float = 0.0
    refused: str = ""
    told: list[str] = field(default_factory=list)


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def two_adapters(folder: Path) -> dict[str, str]:
    """Save two adapters to mix, as if they had been trained before."""
    paths = {}
    for seed, name in enumerate("01"):
        model = llama()
        torch.manual_seed(seed)
        lora = peft.LoraConfig(**LAYERS, r=2, init_lora_weights=False)
        paths[name] = str(folder / name)
        peft.get_peft_model(model, lora).save_pretrained(paths[name])
    return paths


def adapted(name: str, folder: Path) -> nn.Module:
    """Return the model with adapters whose every number is away from its start."""
    method, kind = METHODS[name], peft.PeftType(name.split(",", maxsplit=1)[0])
    options = dict(method.options)
    if name == "XLORA":
        options["adapters"] = two_adapters(folder)
    model = peft.get_peft_model(llama(), CONFIGS[kind](**options)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.05 * noise.to(parameter.dtype)
    return model


def losses_of(model: nn.Module, words_BT: Tensor, tasks_B: Tensor | None) -> Tensor:
    more = {} if tasks_B is None else {"task_ids": tasks_B}
    mask_BT = torch.ones_like(words_BT)
    logits = model(input_ids=words_BT, attention_mask=mask_BT, **more).logits
    logits = logits[:, -words_BT.shape[1] :]  # Without those of virtual tokens.
    losses_BT = cross_entropy(
        logits[:, :-1].transpose(1, 2), words_BT[:, 1:], reduction="none"
    )
    return losses_BT.mean(1)


def by_loop(
    model: nn.Module, words_BT: Tensor, tasks_B: Tensor | None
) -> tuple[Tensor, float]:
    """Return the sum of clipped gradients, and the largest norm of one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    total, largest = torch.zeros(()), 0.0
    for i in range(len(words_BT)):
        task = None if tasks_B is None else tasks_B[i : i + 1]
        loss = losses_of(model, words_BT[i : i + 1], task).sum()
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
        gradient = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten().double()
                for p, g in zip(trained, grads, strict=True)
            ]
        )
        norm = float(gradient.norm())
        total, largest = (
            total + gradient * min(1.0, C / (norm or C)),
            max(largest, norm),
        )
    return total, largest


def deviation(model: nn.Module, public: Sequence[Declared], *, tasks: bool) -> float:
    """Return how far released sums are from those of a loop, relative to these."""
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=0.0,
        max_grad_norm=C,
        expected_batch_size=EXAMPLES,
        steps=2,
        target_delta=1e-5,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = dp.DPOptimizer(
        torch.optim.SGD(trained, lr=0.01), plan=plan, public=public
    )
    worst = 0.0
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        words_BT = torch.randint(WORDS, (EXAMPLES, LENGTH), generator=generator)
        tasks_B = torch.arange(EXAMPLES) % 2 if tasks else None
        expected, largest = by_loop(model, words_BT, tasks_B)
        if largest < 1e-9:
            raise SystemExit("every gradient is zero, so nothing was compared")
        optimizer.backward(losses_of(model, words_BT, tasks_B))
        pending = optimizer.mechanism.pending
        assert pending is not None
        sums = [s.flatten().double() for s in pending.sums.of_parameters()]
        distance = float((torch.cat(sums) - expected).norm() / expected.norm())
        worst = max(worst, distance)
        optimizer.step()
    return worst


def declarations(method: Method) -> Iterator[tuple[str, Constants]]:
    """Yield what may be declared, the least first, and how it is found in a model."""
    yield "", lambda _model: []
    yield FROZEN, frozen
    if method.says:
        both = f"{FROZEN}; {method.says}"
        yield both, lambda model: [*frozen(model), *method.made(model)]


def frozen(model: nn.Module) -> list[Declared]:
    """Return what a model has and that is not trained."""
    weights = [p for p in model.parameters() if not p.requires_grad]
    return [*model.buffers(), *weights]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # peft makes parameters of what it casts.
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tried(name: str) -> Row:
    """Return the least declaration with which a method trains, or the refusal."""
    with default_dtype(METHODS[name].dtype):
        return _tried(name)


def _tried(name: str) -> Row:
    method, row = METHODS[name], Row(name)
    for declared, constants in declarations(method):
        with tempfile.TemporaryDirectory() as folder:
            model = adapted(name, Path(folder))
        trained = [p for p in model.parameters() if p.requires_grad]
        row.num_trained = sum(p.numel() for p in trained)
        try:
            row.deviation = deviation(model, constants(model), tasks=method.tasks)
        except dp.PrivacyError as error:
            row.told.append(str(error))
            continue
        if method.refused or row.deviation > 1e-5:
            raise SystemExit(f"{name} was served, at {row.deviation:.1e} of a loop")
        row.declared = declared or "nothing"
        return row
    if not method.refused or method.error not in row.told[-1]:
        raise SystemExit(f"{name} was refused: {row.told[-1]}")
    row.refused = method.refused
    return row


def page(rows: list[Row]) -> str:
    """Return the generated part of the page."""
    trained = [row for row in rows if not row.refused]
    kinds = {row.name.split(",")[0] for row in rows}
    served = {row.name.split(",")[0] for row in trained}
    plainly = sum(row.declared == "nothing" for row in trained)
    lines = [
        f"peft {version('peft')} has {len(kinds)} methods; {len(served)} train privately.",
        f"Of the {len(rows)} rows, {plainly} need nothing declared.",
        "",
        "| method | numbers trained | what to declare | deviation from a loop |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.num_trained} | "
        + (
            f"**refused**: {row.refused} | |"
            if row.refused
            else f"{row.declared} | {row.deviation:.0e} |"
        )
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="methods to try; all by default")
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    missing = {kind.value for kind in CONFIGS} - {n.split(",")[0] for n in METHODS}
    if missing:
        raise SystemExit(f"methods that are not in the table: {sorted(missing)}")
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in options.names or METHODS:
            rows.append(tried(name))
            print(rows[-1].name, rows[-1].declared or rows[-1].refused, flush=True)  # noqa: T201 -- progress
    text = page(rows)
    print(text)  # noqa: T201 -- the result
    if options.write:
        old = PAGE.read_text("utf-8")
        head, tail = old.split(START)[0], old.split(END)[1]
        PAGE.write_text(f"{head}{START}\n\n{text}\n\n{END}{tail}", "utf-8")


if __name__ == "__main__":
    main()
