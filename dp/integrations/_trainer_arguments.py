"""Arguments of the Hugging Face Trainer that a private run cannot honour."""

from copy import copy
from typing import Any, Final

from transformers import TrainingArguments

from dp.exceptions import UnsupportedOperationError
from dp.plan import PrivacyPlan
from dp.sampling import Unamplified


__all__ = ("check_arguments", "check_strategy", "private_arguments")

# What each may be, and what it would do otherwise.
_REFUSED: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "auto_find_batch_size": (
        (False,),
        "starts training again where memory runs out, after steps that were charged",
    ),
    "ddp_broadcast_buffers": (
        (None, False),
        "lets processes wait for each other at every pass, and their number differs",
    ),
    "include_num_input_tokens_seen": (
        ("no", False),
        "counts the tokens of the batches that were drawn, without noise, and logs it",
    ),
    "neftune_noise_alpha": (
        (None,),
        "scales an example's noise by the padded length, so that examples are mixed",
    ),
    "torch_compile": (
        (False,),
        (
            "compiles by a backend that hides what becomes of each example; call"
            " model.compile(backend=dp.compile_backend) instead"
        ),
    ),
}


def check_strategy(trainer: Any) -> None:
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        name = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP"
        raise UnsupportedOperationError(
            f"the Trainer's {name} sums gradients over examples while it computes them,"
            " so none could be clipped alone; train without it, or with FSDP2 in a"
            " loop of your own"
        )
    if trainer.args.n_gpu > 1:
        raise UnsupportedOperationError(
            f"Trainer would use DataParallel on {trainer.args.n_gpu} devices; show it"
            " one by CUDA_VISIBLE_DEVICES"
        )


def check_arguments(args: TrainingArguments, plan: PrivacyPlan) -> None:
    default = 1.0  # Trainer's own, so it cannot be told from one that was meant.
    if args.max_grad_norm not in (0, default, plan.max_grad_norm):
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm!r}, but the plan clips each example at"
            f" {plan.max_grad_norm!r}, and nothing else is clipped; make them equal"
        )
    if args.max_steps > plan.steps:
        raise ValueError(
            f"max_steps={args.max_steps}, but the plan has {plan.steps} steps; plan for"
            " as many as will be taken, or leave max_steps out"
        )
    if args.dataloader_drop_last or args.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} and"
            f" dataloader_drop_last={args.dataloader_drop_last!r} choose batches that"
            " the plan must draw; leave them at 'random' and False"
        )
    for name, (harmless, why) in _REFUSED.items():
        value = getattr(args, name)
        if value not in harmless:
            raise UnsupportedOperationError(
                f"{name}={value!r} {why}; leave it at {harmless[0]!r}"
            )
    if isinstance(plan.sampling, Unamplified):
        parts = plan.sampling.backwards_per_step
        if args.gradient_accumulation_steps != parts:
            raise ValueError(
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}, but"
                f" the plan is {plan.sampling!r}; make the two numbers equal"
            )


def private_arguments(args: TrainingArguments, plan: PrivacyPlan) -> TrainingArguments:
    """Return a copy for a run of *plan*; another trainer may be built from *args*."""
    own = copy(args)
    if own.max_steps < 0:
        own.max_steps = plan.steps
    # A checkpoint is resumed with new draws: there are no old ones to skip.
    own.ignore_data_skip = True
    if not isinstance(plan.sampling, Unamplified):
        # A draw goes through the model in parts of a device's batch anyway; the Trainer
        # loads all parts of an accumulated batch ahead: whose rows are in which is lost.
        own.gradient_accumulation_steps = 1
    return own
