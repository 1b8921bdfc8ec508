"""What chance changes in training clips, in batches on the device; each clip has amounts of its own.

The amounts are computed on the host from uniform random numbers that come with the clip (see `ClipSampler`), so that
they do not depend on how clips are spread over batches, processes and devices.
"""

import math

import numpy as np
import torch

from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.signal_kenya_birds import in_chunks
from kenya_birds.training.arguments import AugmentationArguments
from kenya_birds.training.transforms import add_at_snr, colored_noise, mask, warp_bands, warp_frames

# Slopes of the noise's power: pink as of wind, brown as of rain and rumble.
NOISE_SLOPES_DB = (-3.0, -6.0)
NOISE_S = 30.0
# Amounts are float32, where the highest numbers below 1 would become 1, and places drawn by them lie past the end.
HIGHEST_CHANCE = 1 - 2.0**-24
# The random numbers of a clip: whether (`_on`) and how much.
DRAWS = (
    *("shift_on", "shift", "pitch_on", "pitch", "speed_on", "speed", "gain_on", "gain"),
    *("noise_on", "noise_snr", "noise_slope", "noise_start", "background_on", "background_snr", "background_window"),
    *("mixup_on", "mixup", "band_mask_on", "band_mask", "band_mask_start"),
    *("frame_mask_on", "frame_mask", "frame_mask_start"),
)


class Augmentation:
    """Turns clean waveforms into the features of changed ones.

    Waveforms are mixed, get noise and background and are amplified; their power spectrograms are warped along
    frequency (pitch) and time (speed); their features are masked. What has probability 0 is not computed.

    Args:
        args: Probabilities and ranges.
        extractor: The front end; its waveform stage has been applied already.
        generator: Makes the noise.
        background: Clean windows without a call, shape `(windows, samples)`, on the device; needed where
            `args.background_probability` is above 0.
        device: Where batches will be.
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
            # Noise outside the features' band would count in the ratio and not be seen.
            band_hz = (max(extractor.f_min_hz, extractor.high_pass_hz), extractor.f_max_hz)
            noise = [
                colored_noise(samples, extractor.sampling_rate, slope_db, band_hz, generator)
                for slope_db in NOISE_SLOPES_DB
            ]
            self.noise = torch.stack(noise).to(device)

    def amounts(self, chance: np.ndarray) -> dict[str, torch.Tensor]:
        """Amounts of each change.

        Args:
            chance: Uniform numbers in [0, 1), shape `(batch, len(DRAWS))`.

        Returns:
            float32 tensors of shape `(batch,)`, only of changes that can happen, and rows (int64) in which they do:
            `shift` (share of the clip), `noise_snr_db` and `background_snr_db` (infinite for none), `gain_db`,
            `pitch_semitones` and `speed` in the rows `warped`, `mixup` (share of the other clip) in the rows `mixed`,
            starts and widths of masks.
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
            from scipy.special import betaincinv  # of all that this module needs, the only thing that torch lacks

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
            waveform: Clean, mixed already, float32, shape `(batch, clip_samples)`.
            amounts: What `amounts` returns, on the waveform's device.

        Returns:
            Shape `(batch, bands, frames)`.
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

        def power_of(rows: torch.Tensor) -> torch.Tensor:
            return self.extractor.band_power(
                self._change(waveform[rows], {name: amounts[name][rows] for name in per_clip})
            )

        power = in_chunks(power_of, torch.arange(len(waveform), device=waveform.device))
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
