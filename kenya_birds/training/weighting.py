"""Weights against imbalance: n^-power, for the loss and for the sampler."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler


def power_weights(counts: Sequence[int] | np.ndarray, power: float) -> np.ndarray:
    """Weight n^-power of each class, scaled so that the mean over all clips is 1.

    With this scale an untrained classifier has about the same loss, `ln(number of classes)`, at every power. Power 1
    is inverse frequency, 0.5 its square root, 0 no weighting.

    Args:
        counts: Training clips of each class, shape `(classes,)`.
        power: Exponent, at least 0.

    Returns:
        float64, shape `(classes,)`; a class without clips weighs as if it had one.

    Raises:
        ValueError: If `power` is negative or all counts are zero.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if power < 0:
        raise ValueError(f"power is {power}, expected 0 or more")
    if not numbers.sum() > 0:
        raise ValueError("no class has any clip")
    weights = np.maximum(numbers, 1.0) ** -power
    return weights * numbers.sum() / (weights * numbers).sum()


class WeightedClipSampler(Sampler[int]):
    """Draws clips with replacement, in proportion to their weights; as many an epoch as there are clips.

    The draw depends on the seed and the epoch alone, so that every process draws the same and a resumed run goes on
    with the same clips.

    Args:
        weights: One per clip, not all zero.
        seed: Seed of the draws.
    """

    def __init__(self, weights: Sequence[float] | np.ndarray, seed: int) -> None:
        self.weights = torch.as_tensor(np.asarray(weights), dtype=torch.float64)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's draw; called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist()
