"""Changes of sound and spectrograms: pure, batched functions of tensors, one amount for each clip."""

import torch

from kenya_birds.errors import UserError


def cut_windows(stored: torch.Tensor, clip: torch.Tensor, start: torch.Tensor, samples: int) -> torch.Tensor:
    """Cuts a window out of each of some stored clips; one that passes the end goes on at the beginning.

    Args:
        stored: Shape `(clips, stored samples)`.
        clip: Index of the clip of each window, shape `(batch,)`.
        start: First sample of each window, shape `(batch,)`.
        samples: Length of a window.

    Returns:
        Shape `(batch, samples)`.
    """
    place = (start[:, None] + torch.arange(samples, device=stored.device)) % stored.shape[1]
    return stored[clip[:, None], place]


def colored_noise(
    samples: int, sample_rate_hz: int, slope_db: float, band_hz: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    """Gaussian noise whose power density falls by `-slope_db` an octave within a band, and is zero outside.

    Args:
        samples: Length; the noise can be repeated without a seam.
        sample_rate_hz: Samples per second.
        slope_db: -3.01 is pink noise, -6.02 brown, 0 white.
        band_hz: Lowest and highest frequency.
        generator: Makes the noise.

    Returns:
        Shape `(samples,)`, mean power 1.

    Raises:
        UserError: If the band is empty.
    """
    spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))
    frequency_hz = torch.fft.rfftfreq(samples, 1 / sample_rate_hz)
    octaves = torch.log2(frequency_hz.clamp(min=1.0))
    inside = (frequency_hz >= band_hz[0]) & (frequency_hz <= band_hz[1])
    if not inside.any():
        raise UserError(
            f"no noise can be made from {band_hz[0]:g} to {band_hz[1]:g} Hz: the features begin at the higher of "
            "f_min_hz and high_pass_hz, expected below f_max_hz; or choose noise_probability 0"
        )
    noise = torch.fft.irfft(spectrum * inside * 10 ** (slope_db * octaves / 20), n=samples)
    return noise / noise.square().mean().sqrt()


def add_at_snr(waveform: torch.Tensor, noise: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
    """Adds noise so that the waveform's mean power is `snr_db` above the noise's.

    Args:
        waveform: Shape `(batch, samples)`; to a silent one nothing is added.
        noise: The same shape, of any level.
        snr_db: Shape `(batch,)`; infinite adds nothing.
    """
    noise = noise.to(waveform.dtype)
    level = waveform.square().mean(dim=1).sqrt() / noise.square().mean(dim=1).sqrt().clamp(min=1e-9)
    return torch.addcmul(waveform, noise, (level * 10 ** (-snr_db / 20))[:, None])


def mix(waveform: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mixup (H. Zhang et al., ICLR 2018): `(1 - share) * waveform + share * other`, `share` of shape `(batch,)`."""
    return torch.lerp(waveform, other, share[:, None])


def warp_bands(power: torch.Tensor, bands_hz: torch.Tensor, semitones: torch.Tensor) -> torch.Tensor:
    """Moves every frequency by a musical interval: what was at `f` is at `f * 2^(semitones / 12)`.

    Args:
        power: Shape `(batch, bands, frames)`.
        bands_hz: Centre frequency of each band, rising.
        semitones: Shape `(batch,)`.

    Returns:
        The same shape; bands are interpolated linearly, nothing comes from outside the range.
    """
    source_hz = bands_hz / 2 ** (semitones[:, None] / 12)
    right = torch.searchsorted(bands_hz, source_hz).clamp(1, len(bands_hz) - 1)
    below, above = bands_hz[right - 1], bands_hz[right]
    position = right - 1 + (source_hz - below) / (above - below)  # (B, bands)
    distance = position[:, :, None] - torch.arange(len(bands_hz), device=power.device)
    return (1 - distance.abs()).clamp_(min=0) @ power


def warp_frames(power: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """Plays each clip faster or slower about its middle; what is missing at the ends comes from the other end.

    Args:
        power: Shape `(batch, bands, frames)`.
        speed: Shape `(batch,)`; 2 makes every event half as long.

    Returns:
        The same shape; frames are interpolated linearly.
    """
    frames = power.shape[2]
    frame = torch.arange(frames, device=power.device)
    position = (frames - 1) / 2 + (frame - (frames - 1) / 2) * speed[:, None]  # (B, frames)
    distance = position[:, None, :] - frame[:, None]
    distance = (distance + frames / 2).remainder(frames) - frames / 2
    return power @ (1 - distance.abs()).clamp_(min=0)


def mask(features: torch.Tensor, axis: int, start: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Replaces neighbouring bands or frames by the clip's mean (SpecAugment: D. Park et al., Interspeech 2019).

    Args:
        features: Shape `(batch, bands, frames)`.
        axis: 1 masks bands, 2 frames.
        start: Where in its room each mask begins, shape `(batch,)`: 0 is the first place, just below 1 the last.
        width: Whole numbers of shape `(batch,)`.
    """
    size = features.shape[axis]
    width = width.clamp(max=size)
    first = (start * (size - width + 1)).floor()[:, None]
    place = torch.arange(size, device=features.device)
    masked = (place >= first) & (place < first + width[:, None])  # (B, size)
    return torch.where(masked.unsqueeze(3 - axis), features.mean(dim=(1, 2), keepdim=True), features)
