"""Signal processing of waveforms and spectrograms: batched functions of tensors, without side effects."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

# Tables are cached: they must not depend on torch's default type, which programs may change.
FLOAT = torch.float32
MIN_POWER = 1e-10
# Number of neighbouring mel bands whose filters are applied together, to the bins that they cover.
BANDS_PER_GROUP = 16
CLIPS_PER_CHUNK = 4
MEL_SCALES = ("slaney", "htk")
MEL_SPECTRA = ("power", "magnitude")


class MelKind(NamedTuple):
    """How mel bands are computed.

    Attributes:
        scale: `slaney` (Slaney's scale and area normalisation, as librosa's default), or `htk` (HTK's scale, filters
            with a peak of 1, as torchaudio's default).
        spectrum: What the filters sum: `power` or `magnitude`. Sums of magnitudes are squared.
        win_length: Samples of the window, in the middle of a frame of zeros; None: it is as long as the frame.
        high_pass_hz: Cutoff of `high_pass`, whose gain is part of the filters; 0 is off.
    """

    scale: str = "slaney"
    spectrum: str = "power"
    win_length: int | None = None
    high_pass_hz: float = 0.0


USUAL_MEL = MelKind()


def high_pass(waveform: torch.Tensor, sampling_rate: int, cutoff_hz: float, order: int = 4) -> torch.Tensor:
    """Zero-phase Butterworth high-pass, applied to the spectrum: `|H(f)| = 1 / sqrt(1 + (cutoff / f)^(2 * order))`.

    Args:
        waveform: Shape `(batch, samples)`.
        sampling_rate: In Hz.
        cutoff_hz: Frequency at which the gain is -3 dB.
        order: Below the cutoff, the gain falls by `6 * order` dB per octave.

    Returns:
        Shape `(batch, samples)`.
    """
    samples = waveform.shape[-1]
    # Space for the filter's response, so that one end of the clip does not affect the other.
    padded = fast_fft_length(samples + round(4 * sampling_rate / cutoff_hz))
    gain = high_pass_gain(padded, sampling_rate, cutoff_hz, waveform.device, order)
    return torch.fft.irfft(torch.fft.rfft(waveform, n=padded) * gain, n=padded)[..., :samples]


def pre_emphasize(waveform: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Subtracts a part of the previous sample from each sample of `(batch, samples)`; keeps the first sample."""
    return torch.cat([waveform[..., :1], waveform[..., 1:] - coefficient * waveform[..., :-1]], dim=-1)


def peak_normalize(waveform: torch.Tensor, min_peak: float) -> torch.Tensor:
    """Scales each clip of `(batch, samples)` to a peak of 1; a peak below `min_peak` counts as `min_peak`."""
    peak = waveform.abs().amax(dim=-1, keepdim=True)
    return waveform / peak.clamp(min=min_peak)


def pad_middle(waveform: torch.Tensor, samples: int, mode: str) -> torch.Tensor:
    """Pads clips of `(batch, samples)` on both sides to one length.

    Args:
        waveform: Clips that are not empty.
        samples: The length; longer clips are not changed.
        mode: `constant` for zeros, `symmetric` for reflection at both ends, repeated if the sound is shorter than the
            padding (as in `numpy.pad`).
    """
    length = waveform.shape[-1]
    missing = max(samples - length, 0)
    before = missing // 2
    if mode == "constant":
        return torch.nn.functional.pad(waveform, (before, missing - before))
    if not missing:
        return waveform
    place = torch.arange(-before, length + missing - before, device=waveform.device) % (2 * length)
    return waveform[..., torch.minimum(place, 2 * length - 1 - place)]


def stft(waveform: torch.Tensor, window: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Short-time Fourier transform with centred frames and zero padding.

    Args:
        waveform: Shape `(batch, samples)`.
        window: Shape `(n_fft,)`.
        hop_length: Samples between frames.

    Returns:
        Complex, shape `(batch, 1 + n_fft // 2, 1 + samples // hop_length)`.
    """
    return torch.stft(
        waveform,
        n_fft=len(window),
        hop_length=hop_length,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )


def istft(spectrum: torch.Tensor, window: torch.Tensor, hop_length: int, length: int) -> torch.Tensor:
    """Inverse of `stft`, in half the time of `torch.istft` on a CPU.

    Args:
        spectrum: Complex, shape `(batch, frames, 1 + n_fft // 2)`: frames before bins, as in memory.
        window: Shape `(n_fft,)`.
        hop_length: Samples between frames; a divisor of `n_fft`.
        length: Number of samples of the result.

    Returns:
        Shape `(batch, length)`.
    """
    n_fft = len(window)
    frame = torch.fft.irfft(spectrum, n=n_fft)
    weight = overlapped_window(n_fft, hop_length, frame.shape[1], window.device)
    begin = n_fft // 2
    return _overlap_add(frame, window, hop_length)[:, begin : begin + length] / weight[begin : begin + length]


def power_spectrogram(
    waveform: torch.Tensor, n_fft: int, hop_length: int, win_length: int | None = None
) -> torch.Tensor:
    """Squared magnitude of the STFT with a Hann window, shape `(batch, 1 + n_fft // 2, frames)`."""
    window = hann_window(n_fft, waveform.device)
    if win_length is not None:
        before = (n_fft - win_length) // 2
        short = hann_window(win_length, waveform.device)
        window = torch.nn.functional.pad(short, (before, n_fft - win_length - before))
    # Frames before bins: the memory layout of the transform.
    return squared_magnitude(stft(waveform, window, hop_length).transpose(1, 2)).transpose(1, 2)


def mel_spectrogram(
    waveform: torch.Tensor,
    sampling_rate: int,
    n_fft: int,
    hop_length: int,
    n_mels: int,
    f_min_hz: float,
    f_max_hz: float,
    kind: MelKind = USUAL_MEL,
) -> torch.Tensor:
    """Power in mel bands, shape `(batch, n_mels, frames)`."""
    spectrum = power_spectrogram(waveform, n_fft, hop_length, kind.win_length)
    if kind.spectrum == "magnitude":
        spectrum = spectrum.sqrt()
    groups = mel_filter_groups(sampling_rate, n_fft, n_mels, f_min_hz, f_max_hz, waveform.device, kind)
    bands = grouped_product(groups, spectrum.transpose(1, 2)).transpose(1, 2)
    return bands.square() if kind.spectrum == "magnitude" else bands


def reassigned_spectrogram(
    waveform: torch.Tensor,
    sampling_rate: int,
    n_fft: int,
    hop_length: int,
    n_mels: int,
    f_min_hz: float,
    f_max_hz: float,
    high_pass_hz: float = 0.0,
) -> torch.Tensor:
    """Time-frequency reassigned power, summed on a grid of mel bands and frames.

    Each bin's power is moved to the centre of gravity of its energy: instantaneous frequency and group delay, from two
    further STFTs with the window's derivative and the time-weighted window (F. Auger and P. Flandrin, "Improving the
    readability of time-frequency and time-scale representations by the reassignment method", IEEE Trans. Signal
    Processing 43(5), 1995, eqs. 18 and 19). Power outside the grid is dropped.

    Args:
        waveform: Shape `(batch, samples)`.
        sampling_rate: In Hz.
        n_fft: Samples per frame.
        hop_length: Samples between frames, and between columns of the grid.
        n_mels: Bands of the grid, of equal width on Slaney's mel scale.
        f_min_hz: Lower edge of the lowest band.
        f_max_hz: Upper edge of the highest band.
        high_pass_hz: Cutoff of `high_pass`, whose gain is applied to each bin's power; 0 is off.

    Returns:
        Shape `(batch, n_mels, 1 + samples // hop_length)`.
    """
    device = waveform.device
    window = hann_window(n_fft, device)
    sample = torch.arange(n_fft, dtype=FLOAT, device=device)
    offset = sample - n_fft // 2
    derivative = torch.pi / n_fft * torch.sin(2 * torch.pi * sample / n_fft)

    spectrum = stft(waveform, window, hop_length)  # (B, F, T)
    power = squared_magnitude(spectrum)
    inverse = spectrum.conj() / power.clamp(min=MIN_POWER)
    # Corrections in radians per sample, and in samples.
    frequency_shift = -(stft(waveform, derivative, hop_length) * inverse).imag
    time_shift = (stft(waveform, window * offset, hop_length) * inverse).real

    bins, frames = power.shape[1:]
    bin_hz = torch.arange(bins, dtype=FLOAT, device=device)[:, None] * (sampling_rate / n_fft)
    frequency_hz = bin_hz + frequency_shift * (sampling_rate / (2 * torch.pi))
    frame = (torch.arange(frames, dtype=FLOAT, device=device) + time_shift / hop_length).round().long()
    # On the host: reading two numbers from a GPU would wait for all its queued work.
    low, high = hz_to_mel(torch.tensor([f_min_hz, f_max_hz], dtype=FLOAT)).tolist()
    band = ((hz_to_mel(frequency_hz.clamp(min=0)) - low) / (high - low) * n_mels).floor().long()

    inside = (band >= 0) & (band < n_mels) & (frame >= 0) & (frame < frames) & (power > MIN_POWER)
    cell = torch.where(inside, band * frames + frame, 0).flatten(1)
    if high_pass_hz:
        power = power * high_pass_gain(n_fft, sampling_rate, high_pass_hz, device).square()[:, None]
    grid = power.new_zeros(len(power), n_mels * frames)
    grid.scatter_add_(1, cell, (power * inside).flatten(1))
    return grid.view(len(power), n_mels, frames)


def power_to_db(power: torch.Tensor, top_db: float, min_level_db: float = -100.0) -> torch.Tensor:
    """Power `(batch, bands, frames)` in dB, at least `min_level_db` and each clip's maximum minus `top_db`."""
    level_db = 10 * torch.log10(power.clamp(min=10 ** (min_level_db / 10)))
    return torch.maximum(level_db, level_db.amax(dim=(1, 2), keepdim=True) - top_db)


def standardize(features: torch.Tensor) -> torch.Tensor:
    """Gives each clip of `(batch, bands, frames)` mean 0 and standard deviation 1; a constant clip becomes zeros."""
    centred = features - features.mean(dim=(1, 2), keepdim=True)
    return centred / centred.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-3)


