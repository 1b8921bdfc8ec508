"""Front ends of published networks: our feature extractor computes what theirs do."""

import math

import numpy as np
import pytest
import torch

from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.arguments import FeatureArguments
from kenya_birds.training.flags import parse_train_flags
from kenya_birds.training.front_ends import PRESETS, find_front_end

RATE = 32_000
SAMPLES = 5 * RATE


def extractor(preset, **changes):
    return KenyaBirdsFeatureExtractor(**{**PRESETS[preset].features, **changes})


def song(level_db=-20.0):
    """Noise, a call that falls from 6 to 3 kHz, and a pause; its mean is 0, and its peak is `level_db`."""
    generator = torch.Generator().manual_seed(4)
    time_s = torch.arange(SAMPLES, dtype=torch.float64) / RATE
    call = torch.sin(2 * torch.pi * (6000 * time_s - 300 * time_s.square())) * (time_s % 1 < 0.4)
    waveform = call + 0.02 * torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    waveform = waveform - waveform.mean()
    return (waveform * 10 ** (level_db / 20) / waveform.abs().max()).float()[None]


def tone(hz, amplitude=1.0):
    return amplitude * torch.sin(2 * torch.pi * hz * torch.arange(SAMPLES) / RATE)[None]


@pytest.mark.parametrize("preset", ["birdset-efficientnet", "birdset-convnext"])
def test_features_of_birdset_are_those_of_torchaudio(preset):
    transforms = pytest.importorskip("torchaudio.transforms")
    ours, waveform = extractor(preset), song()
    power = transforms.Spectrogram(n_fft=ours.n_fft, hop_length=ours.hop_length, power=2.0)(waveform)
    bands = transforms.MelScale(n_mels=ours.n_mels, n_stft=ours.n_fft // 2 + 1, sample_rate=RATE)(power)
    level_db = 10 * torch.log10(bands.clamp(min=1e-10))
    expected = (level_db.clamp(min=level_db.max() - 80) + 4.268) / 4.569
    found = ours.extract(waveform)
    assert found.shape == expected.shape == (1, ours.n_mels, 1 + SAMPLES // ours.hop_length)
    # torchaudio mirrors the sound beyond the ends, ours is silent there.
    edge = math.ceil(ours.n_fft / 2 / ours.hop_length)
    torch.testing.assert_close(found[..., edge:-edge], expected[..., edge:-edge], rtol=0, atol=2e-3)


def perch_features(waveform):
    """Features of Perch 2, `(frames, bands)`: chirp/models/frontend.py and signal.py, with numpy."""
    waveform = waveform * 0.25 / np.abs(waveform).max()
    window = np.hanning(640)
    padded = np.pad(waveform, 160)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 640)[::320]
    magnitude = np.abs(np.fft.rfft(frames * (window / window.sum()), n=1024, axis=1))

    def mel(hz):
        return 1127 * np.log1p(hz / 700)

    bins = mel(np.linspace(0, RATE / 2, 513))[:, None]
    edges = np.linspace(mel(60), mel(16_000), 130)
    below, centre, above = edges[:-2], edges[1:-1], edges[2:]
    filters = np.maximum(0, np.minimum((bins - below) / (centre - below), (above - bins) / (above - centre)))
    filters[0] = 0
    return 0.1 * np.log(np.maximum(magnitude @ filters, 1e-5))


def test_features_of_perch_are_those_of_its_own_program():
    waveform = song()
    expected = perch_features(waveform[0].double().numpy()).T
    # Its first frame lies 5 ms later than ours.
    later = torch.nn.functional.pad(waveform, (-160, 160))
    found = extractor("perch-2").extract(later)[0].numpy()
    assert expected.shape == (128, 500)
    assert found.shape == (128, 501)
    difference = found[:, 1:499] - expected[:, 1:499]
    # Its window is symmetric, ours periodic: the far side lobes of a loud tone differ.
    assert np.sqrt(np.square(difference).mean()) < 0.001
    assert np.abs(difference).max() < 0.03
    assert expected.std() > 0.1


def test_of_silence_perch_gets_its_floor_and_birdset_the_least_power():
    silence = torch.zeros(1, SAMPLES)
    floor = torch.tensor(0.1 * math.log(1e-5))
    torch.testing.assert_close(extractor("perch-2").extract(silence), floor.expand(1, 128, 501), rtol=0, atol=1e-3)
    found = extractor("birdset-convnext").extract(silence)
    torch.testing.assert_close(found, torch.tensor((-100 + 4.268) / 4.569).expand_as(found))


def test_a_tone_of_a_tenth_is_one_step_of_the_logarithm_lower_for_perch():
    ours = extractor("perch-2")
    strong, weak = 2000.0, 6000.0
    both = tone(strong) + tone(weak, 0.1)
    found = ours.extract(both)[0].mean(dim=1)
    alone = [ours.extract(tone(hz))[0].mean(dim=1) for hz in (strong, weak)]
    bands = [int(features.argmax()) for features in alone]
    centres_hz = ours.band_frequencies_hz()
    for band, hz in zip(bands, (strong, weak), strict=True):
        assert abs(float(centres_hz[band]) - hz) < 0.6 * float(centres_hz[band + 1] - centres_hz[band])
    loss = 0.1 * math.log(float(both.abs().max()))  # each clip is scaled to the same peak
    assert float(alone[0][bands[0]] - found[bands[0]]) == pytest.approx(loss, abs=0.003)
    assert float(alone[1][bands[1]] - found[bands[1]]) == pytest.approx(loss + 0.1 * math.log(10), abs=0.003)


def test_birdset_hears_how_loud_a_recording_is_and_perch_does_not():
    quiet, loud = song(-30), song(-20)
    birdset, perch = extractor("birdset-efficientnet"), extractor("perch-2")
    raised = birdset.extract(loud) - birdset.extract(quiet)
    torch.testing.assert_close(raised, torch.full_like(raised, 10 / 4.569), rtol=0, atol=2e-3)
    torch.testing.assert_close(perch.extract(loud), perch.extract(quiet), rtol=0, atol=2e-3)


def test_settings_of_a_front_end_are_saved_with_the_model(tmp_path):
    ours = extractor("perch-2")
    ours.save_pretrained(tmp_path)
    loaded = KenyaBirdsFeatureExtractor.from_pretrained(tmp_path)
    assert torch.equal(loaded.extract(song()), ours.extract(song()))


def parsed(archive, tmp_path, *words):
    flags = parse_train_flags(["--data_dir", str(archive), "--output_dir", str(tmp_path / "out"), *words])
    assert isinstance(flags.features, FeatureArguments)
    return flags


def test_a_preset_sets_features_and_backbone_and_flags_win(small_archive, tmp_path):
    flags = parsed(small_archive, tmp_path, "--front_end_from", "birdset-efficientnet", "--init_from", "scratch")
    assert (flags.model.backbone, flags.model.backbone_variant) == ("tf_efficientnet_b1", "transformers")
    assert KenyaBirdsFeatureExtractor(**vars(flags.features)).to_dict() == extractor("birdset-efficientnet").to_dict()
    words = ("--backbone", "convnext_atto", "--n_mels", "64", "--init_from", "scratch")
    flags = parsed(small_archive, tmp_path, "--front_end_from", "birdset-efficientnet", *words)
    assert (flags.model.backbone, flags.features.n_mels, flags.features.n_fft) == ("convnext_atto", 64, 2048)


def test_a_model_of_this_package_gives_its_front_end_and_its_backbone(tmp_path):
    KenyaBirdsConfig(backbone="tf_efficientnet_b0", backbone_variant="transformers").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    extractor("birdset-convnext", n_mels=64).save_pretrained(tmp_path)
    found = find_front_end(str(tmp_path))
    assert (found.backbone, found.variant) == ("tf_efficientnet_b0", "transformers")
    assert found.features.items() >= {**PRESETS["birdset-convnext"].features, "n_mels": 64}.items()


def test_models_on_the_hub_that_have_a_preset_are_known_by_name():
    for name in ("EfficientNet-B1-BirdSet-XCL", "EfficientNet-B1-BirdSet-XCL@main"):
        assert find_front_end(f"DBD-research-group/{name}") == PRESETS["birdset-efficientnet"]


def test_a_front_end_that_is_not_known_is_refused_with_the_presets(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "efficientnet"}', encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    for name, why in ((tmp_path, "is no model of this package"), (tmp_path / "none", "there is no model")):
        with pytest.raises(UserError, match=f"front end of .* is not known .*{why}.*expected birdset-efficientnet, "):
            find_front_end(str(name))


def test_a_model_that_takes_the_waveform_has_no_front_end(tmp_path):
    KenyaBirdsConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    KenyaBirdsFeatureExtractor(feature_type="waveform").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes the waveform and has no features: expected birdset-efficientnet"):
        find_front_end(str(tmp_path))


def test_the_name_of_a_front_end_is_not_recorded_but_what_it_stands_for(small_archive, tmp_path):
    flags = parsed(small_archive, tmp_path, "--front_end_from", "birdset-convnext", "--init_from", "scratch")
    record = flags.settings().record()
    assert "front_end_from" not in record
    assert (record["backbone_variant"], record["mel_scale"], record["fixed_std_db"]) == ("transformers", "htk", 4.569)
