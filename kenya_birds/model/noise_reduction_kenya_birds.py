"""Noise reduction of waveforms and of spectrograms: batched functions of tensors, without side effects."""

from functools import lru_cache

import torch

from .signal_kenya_birds import FLOAT, grouped_product, hann_window, istft, row_groups, squared_magnitude, stft

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
    mask = _stationary_mask(squared_magnitude(spectrum)) if stationary else _nonstationary_mask(spectrum)
    bin_hz, frame_ms = sampling_rate / (GATE_N_FFT / 2), GATE_HOP_LENGTH / sampling_rate * 1000
    widths = int(GATE_SMOOTH_MS / frame_ms) + 1, int(GATE_SMOOTH_HZ / bin_hz) + 1
    # As if the gain of the whole, 1 - prop_decrease * (1 - mask), had been smoothed.
    least = least_gain(*mask.shape[1:], *widths, 1 - prop_decrease, waveform.device)
    gain = torch.add(least, _mask_sums(mask, widths), alpha=prop_decrease / (widths[0] * widths[1]) ** 2)
    return istft(spectrum * gain.to(waveform), window, GATE_HOP_LENGTH, waveform.shape[-1])


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
    mask = _stationary_mask(power.transpose(1, 2)).to(power)
    smooth = grouped_product(frames, grouped_product(bands, mask).transpose(1, 2))
    # The gain is 1 - prop_decrease * (1 - smooth).
    return power * smooth.mul_(prop_decrease).add_(1 - prop_decrease).square_()


def _stationary_mask(power: torch.Tensor) -> torch.Tensor:
    """Where the level is 1.5 standard deviations above its mean over the frames, of `(batch, frames, bins)`."""
    lowest = power.amax(dim=1, keepdim=True).mul_(10 ** (-GATE_RANGE_DB / 10))
    level = torch.maximum(power, lowest.clamp_(min=torch.finfo(torch.float64).eps ** 2)).log10_()
    level -= level.mean(dim=1, keepdim=True)
    deviation = level.square().sum(dim=1, keepdim=True).div_(level.shape[1] - 1).sqrt_()
    return level > deviation.mul_(GATE_DEVIATIONS)


def _nonstationary_mask(spectrum: torch.Tensor) -> torch.Tensor:
    """How far the magnitude is above its moving mean over time, 0 to 1, of `(batch, frames, bins)`."""
    magnitude = spectrum.abs().transpose(1, 2)
    before = (GATE_MEAN_FRAMES - 1) // 2
    padded = torch.nn.functional.pad(magnitude, (before, GATE_MEAN_FRAMES - 1 - before))
    mean = torch.nn.functional.avg_pool1d(padded, GATE_MEAN_FRAMES, stride=1)
    above = torch.sigmoid(((magnitude - mean) / mean - GATE_THRESHOLD) / GATE_TEMPERATURE)
    return above.transpose(1, 2).nan_to_num(0.0)  # 0 / 0 in digital silence


@lru_cache(maxsize=8)
def least_gain(
    frames: int, bins: int, of_frames: int, of_bins: int, gain: float, device: torch.device
) -> torch.Tensor:
    """A constant gain, smoothed as the mask is: shape `(frames, bins)`, lower near the ends; cached, do not modify."""
    sides = [
        _triangle_sums(
            torch.nn.functional.pad(torch.ones(1, size, dtype=FLOAT, device=device), (width - 1, width - 1)), width
        )
        for size, width in ((frames, of_frames), (bins, of_bins))
    ]
    return sides[0].T * sides[1] * (gain / (of_frames * of_bins) ** 2)


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


def _mask_sums(mask: torch.Tensor, widths: tuple[int, int]) -> torch.Tensor:
    """Moving sums over frames and bins with the weights 1, 2, ... width, ... 2, 1 and zero padding.

    Args:
        mask: Shape `(batch, frames, bins)`: bool, or float from 0 to 1.
        widths: Of frames and of bins.

    Returns:
        The same shape; integers for a mask of bool, except in an exported graph.
    """
    (of_frames, of_bins), frames = widths, mask.shape[1]
    if mask.dtype != torch.bool or torch.compiler.is_exporting():  # onnxruntime adds no small integers
        counts = mask.to(torch.float32)
    else:
        # Counts are exact, and small integers are several times as fast as floats.
        counts = mask.view(torch.uint8) if of_bins**2 <= 255 else mask.to(torch.int16)
    # All frames in one line, with zeros between them: their neighbours are at a constant distance. One more frame,
    # because sums over bins shorten the line.
    counts = torch.nn.functional.pad(counts, (of_bins - 1, of_bins - 1, of_frames - 1, of_frames))
    stride = counts.shape[2]
    sums = _triangle_sums(counts.flatten(1), of_bins)
    sums = _triangle_sums(sums.to(torch.int16) if sums.dtype == torch.uint8 else sums, of_frames, stride)
    return sums[:, : frames * stride].unflatten(1, (frames, stride))[..., : mask.shape[2]]


def _triangle_sums(values: torch.Tensor, width: int, stride: int = 1) -> torch.Tensor:
    """Sums of `2 * width - 1` neighbours with the weights 1, 2, ... `width`, ... 2, 1: two moving sums with a box."""
    return _box_sums(_box_sums(values, width, stride), width, stride)


def _box_sums(values: torch.Tensor, width: int, stride: int) -> torch.Tensor:
    """Sums of `width` neighbours in `(batch, values)`, from sums of 1, 2, 4, ... neighbours.

    Args:
        values: The values.
        width: Number of neighbours.
        stride: Distance of neighbours. The result is shorter by `(width - 1) * stride`.
    """
    length = values.shape[1] - (width - 1) * stride
    parts, taken, span = [], 0, 1
    while taken < width:
        if width & span:
            parts.append(values.narrow(1, taken * stride, length))
            taken += span
        if taken < width:
            pairs = values.shape[1] - span * stride
            values = values.narrow(1, 0, pairs) + values.narrow(1, span * stride, pairs)
            span *= 2
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
