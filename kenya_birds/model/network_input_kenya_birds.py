"""The inputs of published networks: windows of sound, scaled, or spectrograms of them."""

from collections.abc import Sequence

import numpy as np


def network_input(
    waveform: np.ndarray, peak: float | None = None, spectrogram: Sequence[int] | None = None
) -> np.ndarray:
    """What a network takes of windows of sound.

    Args:
        waveform: float32, shape `(windows, samples)`.
        peak: Peak that each window is centred and scaled to (see `with_peak`); None: it is not.
        spectrogram: Bins and frames of a network that takes spectrograms (see `magnitude_spectrogram`); None: it takes
            the waveform.

    Returns:
        float32, shape `(windows, samples)`, or `(windows, bins, frames, 1)`.
    """
    if peak is not None:
        waveform = with_peak(waveform, peak)
    if spectrogram is None:
        return waveform
    return np.stack([magnitude_spectrogram(window, *spectrogram) for window in waveform])[..., None]


def with_peak(waveform: np.ndarray, peak: float) -> np.ndarray:
    """Removes the mean of each window and scales it to a peak; silence stays silence.

    Args:
        waveform: Shape `(windows, samples)`.
        peak: The largest absolute value of the result.
    """
    centred = waveform - waveform.mean(axis=1, keepdims=True)
    highest = np.abs(centred).max(axis=1, keepdims=True)
    return (centred * (peak / np.where(highest > 0, highest, 1))).astype(np.float32)


def magnitude_spectrogram(window: np.ndarray, bins: int, frames: int) -> np.ndarray:
    """Magnitudes of the Fourier transform, scaled so that the window's lowest is 0 and its highest 1.

    This is the input of birdnet-team/birdnet-stm32 with its front end `hybrid`
    (`audio.spectrogram.get_spectrogram_from_audio` without mel bands). Numbers are those of
    `numpy.abs(librosa.stft(window, n_fft=2 * (bins - 1), hop_length=len(window) // frames))`, bit by bit, because
    networks of 8 bits round them.

    Args:
        window: float32, shape `(samples,)`.
        bins: Bins of the Fourier transform, 0 Hz to half of the sampling rate.
        frames: Number of frames; further ones at the end are left out.

    Returns:
        float32, shape `(bins, frames)`.
    """
    n_fft = 2 * (bins - 1)
    hann = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, n_fft + 1)[:-1])
    padded = np.pad(window, n_fft // 2)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[:: len(window) // frames][:frames]
    magnitude = np.abs(np.fft.rfft(pieces * hann, axis=1).astype(np.complex64)).T
    lowest, highest = magnitude.min(), magnitude.max()
    return (magnitude - lowest) / (highest - lowest + np.float32(1e-10))
