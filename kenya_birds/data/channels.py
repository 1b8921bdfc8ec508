"""Choice of the best channel of a recording."""

from collections.abc import Iterable

import numpy as np

# A channel is judged by this many sections of this length, spread evenly over the recording.
SECTIONS, SECTION_S = 60, 10
FRAME_S = 0.1
# Full scale of 16 bits, with a margin for the rounding of other formats.
CLIPPED = 0.9999
# Steps in which channels are compared.
CLIPPED_STEP, SNR_STEP_DB = 0.001, 0.1
LOUD, QUIET = 95, 20


def sections(frames: int, rate_hz: int) -> list[tuple[int, int]]:
    """Returns the sections by which a channel is judged: `[first frame, frame after the last)`.

    Args:
        frames: Length of the recording.
        rate_hz: Its sampling rate.
    """
    length = SECTION_S * rate_hz
    if frames <= SECTIONS * length:
        return [(0, frames)]
    starts = np.linspace(0, frames - length, SECTIONS).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def find_best_channel(channels: Iterable[Iterable[np.ndarray]], rate_hz: int) -> int:
    """Finds the channel with the clearest sound.

    A silent channel is not chosen if another has sound. Of the others, the one with the smallest share of clipped
    samples is chosen, in steps of 0.1% of the samples. If several have the same share, the one with the highest
    signal-to-noise ratio is chosen, in steps of 0.1 dB, and of equal ones the first. The ratio is that of the 95th to
    the 20th percentile of the power of frames of 0.1 s. Power is that of the differences of neighbouring samples, in
    which wind and hum count little.

    Args:
        channels: For each channel its sound in blocks, float32 of shape `(frames,)`, full scale at -1 and 1.
        rate_hz: Sampling rate.

    Returns:
        The index of the channel.
    """
    return max(enumerate(_quality(blocks, rate_hz) for blocks in channels), key=lambda item: (item[1], -item[0]))[0]


def _quality(blocks: Iterable[np.ndarray], rate_hz: int) -> tuple[bool, int, int]:
    """Returns values that are higher for a better channel: has sound, clipping, signal-to-noise ratio."""
    frame = max(1, round(FRAME_S * rate_hz))
    powers, samples, clipped = [np.zeros(0)], 0, 0
    for sound in blocks:
        if len(sound) < 2:
            continue
        samples += len(sound)
        clipped += int((np.abs(sound) >= CLIPPED).sum())
        change = np.square(np.diff(sound), dtype=np.float64)
        whole = len(change) // frame * frame
        powers.append(change[:whole].reshape(-1, frame).mean(axis=1) if whole else change.mean(keepdims=True))
    power = np.concatenate(powers)
    power = power[power > 0]
    if not len(power):
        return False, 0, 0
    loud, quiet = np.percentile(power, (LOUD, QUIET))
    snr_db = 10 * np.log10(loud / quiet)
    return True, -int(clipped / max(samples, 1) / CLIPPED_STEP), round(float(snr_db) / SNR_STEP_DB)
