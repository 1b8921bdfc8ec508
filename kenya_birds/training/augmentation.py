"""Augmentation of training clips, in batches on the device; each clip has its own random parameters.

The parameters are computed on the host from uniform random numbers of the clip (see `ClipSampler`). They do not depend
on the distribution of clips over batches, processes and devices.
"""

import math
from typing import Any

import numpy as np
import torch

from kenya_birds.errors import UserError
from kenya_birds.model.feature_extraction_kenya_birds import WAVEFORM, KenyaBirdsFeatureExtractor
from kenya_birds.model.signal_kenya_birds import in_chunks
from kenya_birds.training.arguments import AugmentationArguments


def cut_windows(stored: torch.Tensor, clip: torch.Tensor, start: torch.Tensor, samples: int) -> torch.Tensor:
    """Cuts windows out of stored clips; a window that passes the end continues at the beginning.

    Args:
        stored: Shape `(clips, stored samples)`.
        clip: Index of the clip of each window, shape `(batch,)`.
        start: First sample of each window, shape `(batch,)`.
        samples: Length of a window.

    Returns:
        Shape `(batch, samples)`.
    """
    place = (start[:, None] + torch.arange(samples, device=stored.device)) % stored.shape[1]
    return stored[clip[:, None], place]


def colored_noise(
    samples: int, sample_rate_hz: int, slope_db: float, band_hz: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    """Gaussian noise whose power density changes by `slope_db` per octave in a band, and is zero outside.

    Args:
        samples: Length; the noise is periodic, so it can be repeated.
        sample_rate_hz: Samples per second.
        slope_db: -3.01 is pink noise, -6.02 brown, 0 white.
        band_hz: Lowest and highest frequency.
        generator: Generates the noise.

    Returns:
        Shape `(samples,)`, mean power 1.

    Raises:
        UserError: If the band is empty.
    """
    spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))
    frequency_hz = torch.fft.rfftfreq(samples, 1 / sample_rate_hz)
    octaves = torch.log2(frequency_hz.clamp(min=1.0))
    inside = (frequency_hz >= band_hz[0]) & (frequency_hz <= band_hz[1])
    if not inside.any():
        raise UserError(
            f"noise needs a frequency band, but it is {band_hz[0]:g} to {band_hz[1]:g} Hz: f_min_hz and high_pass_hz "
            "are expected below f_max_hz; or set noise_probability to 0"
        )
    noise = torch.fft.irfft(spectrum * inside * 10 ** (slope_db * octaves / 20), n=samples)
    return noise / noise.square().mean().sqrt()


