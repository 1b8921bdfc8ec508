"""Training clips: drawn at random with weights, and read in batches."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from kenya_birds.evaluation.predictions import clip_references
from kenya_birds.model.modeling_kenya_birds import MASKED
from kenya_birds.training.augmentation import Augmentation, cut_windows, mix


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


class ClipDraw(NamedTuple):
    """One drawn clip of an epoch, with its random numbers.

    Attributes:
        clip: Index of the clip.
        partner: Index of the clip that may be mixed into it.
        chance: Uniform random numbers in [0, 1) for augmentation.
    """

    clip: int
    partner: int
    chance: np.ndarray


class ClipSampler(Sampler[ClipDraw]):
    """Draws an epoch of clips: each once in random order, or with replacement in proportion to weights.

    The draw depends on the seed and the epoch only: every process draws the same clips, and a resumed run continues
    with the same clips. Clips that would make an incomplete last step are skipped; each epoch skips other clips. So an
    epoch does not depend on the number of processes.

    Args:
        clips: Number of clips to draw from.
        clips_per_step: Clips of one optimiser step, over all processes and accumulated batches.
        seed: Seed of the draws.
        weights: One per clip, not all zero; by default each clip is drawn once.
        numbers: Number of random numbers of each clip.
    """

    def __init__(
        self,
        clips: int,
        clips_per_step: int,
        seed: int,
        weights: Sequence[float] | np.ndarray | None = None,
        numbers: int = 0,
    ) -> None:
        self.clips = clips
        self.length = clips - clips % clips_per_step if clips >= clips_per_step else clips
        self.seed = seed
        self.epoch = 0
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self.numbers = numbers

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's draw; called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[ClipDraw]:
        # Not seed + epoch: runs with seeds next to each other would share their draws.
        generator = np.random.default_rng([self.seed, self.epoch])
        drawn, partners = self._draw(generator), self._draw(generator)
        chance = generator.random((self.length, self.numbers))
        yield from map(ClipDraw, drawn.tolist(), partners.tolist(), chance)

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        if self.weights is None:
            return generator.permutation(self.clips)[: self.length]
        return generator.choice(self.clips, self.length, p=self.weights / self.weights.sum())


class FeatureClips(torch.utils.data.Dataset):
    """Batches of clips for evaluation.

    Args:
        clips: The result of `extract_features`.
        feature_shape: Bands and frames.
        multi_label: Whether the targets are all species in the clip instead of the annotated one.
    """

    def __init__(self, clips: Dataset, feature_shape: tuple[int, int], multi_label: bool) -> None:
        self.features = [row.reshape(feature_shape) for row in rows_of(clips, "input_features")]
        self.targets = clip_targets(clips, multi_label)

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_features` of shape `(batch, bands, frames)`, and `labels` (see `clip_targets`)."""
        features = np.stack([self.features[index] for index in indices])
        return {"input_features": torch.from_numpy(features), "labels": self.targets[list(indices)]}


class MixableSound(torch.utils.data.Dataset):
    """Training data whose batches have `sound`, and with mixup `partner`, which `_waveform` turns into waveforms."""

    def waveform(self, batch: dict[str, Any]) -> torch.Tensor:
        """The clean waveforms of a batch, mixed, float32 of shape `(batch, samples)`, on the device it is on."""
        waveform = self._waveform(batch["sound"])
        if "partner" in batch and len(batch["amounts"]["mixed"]):
            mixed = batch["amounts"]["mixed"]
            share = batch["amounts"]["mixup"][mixed]
            waveform[mixed] = mix(waveform[mixed], self._waveform(batch["partner"]), share)
        return waveform

    def _waveform(self, sound: dict[str, torch.Tensor]) -> torch.Tensor:
        """The clean waveforms of `sound`, float32 of shape `(batch, samples)`."""
        raise NotImplementedError


# Column of the clips' weights in the loss.
WEIGHT = "weight"


