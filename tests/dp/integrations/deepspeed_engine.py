"""Train under a real DeepSpeed engine on CPU, and print what was seen as JSON.

A process of its own: importing DeepSpeed changes what accelerate and transformers do.
Run by ``test_deepspeed.py``, with the rank in the environment as by any launcher.
"""

import importlib
import json
import logging
import os
import sys
import tempfile

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import dp


def deepspeed():
    """Import it here: pytest, which looks for doctests, may not have it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    found = importlib.import_module("deepspeed")
    # A faster all-reduce of processes on one machine, which takes a minute to compile.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    logging.disable(logging.WARNING)
    return found


def zero(stage, **options):
    return {
        "zero_optimization": {"stage": stage, **options},
        "zero_allow_untested_optimizer": True,
    }


WARM_UP = {"warmup_min_lr": 0.1, "warmup_max_lr": 0.5, "warmup_num_steps": 4}
SCENARIOS = {
    "stage 0": {},
    "stage 0, autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    "stage 0, a scheduler": {
        "scheduler": {
            "type": "WarmupLR",
            "params": {**WARM_UP, "warmup_type": "linear"},
        }
    },
    "stage 0, bf16": {"bf16": {"enabled": True}},
    "stage 1": zero(1),
    "stage 1, bf16": {**zero(1), "bf16": {"enabled": True}},
    "stage 2": zero(2),
    "stage 2, offload": zero(2, offload_optimizer={"device": "cpu"})
    | {"zero_force_ds_cpu_optimizer": False},
    "stage 3": zero(3),
}


class Run:
    """A classifier of 650 weights under an engine."""

    def __init__(self, config, *, parts=1, **changes):
        torch.manual_seed(0)
        self.model = nn.Linear(64, 10)
        self.data = TensorDataset(torch.randn(40, 64), torch.randint(10, (40,)))
        numbers = {
            "sampling": dp.PoissonSampling(sampling_probability=0.5),
            "noise_multiplier": 10.0,
            "max_grad_norm": 1.0,
            "expected_batch_size": 20.0,
            "steps": 6,
            "target_delta": 1e-5,
        }
        plan = dp.PrivacyPlan(**{**numbers, **changes})
        self.loader = plan.loader(self.data)
        inner = torch.optim.SGD(self.model.parameters(), lr=0.1)
        inner.register_step_pre_hook(self._remember)
        inner.register_step_post_hook(self._look)
        self.optimizer = dp.DPOptimizer(inner, plan=plan, loader=self.loader)
        self.parts, self.rates, self.spreads = parts, [], []
        self.before = self.weights()
        self.error = None
        self._last = self.before
        self._config = {
            "train_micro_batch_size_per_gpu": 10,
            "gradient_accumulation_steps": parts,
            **config,
        }

    def weights(self):
        """The weights, if nobody has replaced them by parts."""
        return torch.cat(
            [p.detach().float().flatten().clone() for p in self.model.parameters()]
        )

    def _remember(self, *_):
        self._last = self.weights()

    def _look(self, inner, *_):
        gradient = torch.cat(
            [p.grad.flatten() for p in inner.param_groups[0]["params"]]
        )
        moved = self._last - self.weights()
        self.rates.append((moved / gradient).nanmedian().item())
        self.spreads.append(gradient.std().item())

    def train(self, steps):
        self.engine, *_ = deepspeed().initialize(
            model=self.model, optimizer=self.optimizer, config=self._config
        )
        batches = (
            dp.MicroBatches(self.loader, per_step=self.parts)
            if self.parts > 1
            else self.loader
        )
        for (x, y), _ in zip(batches, range(steps * self.parts), strict=False):
            outputs = self.engine(x.to(next(self.model.parameters()).dtype))
            losses = cross_entropy(outputs.float(), y, reduction="none")
            self.engine.backward(self.optimizer.private_loss(losses))
            self.engine.step()

    def seen(self):
        after = self.weights()
        same = after.shape == self.before.shape
        return {
            "error": self.error,
            "steps": self.optimizer.ledger.steps,
            "epsilon": self.optimizer.spent().epsilon,
            "rates": self.rates,
            "spreads": self.spreads,
            "moved": (after - self.before).tolist() if same else [],
        }


def rates_of_a_plain_optimizer(config):
    """The rates that the engine gives to an optimizer that is not private."""
    model = nn.Linear(64, 10)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed().initialize(
        model=model,
        optimizer=plain,
        config={"train_micro_batch_size_per_gpu": 10, **config},
    )
    rates = []
    for _ in range(6):
        rates.append(plain.param_groups[0]["lr"])
        engine.backward(engine(torch.randn(10, 64)).mean())
        engine.step()
    return rates


def tried(run, steps=6):
    try:
        run.train(steps)
    except Exception as error:  # noqa: BLE001 -- any failure is a result here
        run.error = f"{type(error).__name__}: {error}"
    return run.seen()


def without_noise(parts):
    """One step on every example, which a loop over them can be held against."""
    everything = dp.PoissonSampling(sampling_probability=1.0)
    run = Run({}, parts=parts, noise_multiplier=0.0, sampling=everything)
    x, y = run.data.tensors
    total = torch.zeros(650)
    for i in range(len(x)):
        loss = cross_entropy(run.model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(run.model.parameters()))
        gradient = torch.cat([g.flatten() for g in gradients])
        total += gradient * min(1.0, 1.0 / gradient.norm().item())
    return {**tried(run, 1), "expected": (-0.1 * total / 20).tolist()}


def resumed():
    """Save after two steps, load into new objects, and take two more."""
    first, second = Run({}), Run({})
    tried(first, 2)
    with tempfile.TemporaryDirectory() as folder:
        first.engine.save_checkpoint(folder)
        tried(second, 0)
        second.engine.load_checkpoint(folder)
    loaded = torch.equal(first.weights(), second.weights())
    return {**tried(second, 2), "loaded": loaded}


def main():
    sys.path.append(sys.argv[1])
    deepspeed().init_distributed("gloo", verbose=False)
    if int(os.environ["WORLD_SIZE"]) > 1:
        results = {"two ranks": tried(Run({}))}
    else:
        results = {name: tried(Run(config)) for name, config in SCENARIOS.items()}
        results |= {f"in {parts} parts": without_noise(parts) for parts in (1, 2)}
        results["resumed"] = resumed()
        scheduled = SCENARIOS["stage 0, a scheduler"]
        results["plain rates"] = rates_of_a_plain_optimizer(scheduled)
    print("RESULTS", json.dumps(results), flush=True)  # noqa: T201 -- to the test
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