def hz_to_mel(frequency_hz: torch.Tensor, scale: str = "slaney") -> torch.Tensor:
    """Slaney's mel scale: linear up to 1 kHz (15 mel), logarithmic above (27 mel for each factor of 6.4); or HTK's."""
    if scale == "htk":
        return 2595 * torch.log10(1 + frequency_hz / 700)
    logarithmic = 15 + 27 * torch.log(frequency_hz.clamp(min=1000.0) / 1000) / math.log(6.4)
    return torch.where(frequency_hz < 1000, frequency_hz * 3 / 200, logarithmic)


def mel_to_hz(mel: torch.Tensor, scale: str = "slaney") -> torch.Tensor:
    """The inverse of `hz_to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    logarithmic = 1000 * torch.exp((mel.clamp(min=15.0) - 15) * (math.log(6.4) / 27))
    return torch.where(mel < 15, mel * (200 / 3), logarithmic)


def in_chunks(
    function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, clips: int = CLIPS_PER_CHUNK
) -> torch.Tensor:
    """`function(batch)`; on a CPU a few clips at a time, whose spectra stay in the cache: three times as fast."""
    if batch.device.type != "cpu" or torch.compiler.is_exporting():
        return function(batch)
    return torch.cat([function(chunk) for chunk in batch.split(clips)])


@lru_cache(maxsize=32)
def fast_fft_length(samples: int) -> int:
    """The least number, `samples` or more, without prime factors above 5: the FFT of other lengths is slow."""
    while True:
        rest = samples
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return samples
        samples += 1


@lru_cache(maxsize=32)
def high_pass_gain(
    n_fft: int, sampling_rate: int, cutoff_hz: float, device: torch.device, order: int = 4
) -> torch.Tensor:
    """Gain of `high_pass` at each frequency, shape `(1 + n_fft // 2,)`; cached, do not modify."""
    frequency_hz = torch.fft.rfftfreq(n_fft, 1 / sampling_rate, dtype=FLOAT, device=device)
    return 1 / torch.sqrt(1 + (cutoff_hz / frequency_hz.clamp(min=1e-3)) ** (2 * order))


@lru_cache(maxsize=32)
def hann_window(n_fft: int, device: torch.device) -> torch.Tensor:
    """Periodic Hann window of shape `(n_fft,)`; cached, do not modify."""
    return torch.hann_window(n_fft, dtype=FLOAT, device=device)


@lru_cache(maxsize=32)
def overlapped_window(n_fft: int, hop_length: int, frames: int, device: torch.device) -> torch.Tensor:
    """Sum of the squared Hann windows of all frames at each sample; cached, do not modify."""
    window = hann_window(n_fft, device)
    return _overlap_add(window.expand(1, frames, -1), window, hop_length)[0]


@lru_cache(maxsize=32)
def mel_band_frequencies_hz(
    n_mels: int, f_min_hz: float, f_max_hz: float, scale: str = "slaney", overlap: bool = True
) -> tuple[float, ...]:
    """Centre frequency of bands of equal width in mel, which overlap as mel filters do, or do not overlap."""
    low, high = hz_to_mel(torch.tensor([f_min_hz, f_max_hz], dtype=FLOAT), scale).tolist()
    if overlap:
        return tuple(mel_to_hz(torch.linspace(low, high, n_mels + 2, dtype=FLOAT)[1:-1], scale).tolist())
    return tuple(mel_to_hz(low + (high - low) / n_mels * (torch.arange(n_mels, dtype=FLOAT) + 0.5), scale).tolist())


@lru_cache(maxsize=32)
def mel_filter_bank(
    sampling_rate: int,
    n_fft: int,
    n_mels: int,
    f_min_hz: float,
    f_max_hz: float,
    device: torch.device,
    scale: str = "slaney",
) -> torch.Tensor:
    """Mel filters of shape `(n_mels, 1 + n_fft // 2)`; cached, do not modify."""
    # Always on the CPU and in this order of operations: published models depend on the exact values.
    frequency_hz = torch.linspace(0, sampling_rate // 2, 1 + n_fft // 2, dtype=FLOAT)
    lowest, highest = hz_to_mel(torch.tensor([f_min_hz, f_max_hz], dtype=torch.float64), scale).tolist()
    edge_hz = mel_to_hz(torch.linspace(lowest, highest, n_mels + 2, dtype=FLOAT), scale)
    width_hz = edge_hz.diff()
    distance_hz = edge_hz - frequency_hz[:, None]
    rising, falling = -distance_hz[:, :-2] / width_hz[:-1], distance_hz[:, 2:] / width_hz[1:]
    bank = torch.minimum(rising, falling).clamp(min=0)
    if scale == "slaney":
        bank *= 2 / (edge_hz[2:] - edge_hz[:-2])  # white noise has about the same energy in each band
    return bank.T.contiguous().to(device)


@lru_cache(maxsize=32)
def mel_filter_groups(
    sampling_rate: int,
    n_fft: int,
    n_mels: int,
    f_min_hz: float,
    f_max_hz: float,
    device: torch.device,
    kind: MelKind = USUAL_MEL,
) -> list[tuple[int, int, torch.Tensor]]:
    """`mel_filter_bank` without most of its zeros, times the gain of the high-pass: see `row_groups`."""
    bank = mel_filter_bank(sampling_rate, n_fft, n_mels, f_min_hz, f_max_hz, torch.device("cpu"), kind.scale)
    if kind.high_pass_hz:
        gain = high_pass_gain(n_fft, sampling_rate, kind.high_pass_hz, torch.device("cpu"))
        bank = bank * (gain if kind.spectrum == "magnitude" else gain.square())
    return row_groups(bank, device)


def row_groups(matrix: torch.Tensor, device: torch.device) -> list[tuple[int, int, torch.Tensor]]:
    """A matrix in groups of rows: the first column and the column after the last that a group needs, and the part."""
    groups = []
    for rows in matrix.split(BANDS_PER_GROUP):
        reached = rows.any(dim=0).nonzero().flatten().tolist() or [0]
        first, last = reached[0], reached[-1] + 1
        groups.append((first, last, rows[:, first:last].contiguous().to(device)))
    return groups


def grouped_product(groups: list[tuple[int, int, torch.Tensor]], values: torch.Tensor) -> torch.Tensor:
    """The product of the matrix of `row_groups` and each row of values: `(batch, frames, columns)` to its rows."""
    return torch.cat([values[..., first:last] @ part.T for first, last, part in groups], dim=-1)


def squared_magnitude(spectrum: torch.Tensor) -> torch.Tensor:
    """Power of a complex spectrum; several times as fast as `abs().square()`, which computes a square root."""
    squares = torch.view_as_real(spectrum).square()
    return squares[..., 0] + squares[..., 1]


def _overlap_add(frame: torch.Tensor, window: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Overlap-add of frames `(batch, frames, n_fft)`, times the window, to `(batch, samples)`."""
    batch, frames, n_fft = frame.shape
    total = frame.new_zeros(batch, frames + n_fft // hop_length - 1, hop_length)
    parts = zip(frame.split(hop_length, dim=2), window.split(hop_length), strict=True)
    for hop, (part, part_of_window) in enumerate(parts):
        total[:, hop : hop + frames].addcmul_(part, part_of_window)
    return total.flatten(1)