class TrainingClips(MixableSound):
    """Batches of clips for training, with the amounts of their augmentation.

    Args:
        clips: The result of `clean_clips`; with a column `weight`, that of each clip in the loss.
        augmentation: Turns a clip's random numbers into amounts.
        multi_label: Whether the targets are all species in the clip instead of the annotated one.
    """

    def __init__(self, clips: Dataset, augmentation: Augmentation, multi_label: bool) -> None:
        self.augmentation = augmentation
        self.clip_samples = augmentation.extractor.clip_samples
        self.multi_label = multi_label
        self.targets = clip_targets(clips, multi_label)
        self.scale = torch.tensor(clips["scale"][:])
        self.weight = torch.tensor(clips[WEIGHT][:]) if WEIGHT in clips.column_names else None
        self.waveforms = rows_of(clips, "waveform")
        self.is_resident = False
        self.resident: torch.Tensor | None = None
        self.context = (len(self.waveforms[0]) - self.clip_samples) // 2
        self.calls = _Calls(clips, augmentation.extractor.clip_s) if multi_label and self.context else None

    def __len__(self) -> int:
        return len(self.waveforms)

    @property
    def nbytes(self) -> int:
        """Size of all waveforms in bytes."""
        return len(self) * self.waveforms[0].nbytes

    def move_to(self, device: torch.device) -> None:
        """Copies all waveforms to the device; batches then contain their indices only."""
        self.resident, self.is_resident = torch.from_numpy(np.stack(self.waveforms)).to(device), True

    def __getstate__(self) -> dict[str, Any]:
        """Its state in a process that reads batches: without the tensor of the device, which it cannot be sent."""
        return {name: value for name, value in self.__dict__.items() if name != "resident"}

    def __getitems__(self, draws: Sequence[ClipDraw]) -> dict[str, Any]:
        """A batch.

        Returns:
            `sound` for `waveform`, `amounts` (see `Augmentation.amounts`) and `labels` (see `clip_targets`); with
            mixup also `partner`, the sound that is mixed into the rows `amounts["mixed"]`, and if single-label
            `partner_labels` of all rows; `weight`, shape `(batch,)`, if clips have weights.
        """
        clip = np.array([draw.clip for draw in draws])
        amounts = self.augmentation.amounts(np.stack([draw.chance for draw in draws]))
        shift, labels = self.shifted(clip, amounts)
        batch: dict[str, Any] = {"sound": self._sound(clip, shift), "amounts": amounts, "labels": labels}
        if "mixed" in amounts:
            partner = np.array([draw.partner for draw in draws])
            mixed = amounts["mixed"].numpy()
            batch["partner"] = self._sound(partner[mixed], np.zeros(len(mixed), dtype=np.int64))
            others = self.targets[partner]
            if self.multi_label:
                either = torch.where((labels == 1) | (others == 1), 1.0, torch.minimum(labels, others))
                labels[mixed] = either[mixed]
            else:
                batch["partner_labels"] = others
        if self.weight is not None:
            batch["weight"] = self.weight[clip]
        return batch

    def shifted(self, clip: np.ndarray, amounts: dict[str, torch.Tensor]) -> tuple[np.ndarray, torch.Tensor]:
        """Shift of each clip's window in samples, and the labels of the shifted window.

        Args:
            clip: Indices of clips.
            amounts: See `Augmentation.amounts`; `shift` is removed.
        """
        # With context, the shift brings in sound of the recording; without, the clip is rotated.
        shift = np.zeros(len(clip), dtype=np.int64)
        if "shift" in amounts:
            shift = np.rint(amounts.pop("shift").numpy() * self.clip_samples).astype(np.int64)
            if self.context:
                shift = shift.clip(-self.context, self.context)
        labels = self.targets[clip]
        if self.calls is not None:
            shift_s = shift / self.augmentation.extractor.sampling_rate
            labels = torch.stack([self.calls.shifted(*row) for row in zip(labels, clip, shift_s, strict=True)])
        return shift, labels

    def _sound(self, clip: np.ndarray, shift: np.ndarray) -> dict[str, torch.Tensor]:
        start = (self.context + shift) % len(self.waveforms[0])
        if self.is_resident:
            return {"scale": self.scale[clip], "clip": torch.from_numpy(clip), "start": torch.from_numpy(start)}
        samples = np.empty((len(clip), self.clip_samples), dtype=np.int16)
        for row, index, first in zip(samples, clip, start, strict=True):
            stored = self.waveforms[index]
            until_end = min(len(stored) - first, len(row))
            row[:until_end] = stored[first : first + until_end]
            row[until_end:] = stored[: len(row) - until_end]
        return {"scale": self.scale[clip], "waveform": torch.from_numpy(samples)}

    def _waveform(self, sound: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.resident is None:
            samples = sound["waveform"]
        else:
            samples = cut_windows(self.resident, sound["clip"], sound["start"], self.clip_samples)
        return samples * sound["scale"][:, None]


def clip_targets(clips: Dataset, multi_label: bool) -> torch.Tensor:
    """Training targets of clips.

    Returns:
        Class ids of shape `(clips,)`, or zeros and ones of shape `(clips, classes)`, with -100 instead of zero
        if an unidentified bird may be that class.
    """
    class_ids = {code: label for label, code in enumerate(clips.features["label"].names)}
    targets = torch.from_numpy(clip_references(clips, class_ids, multi_label=multi_label))
    return targets.float() if multi_label else targets


class _Calls:
    """The annotated calls near each clip, which give the targets of its shifted window.

    A shifted window contains the calls whose centre is in it, without `edge_tolerance_s`. The places of unidentified
    birds are not known here: unknown targets remain unknown. So do calls that are in the unshifted window with a part
    of their length alone: their ends are not known.
    """

    def __init__(self, clips: Dataset, clip_s: float) -> None:
        self.clip_s = clip_s
        columns = (np.asarray(clips[name][:]) for name in ("recording", "start_s", "center_s", "label"))
        recording, self.start_s, self.center_s, self.label = columns
        self.neighbours = [np.zeros(0, dtype=np.int64)] * len(recording)
        for name in np.unique(recording):
            rows = np.flatnonzero(recording == name)
            for row in rows:
                self.neighbours[row] = rows[np.abs(self.center_s[rows] - self.center_s[row]) < 2 * clip_s]

    def shifted(self, target: torch.Tensor, clip: int, shift_s: float) -> torch.Tensor:
        """A clip's multi-label target when its window begins `shift_s` later."""
        if shift_s == 0:
            return target
        near = self.neighbours[clip]
        into_s = self.center_s[near] - self.start_s[clip]
        present, before = (self.label[near[(into >= 0) & (into < self.clip_s)]] for into in (into_s - shift_s, into_s))
        changed = torch.where(target == 1, MASKED, target)
        if not (target == MASKED).any():
            changed[before] = 0.0
        changed[present] = 1.0
        changed[self.label[clip]] = 1.0
        return changed


def rows_of(clips: Dataset, column: str) -> list[np.ndarray]:
    """Views of the rows of a column of lists of one length; nothing is copied."""
    length = clips.features[column].length
    chunks = clips.data.column(column).chunks
    return [row for chunk in chunks for row in chunk.flatten().to_numpy().reshape(-1, length)]
