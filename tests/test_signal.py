"""The signal functions against physics, librosa and noisereduce."""

import noisereduce
import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st
from noisereduce.torchgate import TorchGate
from plain_librosa import librosa

from kenya_birds.model.noise_reduction_kenya_birds import gate_bands, reduce_noise
from kenya_birds.model.signal_kenya_birds import (
    fast_fft_length,
    hann_window,
    high_pass,
    hz_to_mel,
    istft,
    mel_band_frequencies_hz,
    mel_filter_bank,
    mel_spectrogram,
    mel_to_hz,
    pad_middle,
    peak_normalize,
    power_spectrogram,
    power_to_db,
    pre_emphasize,
    reassigned_spectrogram,
    standardize,
    stft,
)

RATE = 32_000
DEFAULT = {
    "sampling_rate": RATE,
    "n_fft": 2048,
    "hop_length": 512,
    "n_mels": 128,
    "f_min_hz": 150.0,
    "f_max_hz": 15_000.0,
}
SEED = {**DEFAULT, "sampling_rate": 22_050, "f_min_hz": 280.0, "f_max_hz": 7600.0}
CPU = torch.device("cpu")


def tone(hz, seconds=1.0, rate=RATE):
    return torch.sin(2 * torch.pi * hz * torch.arange(round(seconds * rate), dtype=torch.float64) / rate).float()[None]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def impulse(at, samples=RATE):
    waveform = torch.zeros(1, samples)
    waveform[0, at] = 1.0
    return waveform


def chirp(low_hz, high_hz, seconds=1.0):
    time_s = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    rate_hz_s = (high_hz - low_hz) / seconds
    return torch.sin(2 * torch.pi * (low_hz * time_s + rate_hz_s * time_s.square() / 2)).float()[None]


def level_db(waveform):
    """Of the middle half, away from what a filter does at the ends."""
    quarter = waveform.shape[-1] // 4
    return 10 * float(waveform[..., quarter:-quarter].square().mean().log10())


# Mel bands and Fourier bins


@pytest.mark.parametrize("settings", [DEFAULT, SEED], ids=["default", "seed"])
def test_mel_filters_are_those_of_librosa(settings):
    args = [settings[key] for key in ("sampling_rate", "n_fft", "n_mels", "f_min_hz", "f_max_hz")]
    rate, n_fft, n_mels, f_min, f_max = args
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max)
    found = mel_filter_bank(*args, CPU).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5 * expected.max())


