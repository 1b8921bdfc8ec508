"""The feature extractor: what it takes, what it refuses, what it returns, and that it survives a trip through JSON."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from kenya_birds.model import noise_reduction_kenya_birds as noise
from kenya_birds.model import signal_kenya_birds as signal
from kenya_birds.model.feature_extraction_kenya_birds import (
    FEATURE_TYPES,
    NOISE_REDUCTIONS,
    KenyaBirdsFeatureExtractor,
)
from kenya_birds.model.noise_reduction_kenya_birds import reduce_noise
from kenya_birds.model.signal_kenya_birds import high_pass

RATE = 32_000
SEED_FIELDS = {
    "sampling_rate": 22_050,
    "f_min_hz": 280.0,
    "f_max_hz": 7600.0,
    "pre_emphasis": 0.97,
    "high_pass_hz": 0.0,
}


def song(samples=3 * RATE, rate=RATE):
    """A rising call in noise: the same samples on every machine."""
    time_s = np.arange(samples) / rate
    generator = np.random.Generator(np.random.PCG64(7))
    call = np.sin(2 * np.pi * (2000 + 1000 * time_s) * time_s) * (np.sin(2 * np.pi * 2 * time_s) > 0)
    return (0.3 * call + 0.02 * generator.standard_normal(samples)).astype(np.float32)


def features(waveform, extractor=None, **kwargs):
    extractor = extractor or KenyaBirdsFeatureExtractor()
    kwargs = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt", **kwargs}
    return extractor(waveform, **kwargs)["input_features"]


def same(first, second):
    torch.testing.assert_close(torch.as_tensor(first), torch.as_tensor(second), rtol=0, atol=1e-3)


def messages_of(function):
    """What the feature extractor logs."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(KenyaBirdsFeatureExtractor.__module__)
    logger.addHandler(handler)
    try:
        function()
    finally:
        logger.removeHandler(handler)
    return messages


@pytest.fixture(scope="module")
def waveform():
    return song()


@pytest.fixture(scope="module")
def expected(waveform):
    return features(waveform)


# What comes out


def test_three_seconds_are_128_bands_and_188_frames_standardised(expected):
    assert expected.shape == (1, 128, 188)
    assert expected.dtype == torch.float32
    assert float(expected.mean()) == pytest.approx(0, abs=1e-4)
    assert float(expected.std()) == pytest.approx(1, abs=1e-3)


def test_the_numbers_have_not_changed(expected):
    found = expected[0, 20:100:20, 20:180:40]
    known = torch.tensor(
        [
            [0.298, -0.320, -0.519, -0.571],
            [-0.025, 0.007, 0.149, -1.095],
            [-0.115, 0.147, -0.138, -0.682],
            [0.113, 0.558, 0.711, -0.246],
        ]
    )
    torch.testing.assert_close(found, known, rtol=0, atol=5e-3)


def test_the_same_waveform_gives_the_same_numbers(waveform, expected):
    assert torch.equal(features(waveform), expected)


@pytest.mark.parametrize(("feature_type", "bands"), [("mel", 64), ("stft", 951), ("reassigned", 64)])
def test_bands_follow_the_feature_type(waveform, feature_type, bands):
    extractor = KenyaBirdsFeatureExtractor(feature_type=feature_type, n_mels=64, noise_reduction="none")
    assert features(waveform, extractor).shape == (1, bands, 188)


def test_stft_features_are_the_bins_from_f_min_to_f_max():
    # Bins are 15.625 Hz apart.
    extractor = KenyaBirdsFeatureExtractor(feature_type="stft", f_min_hz=1000, f_max_hz=2000, noise_reduction="none")
    tone = np.sin(2 * np.pi * 1500 * np.arange(3 * RATE) / RATE)
    found = features(tone, extractor)
    assert found.shape[1] == 65
    assert int(found[0].mean(dim=1).argmax()) == 32


def test_return_tensors_chooses_torch_numpy_or_a_list(waveform, expected):
    as_numpy = features(waveform, return_tensors="np")
    assert isinstance(as_numpy, np.ndarray)
    same(as_numpy, expected)
    as_list = features(waveform, return_tensors=None)
    assert isinstance(as_list, list)
    same(as_list[0], expected[0])


