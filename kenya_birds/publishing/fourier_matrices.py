"""Fourier transforms as matrix products, used in ONNX graphs instead of `torch.stft` and similar functions.

In onnxruntime, the ONNX operators DFT and STFT are too inexact for lengths that are not a power of 2, and many times
slower.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# Longer transforms are composed of shorter ones.
LONGEST_DIRECT = 64


class FourierMatrices(TorchFunctionMode):
    """Context in which `torch.stft`, `torch.fft.rfft` and `torch.fft.irfft` are matrix products.

    The results agree within float32 precision. Spectra are `SplitSpectrum`, because a graph has no complex numbers.
    Only the arguments that the feature extractor uses are supported.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


class SplitSpectrum:
    """A complex tensor as two real tensors, with the operations that the feature extractor needs.

    Attributes:
        real: Real part.
        imag: Imaginary part, of the same shape.
    """

    def __init__(self, real: torch.Tensor, imag: torch.Tensor) -> None:
        self.real = real
        self.imag = imag

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # torch's functions pass it to the mode above, which implements the supported ones.
        return NotImplemented

    def transpose(self, first: int, second: int) -> "SplitSpectrum":
        """As `torch.Tensor.transpose`."""
        return SplitSpectrum(self.real.transpose(first, second), self.imag.transpose(first, second))

    def abs(self) -> torch.Tensor:
        """Magnitude."""
        return (self.real.square() + self.imag.square()).sqrt()

    def __mul__(self, factor: torch.Tensor) -> "SplitSpectrum":
        return SplitSpectrum(self.real * factor, self.imag * factor)


def stft(
    waveform: torch.Tensor,
    n_fft: int,
    hop_length: int,
    window: torch.Tensor,
    center: bool,
    pad_mode: str,
    return_complex: bool,
    **others: Any,
) -> SplitSpectrum:
    """`torch.stft` of `(batch, samples)`, centred, zero-padded: `(batch, 1 + n_fft // 2, frames)`."""
    if not (center and pad_mode == "constant" and return_complex and len(window) == n_fft) or any(others.values()):
        raise NotImplementedError("expected centred frames, zero padding and a window of the frame's length")
    batch, samples = waveform.shape
    before = n_fft // 2
    frames, hops = 1 + (samples + 2 * before - n_fft) // hop_length, -(-n_fft // hop_length)
    after = (frames + hops - 1) * hop_length - before - samples
    padded = torch.nn.functional.pad(waveform, (before, after))
    hop = padded.reshape(batch, frames + hops - 1, hop_length).transpose(1, 2)
    frame = torch.cat([hop[:, :, first : first + frames] for first in range(hops)], dim=1)[:, :n_fft]
    return SplitSpectrum(*_real_dft(frame * window[:, None]))


def rfft(waveform: torch.Tensor, n: int) -> SplitSpectrum:
    """`torch.fft.rfft` of `(batch, samples)`: `(batch, 1 + n // 2)`."""
    padded = torch.nn.functional.pad(waveform, (0, n - waveform.shape[1]))
    real, imag = _real_dft(padded[..., None])
    return SplitSpectrum(real.squeeze(-1), imag.squeeze(-1))


def irfft(spectrum: SplitSpectrum, n: int) -> torch.Tensor:
    """`torch.fft.irfft` of `(batch, 1 + n // 2)` or `(batch, frames, 1 + n // 2)`, over the last axis."""
    if spectrum.real.ndim == 3:
        columns = spectrum.transpose(1, 2)
        return _unscaled_inverse(columns.real, columns.imag, n).transpose(1, 2) / n
    return _unscaled_inverse(spectrum.real[..., None], spectrum.imag[..., None], n).squeeze(-1) / n


def view_as_real(spectrum: SplitSpectrum) -> torch.Tensor:
    """`torch.view_as_real`: real and imaginary parts along a new last axis."""
    return torch.stack([spectrum.real, spectrum.imag], dim=-1)


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.stft: stft,
    torch.view_as_real: view_as_real,
    torch.fft.rfft: rfft,
    torch.fft.irfft: irfft,
}


