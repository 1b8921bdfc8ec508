"""Noise reduction of waveforms and of spectrograms: batched functions of tensors, without side effects."""

from functools import lru_cache

import torch

from .signal_kenya_birds import grouped_product, hann_window, istft, row_groups, squared_magnitude, stft

# The noise gate limits levels to this range below each frequency's loudest frame.
GATE_RANGE_DB = 40.0
# The settings of TorchGate in noisereduce 3.
GATE_N_FFT = 1024
GATE_HOP_LENGTH = 256
GATE_DEVIATIONS = 1.5
GATE_MEAN_FRAMES = 20
GATE_THRESHOLD = 1.3
GATE_TEMPERATURE = 0.1
GATE_SMOOTH_HZ = 500.0
GATE_SMOOTH_MS = 50.0


def reduce_noise(
    waveform: torch.Tensor, sampling_rate: int, stationary: bool = True, prop_decrease: float = 0.9
) -> torch.Tensor:
    """Spectral gating, as `TorchGate` of `noisereduce` (T. Sainburg, https://github.com/timsainb/noisereduce) does it.

    Settings and result are those of `TorchGate`; a test compares them. This function stores frames before bins and
    smooths the mask with a separable filter, in integers. That is several times as fast on a CPU, and digital silence
    stays zero.

    Args:
        waveform: Shape `(batch, samples)`.
        sampling_rate: In Hz, 5120 to 256000.
        stationary: One noise threshold per frequency for the whole clip (mean plus 1.5 standard deviations of the
            level in dB), or one that follows the level over time.
        prop_decrease: Share of the sound below the threshold that is removed, 0 to 1.

    Returns:
        Shape `(batch, samples)`.
    """
    window = hann_window(GATE_N_FFT, waveform.device)
    # Frames before bins, (B, T, F): the memory layout of the transform.
    spectrum = stft(waveform, window, GATE_HOP_LENGTH).transpose(1, 2)
    mask = _stationary_mask(squared_magnitude(spectrum), dim=1) if stationary else _nonstationary_mask(spectrum)
    bin_hz, frame_ms = sampling_rate / (GATE_N_FFT / 2), GATE_HOP_LENGTH / sampling_rate * 1000
    widths = int(GATE_SMOOTH_MS / frame_ms) + 1, int(GATE_SMOOTH_HZ / bin_hz) + 1
    kept = _smooth_mask(mask, widths).to(waveform).mul_(prop_decrease)
    frames, bins = (smoothed_ones(n, width, waveform.device) for n, width in zip(mask.shape[1:], widths, strict=True))
    # As if the gain of the whole, 1 - prop_decrease * (1 - mask), had been smoothed.
    kept += (1 - prop_decrease) * frames[:, None] * bins
    return istft(spectrum * kept, window, GATE_HOP_LENGTH, waveform.shape[-1])


def gate_bands(
    power: torch.Tensor, bands_hz: tuple[float, ...], frame_s: float, prop_decrease: float = 0.9
) -> torch.Tensor:
    """The stationary gate of `reduce_noise`, on the power of bands or bins instead of a transform of its own.

    The rule is the same: a cell is kept if its level is more than 1.5 standard deviations above the mean level of its
    band. The gain is smoothed with triangles of +-250 Hz and +-50 ms.

    Args:
        power: Shape `(batch, bands, frames)`.
        bands_hz: Centre frequency of each band, ascending.
        frame_s: Time from frame to frame.
        prop_decrease: Share of the sound's amplitude below the threshold that is removed, 0 to 1.

    Returns:
        The same shape.
    """
    device = power.device
    frames = triangle_groups(tuple(frame_s * frame for frame in range(power.shape[2])), GATE_SMOOTH_MS / 1000, device)
    bands = triangle_groups(bands_hz, GATE_SMOOTH_HZ / 2, device)
    mask = _stationary_mask(power, dim=2).to(power)
    smooth = grouped_product(bands, grouped_product(frames, mask.transpose(1, 2)).transpose(1, 2))
    # The gain is 1 - prop_decrease * (1 - smooth).
    return power * smooth.mul_(prop_decrease).add_(1 - prop_decrease).square_()


