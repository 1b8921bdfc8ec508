"""Augmentation against physics: frequencies, levels, slopes, lengths."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.augmentation import add_at_snr, colored_noise, mask, mix, warp_bands, warp_frames

RATE = 32_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def power_db(waveform):
    return 10 * torch.log10(waveform.double().square().mean(dim=-1))


def slope_db_per_octave(noise, low_hz, high_hz):
    """Slope of the regression of level (dB) on octaves, over third-octave bands."""
    power = torch.fft.rfft(noise.double()).abs().square()
    frequency_hz = torch.fft.rfftfreq(len(noise), 1 / RATE)
    edges_hz = low_hz * 2 ** (np.arange(0, np.log2(high_hz / low_hz), 1 / 3))
    pairs = list(itertools.pairwise(edges_hz))
    levels = [power[(frequency_hz >= a) & (frequency_hz < b)].mean().log10().item() * 10 for a, b in pairs]
    return np.polyfit([np.log2(np.sqrt(a * b)) for a, b in pairs], levels, 1)[0]


@pytest.mark.parametrize(("slope_db", "name"), [(0.0, "white"), (-3.0, "pink"), (-6.0, "brown")])
def test_noise_falls_by_its_slope(slope_db, name):
    noise = colored_noise(20 * RATE, RATE, slope_db, (150.0, 15_000.0), generator())
    assert slope_db_per_octave(noise, 200, 12_000) == pytest.approx(slope_db, abs=0.15), name


def test_noise_lies_within_its_band_and_has_power_1():
    noise = colored_noise(5 * RATE, RATE, -3.0, (500.0, 4000.0), generator())
    power = torch.fft.rfft(noise.double()).abs().square()
    frequency_hz = torch.fft.rfftfreq(len(noise), 1 / RATE)
    assert power[(frequency_hz < 499) | (frequency_hz > 4001)].sum() < 1e-9 * power.sum()
    assert power_db(noise) == pytest.approx(0.0, abs=1e-4)


def test_the_same_generator_gives_the_same_noise_and_another_another():
    noise = [colored_noise(RATE, RATE, -3.0, (150.0, 9000.0), generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(noise[0], noise[1])
    assert abs(torch.dot(noise[0], noise[2]) / RATE) < 0.1


@given(st.lists(st.floats(-10, 40), min_size=1, max_size=4), st.floats(1e-3, 1e3))
def test_noise_is_added_at_the_ratio_asked_for(snr_db, noise_level):
    waveform = 0.1 * torch.randn(len(snr_db), 8000, generator=generator())
    noise = noise_level * torch.randn(len(snr_db), 8000, generator=generator(1))
    added = add_at_snr(waveform, noise, torch.tensor(snr_db)) - waveform
    torch.testing.assert_close(
        power_db(waveform) - power_db(added), torch.tensor(snr_db, dtype=torch.float64), atol=0.02, rtol=0
    )


def test_an_infinite_ratio_and_silence_add_nothing():
    waveform = torch.stack([torch.randn(1000, generator=generator()), torch.zeros(1000)])
    noise = torch.ones(2, 1000)
    assert torch.equal(add_at_snr(waveform, noise, torch.tensor([torch.inf, 5.0])), waveform)
    assert torch.equal(add_at_snr(waveform, torch.zeros(2, 1000), torch.tensor([5.0, 5.0])), waveform)


def test_a_mix_holds_each_clip_by_its_share():
    ones, threes = torch.ones(2, 4), torch.full((2, 4), 3.0)
    torch.testing.assert_close(mix(ones, threes, torch.tensor([0.25, 0.0])), torch.tensor([[1.5] * 4, [1.0] * 4]))


@pytest.fixture(scope="module", params=["mel", "stft", "reassigned"])
def extractor(request):
    return KenyaBirdsFeatureExtractor(noise_reduction="none", feature_type=request.param, f_max_hz=12_000.0)


def tone(frequency_hz, extractor):
    t = torch.arange(extractor.clip_samples) / RATE
    return torch.sin(2 * torch.pi * frequency_hz * t)[None]


@pytest.mark.parametrize("semitones", [-4.0, -0.5, 1.7, 4.0])
@pytest.mark.parametrize("frequency_hz", [700.0, 3000.0, 7000.0])
def test_a_tone_moves_by_the_semitones_asked_for(extractor, frequency_hz, semitones):
    bands_hz = extractor.band_frequencies_hz()
    warped = warp_bands(extractor.band_power(tone(frequency_hz, extractor)), bands_hz, torch.tensor([semitones]))
    level = warped[0].mean(dim=1)
    # Centre of gravity: linear interpolation between bands keeps it.
    near = (bands_hz - bands_hz[level.argmax()]).abs() < 0.1 * bands_hz[level.argmax()] + 60
    found_hz = (level * bands_hz)[near].sum() / level[near].sum()
    band_hz = torch.diff(bands_hz)[level.argmax().clamp(max=len(bands_hz) - 2)]
    assert found_hz.item() == pytest.approx(frequency_hz * 2 ** (semitones / 12), abs=0.6 * band_hz.item())


def test_no_semitones_change_nothing(extractor):
    power = torch.rand(2, len(extractor.band_frequencies_hz()), 20, generator=generator())
    torch.testing.assert_close(warp_bands(power, extractor.band_frequencies_hz(), torch.zeros(2)), power)


def test_nothing_comes_from_outside_the_range():
    bands_hz = torch.linspace(1000.0, 8000.0, 50)
    warped = warp_bands(torch.ones(1, 50, 3), bands_hz, torch.tensor([12.0]))[0]
    assert warped[bands_hz < 1700].abs().max() == 0
    torch.testing.assert_close(warped[bands_hz > 2100], torch.ones(int((bands_hz > 2100).sum()), 3))


@given(st.floats(0.8, 1.25), st.integers(20, 80))
def test_an_events_length_is_divided_by_the_speed(speed, length):
    power = torch.zeros(1, 2, 200)
    power[:, :, 100 - length // 2 : 100 + length // 2] = 1.0
    warped = warp_frames(power, torch.tensor([speed]))
    # The sum is the length: linear interpolation may blur the two edges by a frame.
    assert warped[0, 0].sum().item() == pytest.approx(2 * (length // 2) / speed, abs=1.5)


def test_speed_acts_about_the_middle():
    power = torch.zeros(1, 1, 101)
    power[0, 0, 30] = power[0, 0, 50] = 1.0
    warped = warp_frames(power, torch.tensor([0.8]))[0, 0]
    assert warped[40:].argmax() == 10
    assert warped[:40].argmax() == 25  # 20 frames before the middle become 25


def test_speed_1_changes_nothing_and_the_ends_come_from_the_other_end():
    power = torch.rand(2, 3, 50, generator=generator())
    torch.testing.assert_close(warp_frames(power, torch.ones(2)), power)
    faster = warp_frames(torch.ones(1, 3, 50), torch.tensor([1.25]))
    torch.testing.assert_close(faster, torch.ones(1, 3, 50))


@given(st.integers(0, 10), st.floats(0, 1, exclude_max=True, width=32), st.sampled_from([1, 2]))
def test_a_mask_is_as_wide_as_asked_and_lies_within(width, start, axis):
    features = torch.randn(1, 12, 17, generator=generator()) + 5
    masked = mask(features, axis, torch.tensor([start]), torch.tensor([float(width)]))
    changed = (masked != features).any(dim=3 - axis)[0]
    assert changed.sum() == width
    places = changed.nonzero().flatten()
    assert width == 0 or places[-1] - places[0] == width - 1
    if width:
        torch.testing.assert_close(masked.select(axis, places[0]), features.mean().expand(1, features.shape[3 - axis]))


def test_masks_begin_anywhere_they_fit():
    features = torch.randn(4, 8, 6, generator=generator())
    start = torch.tensor([0.0, 0.34, 0.67, 0.999])
    masked = mask(features, 2, start, torch.full((4,), 4.0))
    firsts = [(m != f).any(dim=0).nonzero()[0].item() for m, f in zip(masked, features, strict=True)]
    assert firsts == [0, 1, 2, 2]
