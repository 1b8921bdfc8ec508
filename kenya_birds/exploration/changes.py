"""A clip under each augmentation of training, at the greatest amount."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from kenya_birds.data.archive import Archive
from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.planning import plan_no_call
from kenya_birds.errors import UserError
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.augmentation import DRAWS, Augmentation, AugmentationArguments
from kenya_birds.training.transforms import cut_windows, mix

MOST, LEAST = 1 - 1e-9, 0.0


def change_clip(
    clip: np.ndarray, other: np.ndarray, background: np.ndarray | None, extractor: KenyaBirdsFeatureExtractor
) -> list[tuple[str, np.ndarray]]:
    """Features of a clip, changed in each way that training may change it.

    Args:
        clip: float32, shape `(samples,)`.
        other: Another clip, to be mixed into it.
        background: A window without a call, if there is one.
        extractor: The front end.

    Returns:
        Title and features, shape `(bands, frames)`, of each.
    """
    limits = AugmentationArguments()
    clean = extractor.clean(torch.from_numpy(np.stack([clip, other])))
    quiet = None if background is None else extractor.clean(torch.from_numpy(background)[None])

    def changed(waveform: torch.Tensor, amounts: dict[str, float], *names: str) -> np.ndarray:
        certain = dict.fromkeys((f"{name}_probability" for name in names), 1.0)
        augmentation = Augmentation(
            replace(AugmentationArguments.none(), **certain),  # type: ignore[arg-type]
            extractor,
            torch.Generator().manual_seed(0),
            quiet,
        )
        chance = np.array([[amounts.get(name, LEAST) for name in DRAWS]])
        return augmentation(waveform, augmentation.amounts(chance))[0].numpy()

    shift = round(limits.shift_max * clip.shape[0])
    shifted = cut_windows(clean, torch.tensor([0]), torch.tensor([shift]), clip.shape[0])
    semitones = f"{limits.pitch_max_semitones:g} semitones"
    views = [
        ("unchanged", changed(clean[:1], {})),
        (f"window {limits.shift_max:.0%} later", changed(shifted, {})),
        ("half of another clip mixed in", changed(mix(clean[:1], clean[1:], torch.tensor([0.5])), {})),
        (f"{semitones} up", changed(clean[:1], {"pitch": MOST}, "pitch")),
        (f"{semitones} down", changed(clean[:1], {"pitch": LEAST}, "pitch")),
        (f"{limits.speed_max:g} times as fast", changed(clean[:1], {"speed": MOST}, "speed")),
        (f"{1 / limits.speed_max:g} times as fast", changed(clean[:1], {"speed": LEAST}, "speed")),
        (f"pink noise, {limits.snr_min_db:g} dB below", changed(clean[:1], {"noise_slope": LEAST}, "noise")),
        (f"brown noise, {limits.snr_min_db:g} dB below", changed(clean[:1], {"noise_slope": MOST}, "noise")),
        (
            f"masks of {limits.mask_max_bins} bins",
            changed(
                clean[:1],
                {"band_mask": MOST, "frame_mask": MOST, "band_mask_start": 0.4, "frame_mask_start": 0.7},
                "mask",
            ),
        ),
    ]
    if quiet is not None:
        views.append((f"background, {limits.snr_min_db:g} dB below", changed(clean[:1], {}, "background")))
    return views


def find_background(archive: Archive, sampling_rate: int, clip_s: float) -> np.ndarray | None:
    """The first window in which nothing is annotated and that can be read: float32, shape `(samples,)`."""
    windows = plan_no_call(archive, list(archive.headers), sampling_rate, clip_s, margin_s=clip_s / 2)
    for recording, starts in windows.groupby("recording")["start"]:
        with suppress(UserError), RecordingReader(archive.recording_path(str(recording)), sampling_rate) as reader:
            for start in starts:
                with suppress(UserError):
                    return reader.read(start, round(clip_s * sampling_rate))
    return None
