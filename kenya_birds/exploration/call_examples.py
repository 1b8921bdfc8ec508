"""Example calls for an archive's report: finding, measuring, encoding and augmenting them."""

import base64
import io
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch
from tqdm import tqdm

from kenya_birds.data.archive import Archive
from kenya_birds.data.audio import AudioHeader, RecordingReader, read_header
from kenya_birds.data.planning import plan_no_call
from kenya_birds.errors import UserError
from kenya_birds.exploration.measures import block_levels, spectral_range
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.augmentation import DRAWS, Augmentation, AugmentationArguments, cut_windows, mix

logger = logging.getLogger(__name__)

MOST, LEAST = 1 - 1e-9, 0.0


def change_clip(
    clip: np.ndarray, other: np.ndarray, background: np.ndarray | None, extractor: KenyaBirdsFeatureExtractor
) -> list[tuple[str, np.ndarray]]:
    """Features of a clip with each augmentation of training.

    Args:
        clip: float32, shape `(samples,)`.
        other: Another clip, which is mixed into it.
        background: A window without a call, if there is one.
        extractor: The feature extractor.

    Returns:
        Title and features, shape `(bands, frames)`, of each augmentation.
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
    """The first readable window without annotations: float32, shape `(samples,)`."""
    windows = plan_no_call(archive, list(archive.headers), sampling_rate, clip_s, margin_s=clip_s / 2)
    for recording, starts in windows.groupby("recording")["start"]:
        with suppress(UserError), RecordingReader(archive.recording_path(str(recording)), sampling_rate) as reader:
            for start in starts:
                with suppress(UserError):
                    return reader.read(start, round(clip_s * sampling_rate))
    return None


CALL_S = 0.1  # length of the sound for spectral ranges
LEVEL_BLOCK_S = 1.0
# Levels are measured on this many seconds of each minute; short recordings are measured completely.
LEVEL_PART_S, LEVEL_EVERY_S, WHOLE_UP_TO_S = 10.0, 60.0, 600.0
EXAMPLE_CANDIDATES = 12
PEAK_DBFS, FADE_S = -3.0, 0.01
MP3_RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


@dataclass
class Sound:
    """Measurements of the recordings.

    Attributes:
        levels: By recording: `floor_dbfs`, `median_dbfs`, `loud_dbfs`.
        ranges: One row per call: `species`, `low_hz`, `centroid_hz`, `high_hz`.
        problems: Unreadable recordings, each with the error.
    """

    levels: pd.DataFrame
    ranges: pd.DataFrame
    problems: list[tuple[str, str]]


class Call(NamedTuple):
    """An annotated call and its sound: float32, shape `(samples,)`."""

    recording: str
    center_s: float
    species: str
    clip: np.ndarray


def listen(archive: Archive) -> Sound:
    """Measures levels and calls of all recordings; unreadable sound is reported and skipped."""
    problems, levels, ranges = [], {}, []
    calls = archive.annotations.groupby("recording")
    for name in tqdm(
        sorted({*archive.headers, *archive.set_aside["recording"]}), desc="Measuring recordings", unit="recording"
    ):
        path = archive.recording_path(name)
        failures: list[str] = []
        try:
            header = read_header(path)
            with RecordingReader(path, header.sample_rate_hz) as reader:
                blocks = _block_levels(reader, header, failures)
                if len(blocks):
                    levels[name] = np.quantile(blocks, [0.1, 0.5, 0.9])
                if name in calls.groups:
                    ranges += _spectral_ranges(reader, calls.get_group(name), failures)
        except UserError as error:
            failures.append(str(error))
        if failures:
            # Messages contain local paths, which must not be published.
            problems.append((name, failures[0].replace(str(path), name)))
            logger.warning("%s", failures[0])
    return Sound(
        pd.DataFrame.from_dict(levels, orient="index", columns=["floor_dbfs", "median_dbfs", "loud_dbfs"]),
        pd.DataFrame(ranges, columns=["species", "low_hz", "centroid_hz", "high_hz"]),
        problems,
    )


def find_clear_call(
    archive: Archive,
    sampling_rate: int,
    clip_s: float,
    seed: int,
    *,
    species: str | None = None,
    candidates: int = EXAMPLE_CANDIDATES,
) -> Call | None:
    """Draws a few annotations at random, and chooses the call that is loudest relative to its noise floor.

    Args:
        archive: The archive.
        sampling_rate: Rate of the clip in Hz.
        clip_s: Length of the clip in seconds; calls without a full clip in their recording are not chosen.
        seed: Seed of the draw.
        species: eBird code; None: any species.
        candidates: Number of annotations to draw.

    Returns:
        The call, in the middle of its clip; None if none of the candidates can be read.
    """
    samples = round(clip_s * sampling_rate)
    annotations = archive.annotations
    if species is not None:
        annotations = annotations[annotations["species"] == species]
    duration_s = annotations["recording"].map({n: header.duration_s for n, header in archive.headers.items()})
    rows = annotations[annotations["center_s"].between(clip_s / 2, duration_s - clip_s / 2)]
    order = np.random.default_rng(seed).permutation(len(rows))[:candidates]
    best, best_db = None, -np.inf
    drawn = rows.iloc[order]
    for recording, center_s, code in zip(drawn["recording"], drawn["center_s"], drawn["species"], strict=True):
        try:
            with RecordingReader(archive.recording_path(recording), sampling_rate) as reader:
                clip = reader.read(round(center_s * sampling_rate) - samples // 2, samples)
        except UserError:
            continue
        levels = block_levels(clip, sampling_rate // 10)
        middle = len(levels) // 2
        above_db = float(np.median(levels[middle - 2 : middle + 3]) - np.quantile(levels, 0.1))
        if above_db > best_db:
            best, best_db = Call(recording, center_s, code, clip), above_db
    return best


def encode_clip(clip: np.ndarray, sampling_rate: int) -> str:
    """Encodes a clip for a web page: the data URI of a small sound file with its peak at -3 dBFS.

    The format is MP3 at about 56 kbit/s; FLAC if libsndfile cannot write MP3. If MP3 has no such sampling rate, the
    next higher one is used, or 48 kHz.

    Args:
        clip: Samples of any scale, shape `(samples,)`.
        sampling_rate: In Hz.
    """
    sound = clip.astype(np.float64)
    sound *= 10 ** (PEAK_DBFS / 20) / max(float(np.abs(sound).max()), 1e-9)
    fade = np.minimum(1.0, np.arange(1, len(sound) + 1) / max(1.0, FADE_S * sampling_rate))
    sound *= fade * fade[::-1]
    file = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        rate = next((rate for rate in MP3_RATES_HZ if rate >= sampling_rate), MP3_RATES_HZ[-1])
        if rate != sampling_rate:
            sound, sampling_rate = soxr.resample(sound, sampling_rate, rate), rate
        options, kind = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.9}, "mpeg"
        soundfile.write(file, sound, sampling_rate, format="MP3", **options)
    else:
        kind = "flac"
        soundfile.write(file, sound, sampling_rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def _block_levels(reader: RecordingReader, header: AudioHeader, failures: list[str]) -> np.ndarray:
    rate = header.sample_rate_hz
    block = min(round(LEVEL_BLOCK_S * rate), header.frames)
    every_s = LEVEL_PART_S if header.duration_s <= WHOLE_UP_TO_S else LEVEL_EVERY_S
    levels = [np.zeros(0)]
    for start in range(0, header.frames, round(every_s * rate)):
        try:
            part = reader.read(start, min(round(LEVEL_PART_S * rate), header.frames - start))
        except UserError as error:
            failures.append(str(error))
        else:
            levels.append(block_levels(part, block))
    return np.concatenate(levels)


def _spectral_ranges(
    reader: RecordingReader, calls: pd.DataFrame, failures: list[str]
) -> list[tuple[str, float, float, float]]:
    rate = reader.sampling_rate
    samples = max(2, round(CALL_S * rate))
    ranges = []
    for center_s, species in zip(calls["center_s"], calls["species"], strict=True):
        try:
            call = reader.read(round(center_s * rate) - samples // 2, samples)
        except UserError as error:
            failures.append(str(error))
        else:
            ranges.append((species, *spectral_range(call, rate)))
    return ranges