@pytest.mark.parametrize("top_db", [20.0, 50.0])
def test_without_standardisation_features_are_decibels(waveform, top_db):
    found = features(waveform, KenyaBirdsFeatureExtractor(do_standardize=False, top_db=top_db))
    assert float(found.max() - found.min()) == pytest.approx(top_db, abs=1e-3)


def test_features_do_not_depend_on_the_gain(waveform, expected):
    same(features(0.1 * waveform), expected)


@pytest.fixture
def no_tables():
    """Tables are computed anew in a test, and again after it."""
    cached = [table for module in (signal, noise) for table in vars(module).values() if hasattr(table, "cache_clear")]
    assert len(cached) > 5
    yield lambda: [table.cache_clear() for table in cached]
    for table in cached:
        table.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        *({"feature_type": kind, "noise_reduction": "none"} for kind in FEATURE_TYPES),
        *({"noise_reduction": kind} for kind in NOISE_REDUCTIONS),
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_the_default_type_of_torch_does_not_reach_into_the_features(no_tables, settings, dtype):
    clips = 0.1 * torch.randn(1, 96_000, generator=torch.Generator().manual_seed(1))
    usual = torch.get_default_dtype()
    extractor = KenyaBirdsFeatureExtractor(**settings)
    no_tables()
    torch.set_default_dtype(dtype)
    try:
        found = extractor.extract(clips)
    finally:
        torch.set_default_dtype(usual)
    no_tables()
    assert found.dtype == torch.float32
    assert torch.equal(found, extractor.extract(clips))


def test_autocast_does_not_reach_into_the_features(waveform, expected):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(waveform), expected)


# What goes in


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda array: array.tolist(),
        lambda array: array.astype(np.float64),
        lambda array: array[None],
        lambda array: torch.from_numpy(array)[None],
        lambda array: [array],
        lambda array: (torch.from_numpy(array),),
        lambda array: [array.tolist()],
        lambda array: array.astype(">f4"),
        lambda array: array[::-1].copy()[::-1],
    ],
    ids=[
        "tensor",
        "list",
        "float64",
        "batch",
        "tensor-batch",
        "arrays",
        "tensors",
        "lists",
        "big-endian",
        "backwards",
    ],
)
def test_arrays_tensors_and_lists_give_the_same_numbers(waveform, expected, convert):
    same(features(convert(waveform)), expected)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_pass_without_a_warning_and_stay_as_they_are(waveform, expected):
    frozen = np.frombuffer(waveform.tobytes(), dtype=np.float32)
    same(features(frozen), expected)
    np.testing.assert_array_equal(frozen, waveform)


def test_a_batch_gives_what_its_clips_give(waveform):
    clips = [waveform, waveform[:50_000], np.zeros(1000, np.float32), np.tile(waveform, 2)]
    together = features(clips)
    assert together.shape == (4, 128, 188)
    for index, clip in enumerate(clips):
        same(together[index], features(clip)[0])


def test_int16_is_float_times_32768():
    samples = np.round(song() * 30_000).astype(np.int16)
    extractor = KenyaBirdsFeatureExtractor(do_peak_normalize=False, do_standardize=False)
    floats = features(samples / 32_768, extractor)
    same(features(samples, extractor), floats)
    same(features(torch.from_numpy(samples)[None], extractor), floats)
    # Next to floats, too.
    same(features([samples, samples.astype(np.float32) / 32_768], extractor), floats.expand(2, -1, -1))


def test_longer_input_is_cropped_to_its_middle(waveform, expected):
    same(features(np.concatenate([np.ones(5000), waveform, np.ones(5001)])), expected)
    stretched = np.concatenate([np.ones((2, 5000)), np.stack([waveform, waveform]), np.ones((2, 5001))], axis=1)
    same(features(stretched), expected.expand(2, -1, -1))