@pytest.mark.parametrize(
    "args", [(32_000, 2048, 128, 150.0, 15_000.0), (22_050, 512, 64, 0.0, 11_025.0), (48_000, 1024, 229, 999.9, 3e3)]
)
def test_filters_are_bit_for_bit_those_that_earlier_models_were_trained_with(args):
    functional = pytest.importorskip("torchaudio.functional")
    rate, n_fft, n_mels, f_min, f_max = args
    settings = {"norm": "slaney", "mel_scale": "slaney"}
    expected = functional.melscale_fbanks(1 + n_fft // 2, f_min, f_max, n_mels, rate, **settings).T
    assert torch.equal(mel_filter_bank(*args, CPU), expected)
    expected = functional.melscale_fbanks(1 + n_fft // 2, f_min, f_max, n_mels, rate, norm=None, mel_scale="htk").T
    torch.testing.assert_close(mel_filter_bank(*args, CPU, "htk"), expected, rtol=0, atol=2e-3)
    assert torch.equal(pre_emphasize(noise(2, 100), 0.97), functional.preemphasis(noise(2, 100), 0.97))


@pytest.mark.parametrize("settings", [DEFAULT, SEED], ids=["default", "seed"])
def test_log_mel_is_that_of_librosa(settings):
    waveform = 0.1 * noise(1, 40_000)
    waveform[:, 10_000:20_000] += tone(3000)[:, :10_000]
    waveform[:, 30_000:] = 0
    n_fft, hop_length = settings["n_fft"], settings["hop_length"]
    filters = librosa.filters.mel(
        sr=settings["sampling_rate"],
        n_fft=n_fft,
        n_mels=settings["n_mels"],
        fmin=settings["f_min_hz"],
        fmax=settings["f_max_hz"],
    )
    spectrum = librosa.stft(waveform[0].numpy(), n_fft=n_fft, hop_length=hop_length, pad_mode="constant")
    expected = librosa.power_to_db(filters @ np.abs(spectrum) ** 2, top_db=80)
    found = power_to_db(mel_spectrogram(waveform, **settings), top_db=80)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_mel_scale_is_slaneys_or_htks():
    frequency_hz = torch.tensor([0.0, 20, 999, 1000, 1001, 4000, 15_000])
    np.testing.assert_allclose(hz_to_mel(frequency_hz), librosa.hz_to_mel(frequency_hz.numpy()), rtol=1e-5)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(frequency_hz)), frequency_hz, rtol=1e-4, atol=1e-2)
    htk = hz_to_mel(frequency_hz, "htk")
    np.testing.assert_allclose(htk, librosa.hz_to_mel(frequency_hz.numpy(), htk=True), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(mel_to_hz(htk, "htk"), frequency_hz, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("hz", [300, 1000, 2500, 6000, 12_000])
def test_a_tone_is_loudest_in_the_mel_band_around_it(hz):
    centers_hz = librosa.mel_frequencies(n_mels=130, fmin=150, fmax=15_000)[1:-1]
    band = int(mel_spectrogram(tone(hz), **DEFAULT)[0].mean(dim=1).argmax())
    # Bands are weighed by area: between two centres the lower, narrower one wins a little early.
    assert abs(centers_hz[band] - hz) <= 0.55 * np.diff(centers_hz)[band - 1 : band + 1].max()


@pytest.mark.parametrize("bin_index", [20, 64, 333, 800])
def test_a_tone_on_a_bin_has_a_quarter_of_the_windows_squared_sum(bin_index):
    power = power_spectrogram(tone(bin_index * RATE / 2048), 2048, 512)[0, :, 20]
    assert int(power.argmax()) == bin_index
    # The Hann window's sum is half of its length.
    assert float(power[bin_index]) == pytest.approx((2048 / 2 / 2) ** 2, rel=1e-4)


def test_white_noise_has_the_power_of_its_variance_times_the_windows_energy():
    power = power_spectrogram(0.1 * noise(1, 5 * RATE), 2048, 512)
    assert float(power[:, 10:-10, 5:-5].mean()) == pytest.approx(0.01 * 2048 * 3 / 8, rel=0.02)


# High-pass


@pytest.mark.parametrize("order", [2, 4])
def test_high_pass_falls_by_6_db_per_order_and_octave(order):
    drop_db = level_db(high_pass(tone(500), RATE, 1000, order)) - level_db(tone(500))
    assert drop_db == pytest.approx(-6.02 * order, abs=0.3)


def test_high_pass_is_3_db_down_at_its_cutoff():
    assert level_db(high_pass(tone(1000), RATE, 1000)) - level_db(tone(1000)) == pytest.approx(-3.01, abs=0.02)


@pytest.mark.parametrize("hz", [3000, 8000, 15_000])
def test_high_pass_leaves_the_passband_alone_in_level_and_phase(hz):
    middle = slice(RATE // 4, -RATE // 4)
    torch.testing.assert_close(
        high_pass(tone(hz), RATE, 1000)[:, middle], tone(hz)[:, middle], rtol=0, atol=2e-3 if hz == 3000 else 1e-4
    )


def test_high_pass_removes_a_constant():
    assert level_db(high_pass(torch.full((1, RATE), 0.5), RATE, 150)) < -80


@pytest.mark.parametrize("cutoff_hz", [50.0, 150.0, 2000.0])
def test_one_end_of_the_clip_does_not_reach_into_the_other(cutoff_hz):
    end = high_pass(impulse(RATE - 1), RATE, cutoff_hz)
    start = high_pass(impulse(0), RATE, cutoff_hz)
    limit = 1e-3 * float(end.abs().max())  # -60 dB
    assert float(end[:, : RATE // 2].abs().max()) < limit
    assert float(start[:, RATE // 2 :].abs().max()) < limit


# Noise reduction


def call_in_noise(samples=3 * RATE // 2):
    """A call of 0.2 s in white noise."""
    waveform = 0.05 * noise(1, samples)
    waveform[:, 12_000:18_400] += 0.3 * tone(3000, 0.2)
    return waveform


@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize(("rate", "samples"), [(32_000, 32_000), (22_050, 22_050), (5120, 9000), (256_000, 30_000)])
def test_reduced_noise_is_that_of_torch_gate(stationary, rate, samples):
    waveform = torch.stack([call_in_noise()[0, -samples:], 0.1 * noise(samples, seed=1)])
    expected = TorchGate(sr=rate, nonstationary=not stationary, prop_decrease=0.7)(waveform)
    found = reduce_noise(waveform, rate, stationary, prop_decrease=0.7)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=0, atol=1e-6)


def test_reduced_noise_is_close_to_noisereduce_with_torch():
    waveform = call_in_noise()
    expected = noisereduce.reduce_noise(
        y=waveform[0].numpy(), sr=RATE, stationary=True, prop_decrease=0.9, use_torch=True, device="cpu"
    )
    found = reduce_noise(waveform, RATE)[0].numpy()
    # It pads the clip with silence, which moves the thresholds.
    assert np.corrcoef(found, expected)[0, 1] > 0.99


@pytest.mark.parametrize(("stationary", "gain_db"), [(True, 10), (False, 1)])
def test_noise_reduction_raises_the_ratio_of_a_call_to_white_noise(stationary, gain_db):
    noisy = call_in_noise()
    clean = reduce_noise(noisy, RATE, stationary)
    inside = torch.zeros_like(noisy, dtype=torch.bool)
    inside[:, 12_000:18_400] = True

    def ratio_db(waveform):
        return 10 * float((waveform[inside].square().mean() / waveform[~inside].square().mean()).log10())

    assert ratio_db(clean) > ratio_db(noisy) + gain_db


def test_prop_decrease_is_how_much_of_the_noise_goes():
    waveform = 0.1 * noise(1, RATE)
    levels = [level_db(reduce_noise(waveform, RATE, prop_decrease=share)) for share in (0.0, 0.5, 0.9)]
    assert levels[0] == pytest.approx(level_db(waveform), abs=0.3)
    assert levels[0] > levels[1] + 4 > levels[2] + 8


@pytest.mark.parametrize("stationary", [True, False])
def test_noise_reduction_keeps_silence_and_is_finite_beside_it(stationary):
    waveform = torch.zeros(2, 3 * RATE)
    waveform[1, 30_000:60_000] = 0.1 * noise(30_000)
    reduced = reduce_noise(waveform, RATE, stationary)
    assert not reduced[0].any()
    assert reduced.isfinite().all()
    assert float(reduced[1, 30_000:60_000].abs().max()) > 0.005
    assert float(reduced[1, :25_000].abs().max()) == 0


@pytest.mark.parametrize("samples", [4096, 96_000, 5001])
def test_the_inverse_transform_is_torchs_and_gives_the_waveform_back(samples):
    waveform, window = noise(3, samples), hann_window(1024, CPU)
    spectrum = stft(waveform, window, 256)
    found = istft(spectrum.transpose(1, 2), window, 256, samples)
    torch.testing.assert_close(found, torch.istft(spectrum, 1024, 256, window=window, length=samples))
    torch.testing.assert_close(found, waveform, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stationary", [True, False])
def test_noise_reduction_keeps_the_last_samples(stationary):
    # 66,150 is 258 hops and 102 samples.
    waveform = tone(3000, 66_150 / RATE)
    reduced = reduce_noise(waveform, 22_050, stationary)
    assert reduced.shape == waveform.shape
    assert float(reduced[:, -102:].abs().max()) > 0.05


# Noise reduction of bands

BANDS_HZ = mel_band_frequencies_hz(128, 150.0, 15_000.0)
FRAME_S = 512 / RATE


def gate_db(power, prop_decrease=0.9):
    """What the gate changes in each cell, in dB."""
    return 10 * (gate_bands(power, BANDS_HZ, FRAME_S, prop_decrease) / power).log10()


def test_a_single_loud_frame_passes_the_gate_of_its_band_and_opens_it_for_50_ms_and_250_hz():
    power = torch.ones(1, 128, 188)
    power[0, 60, 100] = 1e4
    changed_db = gate_db(power)[0]
    # One cell is open. Weights over time: 1 - 16 / 50 and so on, and their sum.
    of_frames = np.maximum(1 - np.abs(np.arange(-4, 5)) * 16 / 50, 0)
    bands_hz = np.array(BANDS_HZ)
    of_bands = np.maximum(1 - np.abs(bands_hz[:, None] - bands_hz) / 250, 0)
    mask = np.outer(of_bands[:, 60] / of_bands.sum(axis=1), of_frames / of_frames.sum())
    np.testing.assert_allclose(changed_db[:, 96:105], 20 * np.log10(0.1 + 0.9 * mask), atol=0.01)
    assert changed_db[:, :96].numpy() == pytest.approx(-20, abs=0.01)


@pytest.mark.parametrize("prop_decrease", [0.0, 0.5, 0.9, 0.99])
def test_the_floor_of_noise_drops_by_prop_decrease(prop_decrease):
    changed_db = gate_db(mel_spectrogram(0.1 * noise(2, 3 * RATE), **DEFAULT), prop_decrease)
    assert float(changed_db.min()) == pytest.approx(20 * np.log10(1 - prop_decrease), abs=0.01)
    # Most cells are far from the few that are loud by chance.
    assert float(changed_db.median()) < 0.6 * 20 * np.log10(1 - prop_decrease) + 0.01
    assert float(changed_db.max()) <= 1e-4


def test_a_tone_in_noise_keeps_its_level_in_the_gate_of_bands():
    power = mel_spectrogram(call_in_noise(3 * RATE), **DEFAULT)
    band = int(np.abs(np.array(BANDS_HZ) - 3000).argmin())
    changed_db = gate_db(power)[0, band]
    # The call is at 0.375 to 0.575 s, in frames 24 to 35.
    assert float(changed_db[28:32].min()) > -2.5
    assert float(changed_db[60:].median()) < -15


def test_the_gate_of_bands_does_not_depend_on_the_level_and_keeps_silence():
    power = mel_spectrogram(call_in_noise(3 * RATE), **DEFAULT)
    gated = gate_bands(power, BANDS_HZ, FRAME_S)
    torch.testing.assert_close(gate_bands(power * 1e-12, BANDS_HZ, FRAME_S), gated * 1e-12, rtol=1e-3, atol=0)
    assert not gate_bands(torch.zeros(1, 128, 188), BANDS_HZ, FRAME_S).any()
    beside = torch.cat([torch.zeros_like(power), power])
    beside[1, :, 94:] = 0
    found = gate_bands(beside, BANDS_HZ, FRAME_S)
    assert found.isfinite().all()
    assert not found[0].any()
    assert not found[1, :, 94:].any()
    torch.testing.assert_close(gate_bands(torch.cat([power, beside]), BANDS_HZ, FRAME_S)[:1], gated)


# Reassigned spectrogram


@pytest.mark.parametrize("hz", [700, 3000, 9000])
def test_reassignment_gathers_a_tone_in_one_band(hz):
    power = reassigned_spectrogram(tone(hz), **DEFAULT)[0]
    share = power.sum(dim=1) / power.sum()
    low, high = librosa.hz_to_mel(150), librosa.hz_to_mel(15_000)
    band = int((librosa.hz_to_mel(hz) - low) / (high - low) * 128)
    assert int(share.argmax()) == band
    assert float(share[band]) > 0.99


def test_reassignment_gathers_an_impulse_in_one_frame():
    power = reassigned_spectrogram(impulse(16_050), **DEFAULT)[0]  # 31.35 hops
    share = power.sum(dim=0) / power.sum()
    assert int(share.argmax()) == 31
    assert float(share[31]) > 0.9999
    # The mel spectrogram spreads it over the window's four hops.
    spread = mel_spectrogram(impulse(16_050), **DEFAULT)[0].sum(dim=0)
    assert float(spread.max() / spread.sum()) < 0.6


def test_reassignment_sharpens_a_chirp():
    def cells_per_frame(power):
        power = power[0, :, 5:-5]
        return float(power.sum() ** 2 / power.square().sum() / power.shape[1])

    waveform = chirp(1000, 9000)
    sharp = cells_per_frame(reassigned_spectrogram(waveform, **DEFAULT))
    blurred = cells_per_frame(mel_spectrogram(waveform, **DEFAULT))
    assert sharp < 0.6 * blurred


@pytest.mark.parametrize("settings", [DEFAULT, SEED], ids=["default", "seed"])
def test_reassigned_power_lies_where_librosa_puts_it(settings):
    waveform = chirp(1000, 6000) + 0.01 * noise(1, RATE)
    n_fft, hop, n_mels = settings["n_fft"], settings["hop_length"], settings["n_mels"]
    rate = settings["sampling_rate"]
    frequency_hz, time_s, magnitude = librosa.reassigned_spectrogram(
        waveform[0].numpy(), sr=rate, n_fft=n_fft, hop_length=hop, pad_mode="constant", clip=False
    )
    frame = np.round(time_s * rate / hop)
    low, high = librosa.hz_to_mel(settings["f_min_hz"]), librosa.hz_to_mel(settings["f_max_hz"])
    band = np.floor((librosa.hz_to_mel(np.maximum(frequency_hz, 0)) - low) / (high - low) * n_mels)
    frames = magnitude.shape[1]
    inside = (band >= 0) & (band < n_mels) & (frame >= 0) & (frame < frames) & np.isfinite(time_s + frequency_hz)
    expected = np.zeros((n_mels, frames))
    np.add.at(expected, (band[inside].astype(int), frame[inside].astype(int)), magnitude[inside] ** 2)

    found = reassigned_spectrogram(waveform, **settings)[0].numpy()
    assert found.shape == expected.shape
    # A few bins lie within rounding of a cell's edge, and fall to its other side.
    assert np.abs(found - expected).sum() < 0.01 * expected.sum()


def test_reassignment_keeps_the_energy_of_what_lies_within_the_bands():
    waveform = torch.nn.functional.pad(0.1 * noise(1, RATE - 8192), (4096, 4096))
    total = float(power_spectrogram(waveform, 2048, 512).sum())
    everything = reassigned_spectrogram(waveform, **{**DEFAULT, "f_min_hz": 0.0, "f_max_hz": 16_000.0})
    assert float(everything.sum()) == pytest.approx(total, rel=0.002)
    # Noise is flat, so half of the range holds half of the energy.
    half = reassigned_spectrogram(waveform, **{**DEFAULT, "f_min_hz": 4000.0, "f_max_hz": 12_000.0})
    assert float(half.sum()) == pytest.approx(total / 2, rel=0.03)


def test_reassigned_silence_is_zero():
    assert not reassigned_spectrogram(torch.zeros(1, RATE), **DEFAULT).any()


# Levels


def test_peaks_become_1_whatever_the_gain():
    waveform = noise(3, 4000) * torch.tensor([[1e-3], [0.2], [40.0]])
    normalized = peak_normalize(waveform, 1e-4)
    torch.testing.assert_close(normalized.abs().amax(dim=1), torch.ones(3))
    torch.testing.assert_close(peak_normalize(7 * waveform, 1e-4), normalized)


def test_silence_is_not_brought_up_to_full_scale():
    assert not peak_normalize(torch.zeros(1, 100), 1e-10).any()
    torch.testing.assert_close(peak_normalize(torch.full((1, 100), 1e-6), 1e-4), torch.full((1, 100), 0.01))


@given(st.integers(1, 50), st.integers(1, 200))
def test_clips_are_padded_as_numpy_does(length, samples):
    clips = noise(2, length)
    missing = max(samples - length, 0)
    for mode in ("constant", "symmetric"):
        expected = np.pad(clips.numpy(), ((0, 0), (missing // 2, missing - missing // 2)), mode=mode)
        np.testing.assert_array_equal(pad_middle(clips, samples, mode).numpy(), expected)


def test_decibels_reach_from_each_clips_maximum_to_top_db_below():
    power = torch.stack([torch.logspace(-12, 2, 60).view(6, 10), torch.logspace(-6, -4, 60).view(6, 10)])
    level = power_to_db(power, top_db=80)
    torch.testing.assert_close(level.amax(dim=(1, 2)), torch.tensor([20.0, -40.0]))
    torch.testing.assert_close(level.amin(dim=(1, 2)), torch.tensor([-60.0, -60.0]))
    assert float(power_to_db(torch.full((1, 1, 1), 0.1), top_db=80)) == pytest.approx(-10)


def test_silence_is_minus_100_db():
    assert (power_to_db(torch.zeros(1, 4, 4), top_db=80) == -100).all()


def test_standardised_clips_have_mean_0_and_standard_deviation_1():
    features = noise(4, 16, 20) * torch.tensor([0.1, 1, 10, 100]).view(4, 1, 1) - 40
    result = standardize(features)
    torch.testing.assert_close(result.mean(dim=(1, 2)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.std(dim=(1, 2), correction=0), torch.ones(4), rtol=0, atol=1e-4)


def test_a_constant_clip_becomes_zeros():
    assert not standardize(torch.full((1, 8, 8), -100.0)).any()
    # Rounding errors are not brought up to a standard deviation of 1.
    assert float(standardize(-33.3 + 1e-5 * noise(1, 8, 8)).abs().max()) < 0.1


# Batches


@pytest.mark.parametrize(
    "function",
    [
        lambda waveform: reduce_noise(waveform, RATE),
        lambda waveform: reduce_noise(waveform, RATE, stationary=False),
        lambda waveform: high_pass(waveform, RATE, 150.0),
        lambda waveform: peak_normalize(waveform, 1e-4),
        lambda waveform: power_spectrogram(waveform, 2048, 512),
        lambda waveform: mel_spectrogram(waveform, **DEFAULT),
        lambda waveform: reassigned_spectrogram(waveform, **DEFAULT),
        lambda waveform: power_to_db(mel_spectrogram(waveform, **DEFAULT), 80),
        lambda waveform: standardize(mel_spectrogram(waveform, **DEFAULT)),
    ],
    ids=["gate", "moving-gate", "high-pass", "peak", "power", "mel", "reassigned", "db", "standardize"],
)
def test_a_batch_gives_what_its_clips_give_one_by_one(function):
    clips = torch.cat([0.1 * noise(1, RATE), torch.zeros(1, RATE), 0.5 * chirp(1000, 5000), 1e-3 * tone(440)])
    together = function(clips)
    one_by_one = torch.cat([function(clip[None]) for clip in clips])
    difference = (together - one_by_one).abs().flatten(1).sum(dim=1)
    assert (difference <= 1e-4 * one_by_one.abs().flatten(1).sum(dim=1)).all()


# Lengths


@given(st.integers(min_value=1, max_value=200_000))
def test_fast_length_is_the_next_one_without_large_prime_factors(samples):
    assert fast_fft_length(samples) == scipy.fft.next_fast_len(samples, real=True)