def _real_dft(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Real Fourier transform of `(batch, n, columns)`: real and imaginary parts, `(batch, 1 + n // 2, columns)`.

    Longer transforms follow J. Cooley and J. Tukey, "An algorithm for the machine calculation of complex Fourier
    series", Mathematics of Computation 19, 1965: with samples at `rest * a + b` and bins at `p + first * q`,
    transforms over `a`, factors of `p` and `b`, transforms over `b`. Those over `a` are real: half of `p` is enough.
    """
    batch, n, columns = values.shape
    first = _first_factor(n)
    if first == n:
        return _parts(_dft_matrix(n, 1 + n // 2)[:, :n] @ values)
    rest, half = n // first, 1 + first // 2
    real, imag = _parts(_dft_matrix(first, half)[:, :first] @ values.reshape(batch, first, rest * columns))
    turned = _turn(real.reshape(batch, half, rest, columns), imag.reshape(batch, half, rest, columns), n)
    real, imag = _complex_dft(*(part.reshape(batch * half, rest, columns) for part in turned))
    bins = np.arange(1 + n // 2)
    # The other half has their conjugates in reverse order.
    is_mirrored = bins % first >= half
    source = np.where(is_mirrored, n - bins, bins)
    row = torch.from_numpy(source % first * rest + source // first)
    sign = torch.from_numpy(np.where(is_mirrored, -1, 1).astype(np.float32))[:, None]
    real, imag = (part.reshape(batch, half * rest, columns).index_select(1, row) for part in (real, imag))
    return real, imag * sign


def _complex_dft(real: torch.Tensor, imag: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, n, columns = real.shape
    first = _first_factor(n)
    rest = n // first
    both = torch.cat([part.reshape(batch, first, rest * columns) for part in (real, imag)], dim=1)
    if first == n and columns == 1:
        # One matrix-matrix product instead of many matrix-vector products.
        return _parts((both.squeeze(-1) @ _dft_matrix(n, n).T)[..., None])
    real, imag = _parts(_dft_matrix(first, first) @ both)
    if first == n:
        return real, imag
    turned = _turn(real.reshape(batch, first, rest, columns), imag.reshape(batch, first, rest, columns), n)
    real, imag = _complex_dft(*(part.reshape(batch * first, rest, columns) for part in turned))
    real, imag = (
        part.reshape(batch, first, rest, columns).transpose(1, 2).reshape(batch, n, columns) for part in (real, imag)
    )
    return real, imag


def _unscaled_inverse(real: torch.Tensor, imag: torch.Tensor, n: int) -> torch.Tensor:
    """`n` times the inverse of `_real_dft`, from `(batch, 1 + n // 2, columns)` to `(batch, n, columns)`.

    It is a Hartley transform (R. Bracewell, "The fast Hartley transform", Proc. IEEE 72, 1984) of the real part minus
    the imaginary part; a Hartley transform is itself the real minus the imaginary part of a Fourier transform.
    """
    real, imag = _real_dft(_hartley(real, imag, n))
    return _hartley(real, imag, n)


def _hartley(real: torch.Tensor, imag: torch.Tensor, n: int) -> torch.Tensor:
    """Real minus imaginary part of all `n` bins, from the first half; the others are conjugates."""
    others = slice(1, n - n // 2)
    return torch.cat([real - imag, (real[:, others] + imag[:, others]).flip(1)], dim=1)


def _turn(real: torch.Tensor, imag: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiplies by `exp(-2i pi p b / n)`, where `p` and `b` are the two middle axes."""
    angle = 2 * np.pi / n * np.outer(np.arange(real.shape[1]), np.arange(real.shape[2]))[..., None]
    cosine, sine = (torch.from_numpy(function(angle).astype(np.float32)) for function in (np.cos, np.sin))
    return real * cosine + imag * sine, imag * cosine - real * sine


def _parts(stacked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    real, imag = stacked.chunk(2, dim=1)
    return real, imag


def _dft_matrix(n: int, bins: int) -> torch.Tensor:
    """Matrix from stacked real and imaginary parts to those of the first bins, shape `(2 * bins, 2 * n)`."""
    angle = 2 * np.pi / n * (np.outer(np.arange(bins), np.arange(n)) % n)
    cosine, sine = np.cos(angle), np.sin(angle)
    return torch.from_numpy(np.block([[cosine, sine], [-sine, cosine]]).astype(np.float32))


@lru_cache(maxsize=32)
def _first_factor(n: int) -> int:
    """The largest divisor that one matrix can transform; `n` itself if there is none."""
    return max((divisor for divisor in range(2, LONGEST_DIRECT + 1) if n % divisor == 0), default=n)
