"""Finds the parts of a recording with signal: sound that stands out from the noise of the recording."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft

from kenya_birds.data.audio import RecordingReader
from kenya_birds.defaults import SIGNAL_DB

# The sound is cut into cells of this length and width.
CELL_S, BAND_HZ = 0.064, 200.0
LOWEST_HZ, HIGHEST_HZ = 150.0, 15_000.0
# The noise level of a band is the level that this share of its cells is below. Signal may so fill half of the time.
NOISE_SHARE = 0.2
# A cell with signal stands out from the other bands by so much.
ABOVE_BANDS_DB = 6.0
# The noise level is at most so far below the loudest cell: encoders leave almost nothing in some bands.
DYNAMIC_RANGE_DB = 60.0
# Parts that are closer than this are one part; a part with less signal is a click.
JOINED_S, LEAST_SIGNAL_S = 0.2, 0.1
# Recordings of this length or less are clips of a call: they are taken whole, as noise may be nowhere in them.
WHOLE_S = 5.0
# A part's frequencies are those of the bands that have signal in this share of its cells with signal.
BAND_SHARE = 0.1
CELLS_PER_BLOCK = 1024


@dataclass(frozen=True)
class SignalPart:
    """A part of a recording with signal.

    Attributes:
        start_s: Start in seconds.
        end_s: End in seconds.
        low_hz: Lowest frequency of the signal; NaN if it is not known.
        high_hz: Highest frequency; NaN if it is not known.
    """

    start_s: float
    end_s: float
    low_hz: float
    high_hz: float


def find_signal(path: Path, channel: str | None = None, signal_db: float = SIGNAL_DB) -> list[SignalPart]:
    """Finds the parts of a recording with signal.

    The sound is cut into cells of 64 ms and 200 Hz, from 150 Hz to 15 kHz. The noise level of a band is the level that
    20% of its cells are below. A cell is signal if it is at least `signal_db` above the noise level of its band, and
    6 dB further above it than the median of all bands at the same time: wind, handling and clicks are in most bands
    at once. Signal with pauses of up to 0.2 s is one part. Parts with less than 0.1 s of signal are skipped. Damaged
    sound and digital silence count neither as signal nor as noise. A recording of 5 s or less is one part, unless it
    is silent.

    The rule follows Sprengel et al. 2016 (Audio Based Bird Species Identification using Deep Learning Techniques,
    CLEF), who compare each pixel of a spectrogram with three times the medians of its row and its column. Here larger
    cells, which vary less, replace the removal of single pixels, and a low quantile replaces the median of the row, so
    that a bird that sings most of the time is found too.

    Args:
        path: The recording.
        channel: See `RecordingReader`.
        signal_db: Least level of signal above the noise.

    Returns:
        The parts, in order of time.

    Raises:
        UserError: If the recording cannot be opened as audio, or lacks the channel.
    """
    with RecordingReader(path, channel=channel) as reader:
        duration_s = reader.header.duration_s
        levels_db, edges_hz, cell_s = _levels(reader)
    is_live = np.isfinite(levels_db).any(axis=1)
    if not is_live.any():
        return []
    if duration_s <= WHOLE_S:
        return [SignalPart(0.0, duration_s, np.nan, np.nan)]
    live = levels_db[is_live]
    loudest_db = live.max()
    noise_db = np.maximum(np.quantile(live, NOISE_SHARE, axis=0), loudest_db - DYNAMIC_RANGE_DB)
    above_db = live - noise_db
    stands_out = above_db >= np.median(above_db, axis=1, keepdims=True) + ABOVE_BANDS_DB
    is_signal = np.zeros(levels_db.shape, dtype=bool)
    is_signal[is_live] = (above_db >= signal_db) & stands_out
    return _parts(is_signal, edges_hz, cell_s)


def _levels(reader: RecordingReader) -> tuple[np.ndarray, np.ndarray, float]:
    """Levels in dB, shape `(cells, bands)`, -inf where there is no sound; edges of the bands; length of a cell."""
    rate = reader.sampling_rate
    size = max(4, 4 * round(CELL_S * rate / 4))
    frame = size // 2
    top_hz = min(HIGHEST_HZ, rate / 2)
    edges_hz = np.append(np.arange(min(LOWEST_HZ, top_hz / 2), top_hz, BAND_HZ), top_hz)
    bins = np.unique(np.rint(edges_hz * frame / rate).astype(int))
    edges_hz = bins * rate / frame
    window = np.hanning(frame + 1)[:-1].astype(np.float32)
    levels = np.full((reader.header.frames // size, len(bins) - 1), -np.inf, dtype=np.float32)
    for block in reader.blocks(CELLS_PER_BLOCK * size):
        first = -(-block.start // size)
        cells = (block.start + block.frames) // size - first
        if block.sound is None or cells <= 0:
            continue
        begin = first * size - block.start
        sound = block.sound[begin : begin + cells * size].reshape(cells, size)
        frames = np.stack([sound[:, at : at + frame] for at in (0, size // 4, size // 2)], axis=1)
        power = np.square(np.abs(scipy.fft.rfft(frames * window, axis=-1)), dtype=np.float64).mean(axis=1)
        of_bands = np.add.reduceat(power[:, : bins[-1]], bins[:-1], axis=1)
        # A cell of silence is silent in all bands; a band without anything is far below the others.
        is_live = of_bands.max(axis=1, keepdims=True) > 0
        tiny = np.finfo(np.float32).tiny
        with np.errstate(divide="ignore"):
            levels[first : first + cells] = 10 * np.log10(np.where(is_live, np.maximum(of_bands, tiny), 0.0))
    return levels, edges_hz, size / rate


def _parts(is_signal: np.ndarray, edges_hz: np.ndarray, cell_s: float) -> list[SignalPart]:
    """Joins cells with signal, shape `(cells, bands)`, to parts."""
    with_signal = np.flatnonzero(is_signal.any(axis=1))
    if not len(with_signal):
        return []
    breaks = np.flatnonzero((np.diff(with_signal) - 1) * cell_s > JOINED_S) + 1
    parts = []
    for cells in np.split(with_signal, breaks):
        if len(cells) * cell_s < LEAST_SIGNAL_S:
            continue
        share = is_signal[cells].mean(axis=0)
        bands = np.flatnonzero(share >= min(BAND_SHARE, share.max()))
        low_hz, high_hz = float(edges_hz[bands[0]]), float(edges_hz[bands[-1] + 1])
        parts.append(SignalPart(float(cells[0] * cell_s), float((cells[-1] + 1) * cell_s), low_hz, high_hz))
    return parts