def add_at_snr(waveform: torch.Tensor, noise: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
    """Adds noise so that the waveform's mean power is `snr_db` above the noise's.

    Args:
        waveform: Shape `(batch, samples)`; silent waveforms are not changed.
        noise: The same shape, of any level.
        snr_db: Signal-to-noise ratio, shape `(batch,)`; infinity adds no noise.
    """
    noise = noise.to(waveform.dtype)
    level = waveform.square().mean(dim=1).sqrt() / noise.square().mean(dim=1).sqrt().clamp(min=1e-9)
    return torch.addcmul(waveform, noise, (level * 10 ** (-snr_db / 20))[:, None])


def mix(waveform: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mixup (H. Zhang et al., ICLR 2018): `(1 - share) * waveform + share * other`, `share` of shape `(batch,)`."""
    return torch.lerp(waveform, other, share[:, None])


def warp_bands(power: torch.Tensor, bands_hz: torch.Tensor, semitones: torch.Tensor) -> torch.Tensor:
    """Shifts the pitch: power at frequency `f` is moved to `f * 2^(semitones / 12)`.

    Args:
        power: Shape `(batch, bands, frames)`.
        bands_hz: Centre frequency of each band, ascending.
        semitones: Shape `(batch,)`.

    Returns:
        The same shape; bands are interpolated linearly, with zeros from outside the range.
    """
    source_hz = bands_hz / 2 ** (semitones[:, None] / 12)
    right = torch.searchsorted(bands_hz, source_hz).clamp(1, len(bands_hz) - 1)
    below, above = bands_hz[right - 1], bands_hz[right]
    position = right - 1 + (source_hz - below) / (above - below)  # (B, bands)
    distance = position[:, :, None] - torch.arange(len(bands_hz), device=power.device)
    return (1 - distance.abs()).clamp_(min=0) @ power


def warp_frames(power: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """Changes the speed of each clip, relative to its middle; missing frames at one end come from the other end.

    Args:
        power: Shape `(batch, bands, frames)`.
        speed: Shape `(batch,)`; 2 halves the duration of every event.

    Returns:
        The same shape; frames are interpolated linearly.
    """
    frames = power.shape[2]
    frame = torch.arange(frames, device=power.device)
    position = (frames - 1) / 2 + (frame - (frames - 1) / 2) * speed[:, None]  # (B, frames)
    distance = position[:, None, :] - frame[:, None]
    distance = (distance + frames / 2).remainder(frames) - frames / 2
    return power @ (1 - distance.abs()).clamp_(min=0)


def mask(features: torch.Tensor, axis: int, start: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Replaces neighbouring bands or frames by the clip's mean (SpecAugment: D. Park et al., Interspeech 2019).

    Args:
        features: Shape `(batch, bands, frames)`.
        axis: 1 masks bands, 2 frames.
        start: Position of each mask, shape `(batch,)`: 0 is the first possible position, just below 1 the last.
        width: Number of bands or frames, shape `(batch,)`.
    """
    size = features.shape[axis]
    width = width.clamp(max=size)
    first = (start * (size - width + 1)).floor()[:, None]
    place = torch.arange(size, device=features.device)
    masked = (place >= first) & (place < first + width[:, None])  # (B, size)
    return torch.where(masked.unsqueeze(3 - axis), features.mean(dim=(1, 2), keepdim=True), features)


# Slopes of the noise's power: pink (like wind) and brown (like rain and rumble).
NOISE_SLOPES_DB = (-3.0, -6.0)
NOISE_S = 30.0
# float32 would round the highest numbers below 1 to 1, which would give positions after the end.
HIGHEST_CHANCE = 1 - 2.0**-24
# The random numbers of a clip: whether an augmentation is applied (`_on`), and its strength.
DRAWS = (
    *("shift_on", "shift", "pitch_on", "pitch", "speed_on", "speed", "gain_on", "gain"),
    *("noise_on", "noise_snr", "noise_slope", "noise_start", "background_on", "background_snr", "background_window"),
    *("mixup_on", "mixup", "band_mask_on", "band_mask", "band_mask_start"),
    *("frame_mask_on", "frame_mask", "frame_mask_start"),
)


class Augmentation:
    """Computes the augmented features of clean waveforms.

    Waveforms are mixed, get noise and background, and are amplified. Power spectrograms are warped along frequency
    (pitch) and time (speed). Features are masked. Augmentations with probability 0 are not computed.

    Args:
        args: Probabilities and ranges.
        extractor: The feature extractor; its waveform stage is already applied to the input.
        generator: Generates the noise.
        background: Clean windows without calls, shape `(windows, samples)`, on the device; needed if
            `args.background_probability` is above 0.
        device: Device of the batches.
    """

    def __init__(
        self,
        args: AugmentationArguments,
        extractor: KenyaBirdsFeatureExtractor,
        generator: torch.Generator,
        background: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.args = args
        self.extractor = extractor
        self.background = background
        self.bands_hz = extractor.band_frequencies_hz().to(device)
        self.noise: torch.Tensor | None = None
        if args.noise_probability:
            samples = max(round(NOISE_S * extractor.sampling_rate), 2 * extractor.clip_samples)
            # Noise outside the features' band would be part of the ratio, but not of the features.
            band_hz = (max(extractor.f_min_hz, extractor.high_pass_hz), extractor.f_max_hz)
            noise = [
                colored_noise(samples, extractor.sampling_rate, slope_db, band_hz, generator)
                for slope_db in NOISE_SLOPES_DB
            ]
            self.noise = torch.stack(noise).to(device)

    def __getstate__(self) -> dict[str, Any]:
        """Its state in a process that reads batches: without tensors, because not every device can send its own."""
        return {
            name: value for name, value in self.__dict__.items() if name not in ("bands_hz", "noise", "background")
        }

    def amounts(self, chance: np.ndarray) -> dict[str, torch.Tensor]:
        """Parameters of each augmentation.

        Args:
            chance: Uniform random numbers in [0, 1), shape `(batch, len(DRAWS))`.

        Returns:
            float32 tensors of shape `(batch,)` for augmentations with a probability above 0, and the rows (int64) to
            which they apply: `shift` (share of the clip), `noise_snr_db` and `background_snr_db` (infinite for none),
            `gain_db`, `pitch_semitones` and `speed` in the rows `warped`, `mixup` (share of the other clip) in the
            rows `mixed`, starts and widths of masks.
        """
        args, drawn = self.args, dict(zip(DRAWS, chance.clip(max=HIGHEST_CHANCE).T, strict=True))
        found: dict[str, np.ndarray] = {}

        def amount(name: str, values: np.ndarray, probability: float, otherwise: float = 0.0) -> np.ndarray:
            return np.where(drawn[f"{name}_on"] < probability, values, otherwise)

        def either_way(name: str) -> np.ndarray:
            return 2 * drawn[name] - 1

        def snr_db(name: str) -> np.ndarray:
            return args.snr_min_db + (args.snr_max_db - args.snr_min_db) * drawn[f"{name}_snr"]

        if args.shift_probability:
            found["shift"] = amount("shift", either_way("shift") * args.shift_max, args.shift_probability)
        if args.mixup_probability:
            from scipy.special import betaincinv  # torch has no such function

            share = betaincinv(args.mixup_alpha, args.mixup_alpha, drawn["mixup"])
            found["mixup"] = amount("mixup", share, args.mixup_probability)
            found["mixed"] = found["mixup"].nonzero()[0]
        if args.noise_probability:
            found["noise_snr_db"] = amount("noise", snr_db("noise"), args.noise_probability, math.inf)
            found["noise_slope"] = (drawn["noise_slope"] * len(NOISE_SLOPES_DB)).astype(np.int64)
            found["noise_start"] = drawn["noise_start"]
        if args.background_probability:
            found["background_snr_db"] = amount(
                "background", snr_db("background"), args.background_probability, math.inf
            )
            found["background_window"] = drawn["background_window"]
        if args.gain_probability:
            found["gain_db"] = amount("gain", either_way("gain") * args.gain_max_db, args.gain_probability)
        if args.pitch_probability or args.speed_probability:
            semitones = amount("pitch", either_way("pitch") * args.pitch_max_semitones, args.pitch_probability)
            speed = amount("speed", args.speed_max ** either_way("speed"), args.speed_probability, 1.0)
            warped = ((semitones != 0) | (speed != 1)).nonzero()[0]
            found |= {"warped": warped, "pitch_semitones": semitones[warped], "speed": speed[warped]}
        if args.mask_probability:
            for axis in ("band", "frame"):
                width = np.floor(drawn[f"{axis}_mask"] * (args.mask_max_bins + 1))
                found[f"{axis}_mask"] = amount(f"{axis}_mask", width, args.mask_probability)
                found[f"{axis}_mask_start"] = drawn[f"{axis}_mask_start"]
        return {
            name: torch.from_numpy(values if values.dtype == np.int64 else values.astype(np.float32))
            for name, values in found.items()
        }

    def __call__(self, waveform: torch.Tensor, amounts: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features of a batch.

        Args:
            waveform: Clean and already mixed, float32, shape `(batch, clip_samples)`.
            amounts: The result of `amounts`, on the waveform's device.

        Returns:
            Shape `(batch, bands, frames)`; `(batch, clip_samples)` if features are waveforms.
        """
        per_clip = [
            name
            for name in (
                "noise_snr_db",
                "noise_slope",
                "noise_start",
                "background_snr_db",
                "background_window",
                "gain_db",
            )
            if name in amounts
        ]

        def changed(rows: torch.Tensor) -> torch.Tensor:
            return self._change(waveform[rows], {name: amounts[name][rows] for name in per_clip})

        every = torch.arange(len(waveform), device=waveform.device)
        if self.extractor.feature_type == WAVEFORM:
            return in_chunks(changed, every)
        power = in_chunks(lambda rows: self.extractor.band_power(changed(rows)), every)
        if len(amounts.get("warped", ())):
            rows = amounts["warped"]
            warped = warp_bands(power[rows], self.bands_hz, amounts["pitch_semitones"])
            power[rows] = warp_frames(warped, amounts["speed"])
        features = self.extractor.to_level(power)
        for axis, name in ((1, "band_mask"), (2, "frame_mask")):
            if name in amounts:
                features = mask(features, axis, amounts[f"{name}_start"], amounts[name])
        return features

    def _change(self, waveform: torch.Tensor, amounts: dict[str, torch.Tensor]) -> torch.Tensor:
        samples = waveform.shape[1]
        if self.noise is not None:
            windows = self.noise.unfold(1, samples, 1)  # (slopes, starts, samples), a view
            start = (amounts["noise_start"] * windows.shape[1]).long()
            waveform = add_at_snr(waveform, windows[amounts["noise_slope"], start], amounts["noise_snr_db"])
        if self.background is not None and "background_snr_db" in amounts:
            window = (amounts["background_window"] * len(self.background)).long()
            waveform = add_at_snr(waveform, self.background[window], amounts["background_snr_db"])
        if "gain_db" in amounts:
            waveform = waveform * 10 ** (amounts["gain_db"][:, None] / 20)
        return waveform