@pytest.mark.parametrize("samples", [40_000, 40_001])
@pytest.mark.parametrize("pad_mode", ["symmetric", "constant"])
def test_shorter_input_is_padded_on_both_sides_alike(waveform, samples, pad_mode):
    missing = 3 * RATE - samples
    padded = np.pad(waveform[:samples], (missing // 2, missing - missing // 2), mode=pad_mode)
    extractor = KenyaBirdsFeatureExtractor(pad_mode=pad_mode)
    assert torch.equal(features(waveform[:samples], extractor), features(padded, extractor))


def test_less_than_a_quarter_of_a_clip_is_warned_of(waveform):
    logging.Logger.warning_once.cache_clear()
    assert not messages_of(lambda: features(waveform[: 3 * RATE // 4]))
    (message,) = messages_of(lambda: features(waveform[: 3 * RATE // 4 - 1]))
    assert message.startswith("A waveform is shorter than 0.75 s")


def test_a_recording_in_place_of_a_clip_is_warned_of_once():
    logging.Logger.warning_once.cache_clear()
    assert not messages_of(lambda: features(song(6 * RATE)))
    assert not messages_of(lambda: features(np.stack([song(7 * RATE)])))  # training clips with context
    (message,) = messages_of(lambda: (features([song(), song(7 * RATE)]), features(song(8 * RATE))))
    assert message.startswith("A waveform is longer than 6 s, but the model scores clips of 3 s: only the middle")


def test_one_sample_is_enough():
    assert features(np.array([0.5])).isfinite().all()


def test_another_sampling_rate_is_refused(waveform):
    with pytest.raises(ValueError, match=r"32000 Hz.*sampling_rate=44100.*resample"):
        features(waveform, sampling_rate=44_100)


def test_no_sampling_rate_is_warned_of(waveform, expected):
    logging.Logger.warning_once.cache_clear()
    (message,) = messages_of(lambda: same(features(waveform, sampling_rate=None), expected))
    assert "sampling_rate" in message


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ([], "empty batch"),
        (np.zeros((0, 5000)), r"shape \(0, 5000\)"),
        (np.zeros(0), "waveform 0 .*not empty"),
        ([np.zeros(5000), np.zeros(0)], "waveform 1 .*not empty"),
        (np.array(1.0), r"shape \(\)"),
        ([np.zeros(5000), np.zeros((2, 5000))], r"waveform 1 .*shape \(2, 5000\).*mono"),
        (np.zeros((2, 2, 5000)), r"shape \(2, 2, 5000\).*mono"),
        (np.zeros((5000, 2)), r"shape \(5000, 2\).*mono"),
        ([np.zeros(5000), None], "waveform 1"),
        (np.zeros(5000, dtype=np.int32), "waveform 0 .*int32.*floats .*int16"),
        ([1, 2, 3], "int64.*floats"),
        (np.zeros(5000, dtype=bool), "bool"),
        (np.zeros(5000, dtype=complex), "complex"),
        ([np.zeros(5000), np.array([0.0, np.nan])], "waveform 1 .*NaN"),
        (np.stack([np.zeros(5000), np.full(5000, np.inf)]), "waveform 1 .*NaN"),
        (np.full(5000, 1e30), "waveform 0 .*beyond full scale"),
    ],
)
def test_what_is_no_waveform_is_refused_with_a_reason(raw, text):
    with pytest.raises(ValueError, match=text):
        features(raw)


# Silence


@pytest.mark.parametrize("noise_reduction", NOISE_REDUCTIONS)
@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_silence_becomes_zeros_and_sound_beside_it_stays_finite(feature_type, noise_reduction):
    extractor = KenyaBirdsFeatureExtractor(feature_type=feature_type, noise_reduction=noise_reduction)
    short = song()[:20_000]
    found = features([np.zeros(3 * RATE), short], extractor)
    assert not found[0].any()
    assert found[1].isfinite().all()
    assert float(found[1].std()) == pytest.approx(1, abs=1e-3)


# Level


@pytest.mark.parametrize("noise_reduction", NOISE_REDUCTIONS)
@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_features_do_not_depend_on_the_level_of_a_recording(waveform, feature_type, noise_reduction):
    extractor = KenyaBirdsFeatureExtractor(
        feature_type=feature_type, noise_reduction=noise_reduction, do_standardize=False
    )
    peaks_dbfs = np.array([0, -150, -110, -90, -76, -30, 12])
    clips = waveform / np.abs(waveform).max() * 10 ** (peaks_dbfs[:, None] / 20)
    level_db = features(clips.astype(np.float32), extractor)
    difference = (level_db - level_db[:1]).abs()
    # Rounding decides where the power of single cells is gathered.
    assert difference.max() < 0.05 if feature_type != "reassigned" else difference.mean() < 0.05


def test_without_peak_normalisation_standardised_features_depend_on_the_level_of_very_quiet_clips_alone(waveform):
    extractor = KenyaBirdsFeatureExtractor(do_peak_normalize=False)
    same(features(waveform / 100, extractor), features(waveform, extractor))
    assert (features(waveform / 1e4, extractor) - features(waveform, extractor)).abs().max() > 0.1


# The waveform stage


def test_the_waveform_stage_is_noise_reduction_then_high_pass_then_pre_emphasis_then_peak(waveform):
    clip = torch.from_numpy(waveform)[None]
    steps = high_pass(reduce_noise(clip, RATE, False, 0.5), RATE, 300.0)
    steps = torch.cat([steps[:, :1], steps[:, 1:] - 0.9 * steps[:, :-1]], dim=1)
    extractor = KenyaBirdsFeatureExtractor(
        noise_reduction="nonstationary", prop_decrease=0.5, high_pass_hz=300.0, pre_emphasis=0.9
    )
    torch.testing.assert_close(extractor.clean(clip), steps / steps.abs().max())


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_noise_reduction_of_the_spectrogram_leaves_the_waveform_and_includes_the_high_pass(waveform, feature_type):
    clip = torch.from_numpy(waveform)[None]
    fields = {"feature_type": feature_type, "f_min_hz": 100.0, "noise_reduction": "spectrogram"}
    extractor = KenyaBirdsFeatureExtractor(high_pass_hz=1000.0, prop_decrease=0.0, **fields)
    torch.testing.assert_close(extractor.clean(clip), clip / clip.abs().max())
    time_s = torch.arange(3 * RATE) / RATE
    tones = torch.stack([torch.sin(2 * torch.pi * hz * time_s) for hz in (500, 4000)])
    unfiltered = KenyaBirdsFeatureExtractor(high_pass_hz=0.0, prop_decrease=0.0, **fields)
    ratio = extractor.band_power(tones).amax(dim=(1, 2)) / unfiltered.band_power(tones).amax(dim=(1, 2))
    # One octave below the cutoff of a filter of order 4, and far above it.
    np.testing.assert_allclose(10 * ratio.log10(), [-24.1, 0], atol=0.6)


def test_without_a_decrease_the_spectrogram_has_the_high_pass_and_no_noise_reduction(waveform):
    clip = torch.from_numpy(waveform)[None]
    fields = {"prop_decrease": 0.0, "high_pass_hz": 0.0}
    off = KenyaBirdsFeatureExtractor(noise_reduction="none", **fields)
    assert torch.equal(
        KenyaBirdsFeatureExtractor(noise_reduction="spectrogram", **fields).extract(clip), off.extract(clip)
    )


def test_a_batch_gives_what_its_clips_give_with_noise_reduction_of_the_spectrogram(waveform):
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="spectrogram")
    clips = [waveform, waveform[::-1].copy(), np.roll(waveform, 9000)]
    for together, clip in zip(features(clips, extractor), clips, strict=True):
        same(together, features(clip, extractor)[0])


def test_every_step_of_the_waveform_stage_can_be_off(waveform):
    clip = torch.from_numpy(waveform)[None]
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none", high_pass_hz=0, do_peak_normalize=False)
    assert torch.equal(extractor.clean(clip), clip)


def test_the_first_projects_settings_are_reachable_by_fields():
    extractor = KenyaBirdsFeatureExtractor(**SEED_FIELDS)
    assert (extractor.n_fft, extractor.hop_length, extractor.prop_decrease) == (2048, 512, 0.9)
    assert extractor.clip_samples == 66_150
    assert features(song(66_150, 22_050), extractor).shape == (1, 128, 130)


# JSON


def test_a_front_end_that_was_saved_without_new_settings_goes_on_as_before(tmp_path, waveform, expected):
    KenyaBirdsFeatureExtractor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    assert (settings.pop("pad_mode"), settings.pop("min_peak_dbfs")) == ("symmetric", -200.0)
    path.write_text(json.dumps(settings))
    earlier = KenyaBirdsFeatureExtractor.from_pretrained(tmp_path)
    assert (earlier.pad_mode, earlier.min_peak_dbfs) == ("constant", -80.0)
    assert KenyaBirdsFeatureExtractor.from_pretrained(tmp_path, pad_mode="symmetric").pad_mode == "symmetric"
    assert torch.equal(features(waveform, earlier), expected)
    assert not torch.equal(features(waveform / 1e5, earlier), expected)
    short = waveform[:40_000]
    assert torch.equal(features(short, earlier), features(np.pad(short, 28_000), earlier))


@pytest.mark.parametrize(
    "fields",
    [{}, SEED_FIELDS, {"feature_type": "stft", "noise_reduction": "none", "clip_s": 0.5, "do_standardize": False}],
    ids=["default", "seed", "stft"],
)
def test_a_saved_extractor_gives_the_same_features(tmp_path, waveform, fields):
    extractor = KenyaBirdsFeatureExtractor(**fields)
    extractor.save_pretrained(tmp_path)
    for loaded in (
        KenyaBirdsFeatureExtractor.from_pretrained(tmp_path),
        KenyaBirdsFeatureExtractor(**json.loads(extractor.to_json_string())),
    ):
        assert loaded.to_dict() == extractor.to_dict()
        assert torch.equal(features(waveform, loaded), features(waveform, extractor))


def test_the_saved_file_names_the_code_that_reads_it(tmp_path):
    KenyaBirdsFeatureExtractor(top_db=60.0).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["top_db"] == 60.0
    assert saved["feature_extractor_type"] == "KenyaBirdsFeatureExtractor"
    assert "AutoFeatureExtractor" in saved["auto_map"]
    assert (tmp_path / "signal_kenya_birds.py").exists()
    assert not (tmp_path / "processor_config.json").exists()


@pytest.mark.parametrize("saved", [{}, {"return_attention_mask": True}])
def test_the_collator_of_transformers_gives_what_the_model_takes(saved, waveform, expected):
    extractor = KenyaBirdsFeatureExtractor.from_dict({"pad_mode": "symmetric", **saved})
    features = [{"input_features": values, "labels": 0} for values in expected[:1]]
    batch = DataCollatorWithPadding(extractor)(features)
    assert set(batch) == {"input_features", "labels"}
    assert torch.equal(batch["input_features"], torch.as_tensor(expected[:1]))


def test_fields_can_be_overridden_on_loading(tmp_path):
    KenyaBirdsFeatureExtractor().save_pretrained(tmp_path)
    assert KenyaBirdsFeatureExtractor.from_pretrained(tmp_path, n_mels=64).n_mels == 64
    with pytest.raises(ValueError, match="n_mels"):
        KenyaBirdsFeatureExtractor.from_pretrained(tmp_path, n_mels=0)


# Fields


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"feature_type": "cqt"}, "feature_type is 'cqt'.*reassigned"),
        ({"noise_reduction": "yes"}, "noise_reduction is 'yes'.*nonstationary"),
        ({"noise_reduction": "spectrogram", "feature_type": "waveform"}, "'waveform', which has no spectrogram"),
        ({"prop_decrease": 1.1}, "prop_decrease is 1.1"),
        ({"prop_decrease": float("nan")}, "prop_decrease is nan"),
        ({"high_pass_hz": 16_000}, "high_pass_hz is 16000"),
        ({"high_pass_hz": -1}, "high_pass_hz is -1"),
        ({"high_pass_hz": 0.01}, "high_pass_hz is 0.01"),
        ({"pre_emphasis": -0.5}, "pre_emphasis is -0.5"),
        ({"f_min_hz": 9000, "f_max_hz": 8000}, "9000 and 8000"),
        ({"f_min_hz": 150, "f_max_hz": 151}, r"at least one bin \(15.6 Hz\) apart"),
        ({"f_min_hz": -1}, "f_min_hz"),
        ({"f_max_hz": 16_001}, "half of sampling_rate=32000"),
        ({"sampling_rate": 22_050}, "half of sampling_rate=22050"),
        ({"sampling_rate": 5000, "f_max_hz": 2000}, "5120 to 256000"),
        ({"sampling_rate": 384_000}, "5120 to 256000"),
        ({"n_fft": 0}, "hop_length and n_fft are 512 and 0"),
        ({"hop_length": 0}, "hop_length and n_fft"),
        ({"hop_length": 4096}, "hop_length and n_fft"),
        ({"clip_s": 0.05}, "clip_s is 0.05"),
        ({"clip_s": 0.1, "n_fft": 4096}, "one frame of n_fft=4096"),
        ({"n_mels": 0}, "n_mels is 0"),
        ({"top_db": -80}, "top_db is -80"),
        ({"mel_scale": "bark"}, "mel_scale is 'bark'"),
        ({"mel_spectrum": "phase"}, "mel_spectrum is 'phase'"),
        ({"win_length": 2049}, "win_length is 2049, expected at most n_fft=2048"),
        ({"feature_type": "reassigned", "mel_scale": "htk"}, "are for feature_type 'mel', which is 'reassigned'"),
        ({"min_level_db": -400}, "min_level_db is -400"),
        ({"fixed_mean_db": -40}, "fixed_mean_db is -40 and fixed_std_db is None, expected both or none"),
        ({"fixed_mean_db": -40, "fixed_std_db": 9, "do_standardize": False}, "and do_standardize"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(fields, text):
    with pytest.raises(ValueError, match=text):
        KenyaBirdsFeatureExtractor(**fields)


@pytest.mark.parametrize("noise_reduction", ["none", "spectrogram"])
def test_a_bats_sampling_rate_works_without_noise_reduction_of_the_waveform(noise_reduction):
    extractor = KenyaBirdsFeatureExtractor(
        sampling_rate=384_000, clip_s=0.1, f_max_hz=190_000, noise_reduction=noise_reduction
    )
    assert features(song(), extractor).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_computes_the_same_numbers(waveform, expected):
    found = features(waveform, device="cuda")
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0.02)


def test_the_device_is_where_the_features_are(waveform):
    assert features(waveform, device="cpu").device.type == "cpu"
    assert features(waveform, device=torch.device("cpu")).device.type == "cpu"


def test_features_are_those_of_noisereduce_scipy_and_librosa_one_after_the_other():
    import scipy.signal
    from noisereduce.torchgate import TorchGate
    from plain_librosa import librosa

    extractor = KenyaBirdsFeatureExtractor(high_pass_hz=0, pre_emphasis=0.97)
    generator = torch.Generator().manual_seed(0)
    call = torch.sin(2 * torch.pi * 3000 * torch.arange(9600) / RATE) * torch.hann_window(9600)
    waveform = 0.02 * torch.randn(1, extractor.clip_samples, generator=generator)
    waveform[0, 40_000:49_600] += 0.5 * call
    clean = TorchGate(sr=RATE, prop_decrease=0.9)(waveform)[0].numpy()
    clean = np.pad(clean, (0, extractor.clip_samples - len(clean)))
    # The pre-emphasis leaves the first sample as it is, and so does this filter.
    clean = librosa.util.normalize(scipy.signal.lfilter([1, -0.97], [1], clean))
    power = librosa.feature.melspectrogram(
        y=clean, sr=RATE, n_fft=2048, hop_length=512, n_mels=128, fmin=150, fmax=15_000, pad_mode="constant"
    )
    level_db = librosa.power_to_db(power, top_db=80)
    expected = (level_db - level_db.mean()) / level_db.std()
    found = extractor.extract(waveform)[0].numpy()
    # Gates of a hard threshold: a bin that lies on it may fall to either side.
    assert np.abs(found - expected).mean() < 2e-3
    assert np.quantile(np.abs(found - expected), 0.999) < 2e-2


@pytest.mark.parametrize("feature_type", ["mel", "stft", "reassigned"])
@pytest.mark.parametrize("frequency_hz", [440.0, 2500.0, 9000.0])
def test_a_tone_is_loudest_in_the_band_of_its_frequency(feature_type, frequency_hz):
    extractor = KenyaBirdsFeatureExtractor(feature_type=feature_type, noise_reduction="none")
    tone = torch.sin(2 * torch.pi * frequency_hz * torch.arange(extractor.clip_samples) / RATE)[None]
    bands_hz = extractor.band_frequencies_hz()
    assert len(bands_hz) == extractor.feature_shape[0] == extractor.extract(tone).shape[1]
    assert extractor.feature_shape[1] == extractor.extract(tone).shape[2]
    loudest = extractor.band_power(tone).mean(dim=2)[0].argmax()
    assert loudest == (bands_hz - frequency_hz).abs().argmin()
