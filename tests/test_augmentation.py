"""What is drawn for each clip, and what comes of it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kenya_birds.errors import UserError
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.augmentation import DRAWS, Augmentation, AugmentationArguments

EXTRACTOR = KenyaBirdsFeatureExtractor(
    noise_reduction="none", sampling_rate=8000, clip_s=1.0, n_fft=512, hop_length=128, f_max_hz=4000.0, n_mels=64
)
ALWAYS = dict.fromkeys(
    (field.name for field in dataclasses.fields(AugmentationArguments) if field.name.endswith("_probability")), 1.0
)


def augmentation(background=None, **changes):
    return Augmentation(
        dataclasses.replace(AugmentationArguments.none(), **changes),
        EXTRACTOR,
        torch.Generator().manual_seed(0),
        background,
    )


def chance(clips, seed=0):
    return np.random.default_rng(seed).random((clips, len(DRAWS)))


def waveforms(clips, seed=0):
    return 0.3 * torch.randn(clips, EXTRACTOR.clip_samples, generator=torch.Generator().manual_seed(seed))


def test_at_probability_0_nothing_changes():
    nothing = augmentation()
    amounts = nothing.amounts(chance(6))
    assert amounts == {}
    sound = waveforms(6)
    assert torch.equal(nothing(sound, amounts), EXTRACTOR.to_level(EXTRACTOR.band_power(sound)))


def test_added_noise_is_reduced_where_the_spectrogram_is_cleaned():
    args = dataclasses.replace(AugmentationArguments.none(), noise_probability=1.0)
    call = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)[None].clone()
    call[:, 1600:] = 0
    floor_db = {}
    for noise_reduction in ("none", "spectrogram"):
        extractor = KenyaBirdsFeatureExtractor(
            **{**EXTRACTOR.to_dict(), "noise_reduction": noise_reduction, "do_standardize": False, "high_pass_hz": 0.0}
        )
        noisy = Augmentation(args, extractor, torch.Generator().manual_seed(0))
        floor_db[noise_reduction] = noisy(call, noisy.amounts(chance(1)))[0, :, 30:].median()
    assert float(floor_db["spectrogram"] - floor_db["none"]) < -12


@pytest.mark.parametrize("name", ["shift", "pitch", "speed", "gain", "noise", "background", "mixup"])
def test_a_change_happens_as_often_as_asked(name):
    amounts = augmentation(**{f"{name}_probability": 0.3}).amounts(chance(10_000))
    happened = {
        "shift": lambda: amounts["shift"] != 0,
        "pitch": lambda: amounts["pitch_semitones"] != 0,
        "speed": lambda: amounts["speed"] != 1,
        "gain": lambda: amounts["gain_db"] != 0,
        "noise": lambda: amounts["noise_snr_db"].isfinite(),
        "background": lambda: amounts["background_snr_db"].isfinite(),
        "mixup": lambda: amounts["mixup"] != 0,
    }[name]()
    assert happened.sum() == pytest.approx(3000, rel=0.06)


def test_amounts_fill_their_range_evenly():
    amounts = augmentation(**ALWAYS).amounts(chance(20_000))
    ranges = {
        "shift": (-0.3, 0.3),
        "pitch_semitones": (-4, 4),
        "gain_db": (-12, 12),
        "noise_snr_db": (5, 35),
        "background_snr_db": (5, 35),
    }
    for name, (least, most) in ranges.items():
        histogram = np.histogram(amounts[name], bins=10, range=(least, most))[0]
        assert histogram.sum() == 20_000, name
        np.testing.assert_allclose(histogram, 2000, rtol=0.1)
    octaves = amounts["speed"].log() / math.log(1.25)
    np.testing.assert_allclose(np.histogram(octaves, bins=10, range=(-1, 1))[0], 2000, rtol=0.1)
    widths = np.bincount(amounts["band_mask"].int())
    assert len(widths) == 11
    np.testing.assert_allclose(widths, 20_000 / 11, rtol=0.12)


def test_the_share_of_a_mix_is_beta_distributed():
    share = augmentation(mixup_probability=1.0, mixup_alpha=0.4).amounts(chance(50_000))["mixup"].double()
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.02)


def test_each_amount_has_a_random_number_of_its_own():
    amounts = augmentation(**ALWAYS).amounts(chance(4000))
    columns = [value.double() for name, value in amounts.items() if name not in ("warped", "mixed")]
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns))
    assert correlation.abs().max() < 0.08


@pytest.mark.parametrize("number", [0.0, np.nextafter(1, 0)])
def test_the_least_and_the_greatest_random_numbers_stay_in_range(number):
    every = augmentation(background=(1000 * waveforms(5, seed=9)).short(), **ALWAYS)
    amounts = every.amounts(np.full((2, len(DRAWS)), number))
    assert every(waveforms(2), amounts).isfinite().all()
    for name in ("noise_start", "background_window", "band_mask_start", "frame_mask_start"):
        assert (amounts[name] < 1).all(), name


def test_noise_without_a_band_is_refused():
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none", high_pass_hz=9000.0, f_max_hz=8000.0)
    with pytest.raises(UserError, match="9000 to 8000 Hz"):
        Augmentation(AugmentationArguments(), extractor, torch.Generator())


class Waits(TorchDispatchMode):
    """Notes the operations for whose result the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "aten.equal")):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_the_host_never_waits_for_the_device():
    every = augmentation(background=(1000 * waveforms(5, seed=9)).short(), **ALWAYS)
    sound, amounts = waveforms(4), every.amounts(chance(4))
    every(sound, amounts)  # makes the mel filters
    with Waits() as waits:
        every(sound, amounts)
    assert waits.found == []


