"""Builds that are broken on purpose, as context managers around a right one.

And what an audit's report says of them.
"""

import re
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

import dp.sampling
from dp import DPOptimizer, FlatClipping, GaussianNoise, _tuning
from dp.ledger import Ledger
from dp.per_sample import PerSampleGradients
from dp.per_sample._isolation.verification import Verifier


@contextmanager
def _noise(change):
    """Let *change* add noise to sums, one a parameter, given the right way to do it."""
    right = GaussianNoise.add_

    def add_(self, sums, *, stddev):
        change(lambda sums, stddev: right(self, sums, stddev=stddev), sums, stddev)
        return stddev

    with (
        # No two sums in one buffer.
        mock.patch.object(_tuning, "SMALL_SUM", 0),
        mock.patch("dp._mechanism.sums._may_be_kept", return_value=False),
        mock.patch.object(GaussianNoise, "add_", add_),
    ):
        yield


def _draws(draw):
    """Let *draw* choose a batch, given the right way to do it."""
    right = dp.sampling.poisson_sample

    def poisson_sample(num_examples, *, sampling_probability):
        return draw(
            lambda n, q: right(n, sampling_probability=q),
            num_examples,
            sampling_probability,
        )

    return mock.patch("dp.sampling._loader.poisson_sample", poisson_sample)


def noise_scaled(factor):
    return _noise(lambda add, sums, stddev: add(sums, factor * stddev))


def late_noise_scaled(factor, *, below):
    """Only the later phase of a schedule, whose noise is smaller, is wrong."""
    return _noise(
        lambda add, sums, stddev: add(
            sums, stddev * (factor if stddev < below else 1.0)
        )
    )


def noise_repeated():
    """One draw is used for every two steps."""
    kept = []

    def change(add, sums, stddev):
        if not kept:
            kept.extend(torch.zeros_like(s) for s in sums)
            add(kept, stddev)
        noise = [k.clone() for k in kept]
        kept.clear() if len(noise_repeated.used) % 2 else None
        noise_repeated.used.append(1)
        for s, n in zip(sums, noise, strict=True):
            s.add_(n)

    noise_repeated.used = []
    return _noise(change)


def noise_shared():
    """Parameters of one shape get one draw."""

    def change(add, sums, stddev):
        noise = torch.zeros_like(sums[0])
        add([noise], stddev)
        for s in sums:
            s.add_(noise)

    return _noise(change)


def noise_seeded():
    """Noise comes from torch's global generator, as scripts seed it."""
    return _noise(
        lambda _, sums, stddev: [
            s.add_(torch.randn(s.shape), alpha=stddev) for s in sums
        ]
    )


def noise_uniform():
    """The right variance, the wrong shape."""
    width = 12**0.5
    return _noise(
        lambda _, sums, stddev: [
            s.add_((torch.rand(s.shape) - 0.5) * width, alpha=stddev) for s in sums
        ]
    )


def noise_with_a_mean():
    def change(add, sums, stddev):
        add(sums, stddev)
        for s in sums[:1]:
            s.add_(0.1 * stddev)

    return _noise(change)


def second_parameter_without_noise():
    return _noise(lambda add, sums, stddev: add(sums[:1], stddev))


def clip_scaled(factor):
    right = FlatClipping.factors
    return mock.patch.object(
        FlatClipping, "factors", lambda self, norms_GB: factor * right(self, norms_GB)
    )


@contextmanager
def norm_without_the_second_parameter():
    """Nor does the verification of norms look, which would end the run."""

    def squared_norms(self, group_of, scales=()):
        del group_of, scales
        (first,) = self._parts[0]
        return self._nonfinite_B[None] + first.squared_norms()

    with (
        mock.patch.object(Verifier, "is_due", return_value=False),
        mock.patch.object(PerSampleGradients, "squared_norms", squared_norms),
    ):
        yield


def rate_scaled(factor):
    return _draws(lambda draw, n, q: draw(n, factor * q))


def shuffled():
    """Every epoch deals all records out, by numpy's global generator."""
    left = []

    def deal(_draw, n, q):
        if not left:
            order = np.random.permutation(n)  # noqa: NPY002 -- as scripts do
            left.extend(np.array_split(order, round(1 / q)))
        return sorted(left.pop().tolist())

    return _draws(deal)


def drawn_in_pairs():
    """Neighbours are always drawn together."""
    return _draws(
        lambda draw, n, q: [2 * i + j for i in draw(n // 2, q) for j in (0, 1)]
    )


def with_a_favourite():
    """The first record is in every batch."""
    return _draws(lambda draw, n, q: sorted({0, *draw(n, q)}))


def seeded_draws():
    """Coins come from numpy's global generator."""
    return _draws(
        lambda _, n, q: np.flatnonzero(np.random.random(n) < q).tolist()  # noqa: NPY002
    )


def uncharged_releases():
    return mock.patch.object(Ledger, "reserve", return_value=None)


def forgotten_ledger():
    """A resumed run starts from nothing spent."""
    return mock.patch.object(Ledger, "load_state_dict", return_value=None)


@contextmanager
def divided_by_the_batch():
    """The released mean is over the examples that were drawn."""
    right = DPOptimizer.step

    def step(self, closure=None):
        drawn = self.mechanism.loader.ticket.num_samples
        result = right(self, closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.div_(1 + drawn)
                    # Written so that no version tells of it.
                    parameter.data.add_(parameter.grad)
        return result

    step.hooked = True
    with mock.patch.object(DPOptimizer, "step", step):
        yield


def refuted(report):
    """Return the claims that do not hold."""
    return {f.claim.split(":")[-1].strip() for f in report.findings if not f.holds}


def take_down(decisions, report, claims=None):
    """Let *decisions* know the p-values of a report, of some claims or of all."""
    for finding in report.findings:
        p_value = re.search(r"p = (\S+)$", finding.detail)
        if p_value and (claims is None or finding.claim.split(": ")[1] in claims):
            assert decisions.refutes(finding.claim, float(p_value[1])) != finding.holds
