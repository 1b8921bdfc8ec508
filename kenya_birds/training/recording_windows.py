"""Batches of windows drawn from whole recordings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kenya_birds.data.decoded_recordings import DecodedRecordings
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.model.signal_kenya_birds import in_chunks
from kenya_birds.training.augmentation import Augmentation
from kenya_birds.training.batches import MixableSound
from kenya_birds.training.window_sampler import WindowDraw


class SoundWindows(MixableSound):
    """Windows of whole recordings, whose waveform stage runs on the device, on the whole batch.

    Args:
        decoded: The recordings.
        samples: Length of a window.
        augmentation: Has the feature extractor.
    """

    def __init__(self, decoded: DecodedRecordings, samples: int, augmentation: Augmentation) -> None:
        self.decoded = decoded
        self.samples = samples
        self.augmentation = augmentation
        self._scale = np.array([recording.scale for recording in decoded.recordings], dtype=np.float32)

    def sound(self, recording: np.ndarray, start: np.ndarray) -> dict[str, torch.Tensor]:
        """Windows for `waveform`.

        Args:
            recording: Index of the recording of each window, shape `(windows,)`.
            start: First sample of each window, same shape.
        """
        samples = np.empty((len(recording), self.samples), dtype=np.int16)
        for row, index, first in zip(samples, recording.tolist(), start.tolist(), strict=True):
            row[:] = self.decoded.read(index, first, len(row))
        return {"scale": torch.from_numpy(self._scale[recording]), "waveform": torch.from_numpy(samples)}

    def raw(self, recording: Sequence[int], start: Sequence[int]) -> torch.Tensor:
        """Windows as they are in the recordings: float32, shape `(windows, samples)`."""
        sound = self.sound(np.asarray(recording), np.asarray(start))
        return sound["waveform"] * sound["scale"][:, None]

    def _waveform(self, sound: dict[str, torch.Tensor]) -> torch.Tensor:
        waveform = sound["waveform"] * sound["scale"][:, None]
        return in_chunks(self.augmentation.extractor.clean, waveform)


class RecordingWindows(SoundWindows):
    """Batches of training windows, with the random numbers of their augmentation.

    Nothing is computed in advance: the waveform stage of the feature extractor runs on the device, on the whole batch,
    on the same windows as in detection. Windows are not shifted, because their positions are already random.

    Args:
        decoded: The training recordings.
        targets: The annotations of the same recordings.
        augmentation: Computes parameters from a window's random numbers.
        length: Windows per epoch.
        weights: Weight of the windows of each recording in the loss, shape `(recordings,)`; None: all are 1.
    """

    def __init__(
        self,
        decoded: DecodedRecordings,
        targets: WindowTargets,
        augmentation: Augmentation,
        length: int,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__(decoded, targets.window, augmentation)
        self.targets = targets
        self.length = length
        self._weights = weights

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, draws: Sequence[WindowDraw]) -> dict[str, Any]:
        """Returns a batch.

        Returns:
            `sound` for `waveform`, `amounts` (see `Augmentation.amounts`) and `labels` (1, 0 or -100, float32 of shape
            `(batch, classes)`); with mixup also `partner`, the sound that is mixed into the rows `amounts["mixed"]`. A
            mixed window has the classes of both windows. `weight`, shape `(batch,)`, if recordings have weights.
        """
        recording, start = np.array([draw[:2] for draw in draws]).T
        amounts = self._amounts(draws)
        batch: dict[str, Any] = {"sound": self.sound(recording, start), "amounts": amounts}
        if "mixed" in amounts:
            partner, partner_start = np.array([draw[2:4] for draw in draws]).T
            mixed = amounts["mixed"].numpy()
            batch["partner"] = self.sound(partner[mixed], partner_start[mixed])
        weights = self.weights(draws)
        if weights is not None:
            batch["weight"] = torch.from_numpy(weights)
        return {**batch, "labels": torch.from_numpy(self._labels(draws, amounts)).float()}

    def labels(self, draws: Sequence[WindowDraw]) -> np.ndarray:
        """The labels of a batch: 1, 0 or -100, int64 of shape `(batch, classes)`."""
        return self._labels(draws, self._amounts(draws))

    def weights(self, draws: Sequence[WindowDraw]) -> np.ndarray | None:
        """The weights of a batch in the loss, shape `(batch,)`; None: all are 1."""
        return None if self._weights is None else self._weights[[draw.recording for draw in draws]]

    def targets_of(self, recording: np.ndarray, start: np.ndarray) -> np.ndarray:
        """What is known of windows: 1, 0 or -100, int64 of shape `(windows, classes)`."""
        return self.targets(recording, start)

    def _amounts(self, draws: Sequence[WindowDraw]) -> dict[str, torch.Tensor]:
        amounts = self.augmentation.amounts(np.stack([draw.chance for draw in draws]))
        amounts.pop("shift", None)
        return amounts

    def _labels(self, draws: Sequence[WindowDraw], amounts: dict[str, torch.Tensor]) -> np.ndarray:
        recording, start, partner, partner_start = np.array([draw[:4] for draw in draws]).T
        labels = self.targets_of(recording, start)
        if "mixed" in amounts:
            mixed = amounts["mixed"].numpy()
            others = self.targets_of(partner[mixed], partner_start[mixed])
            own = labels[mixed]
            labels[mixed] = np.where((own == 1) | (others == 1), 1, np.minimum(own, others))
        return labels