@settings(max_examples=15)
@given(st.integers(1, 7), st.integers(0, 100))
def test_a_clips_features_do_not_depend_on_its_batch(split, seed):
    every = augmentation(background=(1000 * waveforms(5, seed=9)).short(), **ALWAYS)
    sound, numbers = waveforms(8, seed), chance(8, seed)
    together = every(sound, every.amounts(numbers))
    apart = torch.cat(
        [every(sound[part], every.amounts(numbers[part])) for part in (slice(0, split), slice(split, 8))]
    )
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_a_gain_is_in_db():
    sound = waveforms(3)
    louder = augmentation(gain_probability=1.0)
    gains_db = torch.tensor([-12.0, 0.0, 6.0])
    power = EXTRACTOR.band_power(louder._change(sound, {"gain_db": gains_db})) / EXTRACTOR.band_power(sound)
    torch.testing.assert_close(10 * power.mean(dim=(1, 2)).log10(), gains_db, atol=1e-3, rtol=0)


def test_noise_and_background_are_added_at_the_drawn_ratio():
    sound = waveforms(16)
    for name, background in (("noise", None), ("background", (1000 * waveforms(3, seed=5)).short())):
        noisy = augmentation(background=background, **{f"{name}_probability": 1.0})
        amounts = noisy.amounts(chance(16))
        added = noisy._change(sound, amounts) - sound
        ratio_db = 10 * torch.log10(sound.square().mean(dim=1) / added.square().mean(dim=1))
        torch.testing.assert_close(ratio_db, amounts[f"{name}_snr_db"], atol=0.01, rtol=0)


def test_pink_and_brown_noise_are_as_likely():
    slopes = augmentation(noise_probability=1.0).amounts(chance(4000))["noise_slope"]
    assert torch.bincount(slopes).tolist() == [pytest.approx(2000, rel=0.07)] * 2


def test_the_same_seed_gives_the_same_features():
    features = []
    for _ in range(2):
        every = augmentation(background=(1000 * waveforms(5, seed=9)).short(), **ALWAYS)
        features.append(every(waveforms(4), every.amounts(chance(4))))
    assert torch.equal(*features)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_probability", 1.2),
        ("shift_max", 0.7),
        ("speed_max", 0.8),
        ("mixup_alpha", 0),
        ("mask_max_bins", -1),
        ("snr_min_db", 40.0),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name}.*{value}"):
        AugmentationArguments(**{name: value})