def _stationary_mask(power: torch.Tensor, dim: int) -> torch.Tensor:
    """Where the level is 1.5 standard deviations above its mean over the frames, which lie along `dim`."""
    lowest = power.amax(dim=dim, keepdim=True).mul_(10 ** (-GATE_RANGE_DB / 10))
    level = torch.maximum(power, lowest.clamp_(min=torch.finfo(torch.float64).eps ** 2)).log10_()
    mean = level.mean(dim=dim, keepdim=True)
    deviation = (level - mean).square_().sum(dim=dim, keepdim=True).div_(level.shape[dim] - 1).sqrt_()
    return level > mean.add_(deviation, alpha=GATE_DEVIATIONS)


def _nonstationary_mask(spectrum: torch.Tensor) -> torch.Tensor:
    """How far the magnitude is above its moving mean over time, 0 to 1, of `(batch, frames, bins)`."""
    magnitude = spectrum.abs().transpose(1, 2)
    before = (GATE_MEAN_FRAMES - 1) // 2
    padded = torch.nn.functional.pad(magnitude, (before, GATE_MEAN_FRAMES - 1 - before))
    mean = torch.nn.functional.avg_pool1d(padded, GATE_MEAN_FRAMES, stride=1)
    above = torch.sigmoid(((magnitude - mean) / mean - GATE_THRESHOLD) / GATE_TEMPERATURE)
    return above.transpose(1, 2).nan_to_num(0.0)  # 0 / 0 in digital silence


@lru_cache(maxsize=32)
def smoothed_ones(size: int, width: int, device: torch.device) -> torch.Tensor:
    """Moving average of ones with zero padding, shape `(size,)`: 1 but near the ends; cached, do not modify."""
    return _triangle_sums(torch.ones(1, size, device=device), width, axis=1)[0] / width**2


@lru_cache(maxsize=32)
def triangles(places: tuple[float, ...], reach: float, device: torch.device) -> torch.Tensor:
    """Matrix of a moving average with triangular weights over places; cached, do not modify.

    Args:
        places: Positions, for example of bands in Hz.
        reach: Distance at which the weight is 0.
        device: Device of the result.

    Returns:
        Shape `(places, places)`; each row sums to 1.
    """
    place = torch.tensor(places, dtype=torch.float64)
    weight = (1 - (place[:, None] - place).abs() / reach).clamp(min=0)
    return (weight / weight.sum(dim=1, keepdim=True)).float().to(device)


@lru_cache(maxsize=32)
def triangle_groups(
    places: tuple[float, ...], reach: float, device: torch.device
) -> list[tuple[int, int, torch.Tensor]]:
    """`triangles` without most of its zeros: see `row_groups`."""
    return row_groups(triangles(places, reach, torch.device("cpu")), device)


def _smooth_mask(mask: torch.Tensor, widths: tuple[int, int]) -> torch.Tensor:
    """Moving average over frames and bins with triangles of `2 * width - 1` taps and zero padding.

    Args:
        mask: Shape `(batch, frames, bins)`: bool, or float from 0 to 1.
        widths: Of frames and of bins.

    Returns:
        Float, the same shape.
    """
    of_frames, of_bins = widths
    if mask.dtype != torch.bool or torch.compiler.is_exporting():  # onnxruntime adds no small integers
        counts = mask.to(torch.float32)
    else:
        # Counts are exact, and small integers are several times as fast as floats.
        counts = mask.view(torch.uint8) if of_bins**2 <= 255 else mask.to(torch.int16)
    counts = _triangle_sums(counts, of_bins, axis=2)
    counts = _triangle_sums(counts.to(torch.int16) if counts.dtype == torch.uint8 else counts, of_frames, axis=1)
    return counts.to(torch.float32) / (of_frames * of_bins) ** 2


def _triangle_sums(values: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    """Moving sum with the weights 1, 2, ... `width`, ... 2, 1 and zero padding, as two moving sums with a box."""
    padding = [0, 0] * (values.ndim - 1 - axis) + [width - 1, width - 1]
    values = torch.nn.functional.pad(values, padding)
    return _box_sums(_box_sums(values, width, axis), width, axis)


def _box_sums(values: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    """Sums of `width` neighbours, from sums of 1, 2, 4, ... neighbours; `width - 1` shorter along the axis."""
    length = values.shape[axis] - width + 1
    parts, taken, span = [], 0, 1
    while taken < width:
        if width & span:
            parts.append(values.narrow(axis, taken, length))
            taken += span
        if taken < width:
            pairs = values.shape[axis] - span
            values = values.narrow(axis, 0, pairs) + values.narrow(axis, span, pairs)
            span *= 2
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
