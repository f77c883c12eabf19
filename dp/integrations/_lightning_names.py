"""Lightning's names, from whichever of its two packages is installed.

``lightning.pytorch`` and ``pytorch_lightning`` are one code under two names. A trainer
of either takes modules of its own package only, and callbacks of both.
"""

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    from pytorch_lightning import (  # type: ignore[assignment]
        Callback,
        LightningModule,
        Trainer,
    )


__all__ = ("Callback", "LightningModule", "Trainer")
