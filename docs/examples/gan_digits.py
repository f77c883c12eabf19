"""A GAN of digits: only the discriminator sees data, so only it is made private.

The generator learns from the discriminator alone. Whatever it draws, after training too,
is post-processing: as many images as you like, at no further cost.

Shapes: ``B`` images, ``P`` pixels, ``Z`` random numbers that an image is drawn from.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import TensorDataset

import dp


NOISE = 16


def networks() -> tuple[nn.Module, nn.Module]:
    """Return a generator and a discriminator of zeros, 8 by 8 pixels."""
    generator = nn.Sequential(
        nn.Linear(NOISE, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid()
    )
    discriminator = nn.Sequential(
        nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1), nn.Flatten(0)
    )
    return generator, discriminator


def main(steps: int = 400) -> tuple[float, float]:
    """Train; return the share of drawn images that pass for zeros, and epsilon."""
    pixels, labels = load_digits(return_X_y=True)
    zeros_BP = torch.tensor(pixels[labels == 0] / 16, dtype=torch.float32)
    plan = dp.plan_for(  # Public numbers, decided in advance.
        target_epsilon=8.0,
        target_delta=1e-3,
        sampling_probability=0.5,
        steps=steps,
        expected_batch_size=89,
        max_grad_norm=1.0,
    )
    loader = plan.loader(TensorDataset(zeros_BP))
    generator, discriminator = networks()
    of_generator = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    adam = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    of_discriminator = dp.DPOptimizer(adam, plan=plan, loader=loader)

    def drawn(number: int) -> Tensor:
        images: Tensor = generator(torch.randn(number, NOISE))
        return images

    def loss_fn(batch: list[Tensor]) -> Tensor:
        # One loss for each image: how it is told from one drawn image. Opacus' tutorial
        # calls backward() for the real and the drawn images; here their losses are added.
        (real,) = batch
        with torch.no_grad():
            fake = drawn(len(real))
        return softplus(-discriminator(real)) + softplus(discriminator(fake))

    for batch in loader:
        of_discriminator.backward(loss_fn, batch)
        of_discriminator.step()

        of_generator.zero_grad()
        softplus(
            -discriminator(drawn(89))
        ).mean().backward()  # A public number of them.
        of_generator.step()
        of_discriminator.zero_grad()  # Of what this loss left on the discriminator.

    # A judge that knows all ten digits. It would have to be trained on public images.
    judge = LogisticRegression(max_iter=1000).fit(pixels / 16, labels)
    with torch.no_grad():
        share = (judge.predict(drawn(1000).numpy()) == 0).mean()
    return float(share), of_discriminator.guarantee().epsilon


if __name__ == "__main__":
    share, spent = main()
    print(f"{share:.1%} of drawn images pass for zeros, at epsilon {spent:.2f}")  # noqa: T201
