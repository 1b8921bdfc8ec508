"""What is computed once equals what would be computed every time."""

import errno
import inspect
import os

import numpy as np
import pytest
import torch

from kenya_birds.data.audio import decode_wav
from kenya_birds.data.dataset import load_clips
from kenya_birds.errors import UserError
from kenya_birds.fingerprints import FRONT_END
from kenya_birds.model.feature_extraction_kenya_birds import NOISE_REDUCTIONS, KenyaBirdsFeatureExtractor
from kenya_birds.training import preparation
from kenya_birds.training.augmentation import DRAWS, Augmentation, AugmentationArguments
from kenya_birds.training.batches import ClipSampler, FeatureClips, TrainingClips
from kenya_birds.training.preparation import clean_clips, extract_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["stationary", "spectrogram"])
def extractor(request):
    return KenyaBirdsFeatureExtractor(noise_reduction=request.param)


def raw(clips, rows):
    return torch.from_numpy(np.stack([decode_wav(clips[row]["audio"]["bytes"]) for row in rows]))


def test_features_of_unchanged_training_clips_are_those_that_serving_computes(clips, extractor):
    train = clips["train"]
    augmentation = Augmentation(AugmentationArguments.none(), extractor, torch.Generator())
    batches = TrainingClips(clean_clips(train, extractor, CPU), augmentation, multi_label=False)
    draws = list(ClipSampler(len(train), 8, seed=0, numbers=len(DRAWS)))[:8]
    batch = batches.__getitems__(draws)
    rows = [draw.clip for draw in draws]
    found = augmentation(batches.waveform(batch), batch["amounts"])
    expected = extractor.extract(raw(train, rows))
    difference = (found - expected).abs()
    # Clean waveforms are kept in 16 bits below their peak: 98 dB, with features cut at 80 dB. Noise reduction of the
    # spectrogram comes afterwards: rounding opens or closes it for a few cells.
    assert difference.max() < 0.04 or extractor.noise_reduction == "spectrogram"
    assert (difference > 0.04).float().mean() < 2e-3
    assert difference.mean() < 5e-4
    assert batch["labels"].tolist() == [train[row]["label"] for row in rows]


def test_clean_waveforms_keep_their_level(clips):
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none", do_peak_normalize=False)
    clean = clean_clips(clips["test"], extractor, CPU)
    assert set(clean.column_names) == {*clips["test"].column_names, "waveform", "scale"} - {"audio"}
    expected = extractor.clean(raw(clips["test"], range(4)))
    for row, waveform in enumerate(expected):
        found = np.asarray(clean[row]["waveform"]) * clean[row]["scale"]
        np.testing.assert_allclose(found, waveform, atol=1.6e-5 * float(waveform.abs().max()))


def test_silence_stays_silence(clips):
    silent = (
        clips["test"]
        .select([0, 1])
        .map(lambda row: {"audio": {"bytes": row["audio"]["bytes"][:44] + bytes(192_000), "path": None}})
    )
    clean = clean_clips(silent, KenyaBirdsFeatureExtractor(noise_reduction="none"), CPU)
    assert not np.any(clean["waveform"])
    assert np.isfinite(clean["scale"]).all()


def test_evaluated_features_are_the_extractors_and_hear_the_middle(small_archive, clips, extractor, tmp_path):
    wide = load_clips(small_archive, cache_dir=tmp_path, min_annotations=8, context_s=0.5)
    features = FeatureClips(extract_features(wide["test"], extractor, CPU), extractor.feature_shape, multi_label=False)
    found = features.__getitems__([0, 3, 2])
    expected = extractor.extract(raw(clips["test"], [0, 3, 2]))
    # One clip alone and two together are rounded differently.
    torch.testing.assert_close(found["input_features"], expected, rtol=0, atol=1e-3)


def test_what_was_prepared_is_found_again_and_another_front_end_is_not(clips, monkeypatch, tmp_path):
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none")
    first = extract_features(clips["test"], extractor, CPU)
    monkeypatch.setattr(KenyaBirdsFeatureExtractor, "extract", lambda self, waveform: 1 / 0)
    extractor.save_pretrained(tmp_path)  # adds to its JSON
    again = extract_features(clips["test"], KenyaBirdsFeatureExtractor.from_pretrained(tmp_path), CPU)
    assert again.cache_files == first.cache_files
    with pytest.raises(ZeroDivisionError):
        extract_features(clips["test"], KenyaBirdsFeatureExtractor(noise_reduction="none", n_mels=64), CPU)


def test_another_code_or_library_prepares_anew(clips, monkeypatch):
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none")
    files = [clean_clips(clips["test"], extractor, CPU).cache_files]
    versions = preparation.library_versions(FRONT_END)
    assert {"torch", "numpy"} <= set(versions)
    changes = {
        "library_versions": lambda names: {**versions, "torch": "9.9"},
        "code_fingerprint": lambda module: f"another {module}",
    }
    for name, change in changes.items():
        monkeypatch.setattr(preparation, name, change)
        files.append(clean_clips(clips["test"], extractor, CPU).cache_files)
    assert files[0] != files[1] != files[2] != files[0]


@pytest.mark.parametrize("stage", [clean_clips, extract_features])
def test_a_disk_that_is_full_is_an_error_of_the_user(clips, monkeypatch, stage):
    def full(*args, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", full)
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none", high_pass_hz=333.0, n_mels=77)
    with pytest.raises(UserError, match=r"the cache .* cannot be written: .*No space left on device; free disk space"):
        stage(clips["test"], extractor, CPU)


class Watched(KenyaBirdsFeatureExtractor):
    """Notes which of its settings are read."""

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name in inspect.signature(KenyaBirdsFeatureExtractor).parameters:
            self.__dict__.setdefault("read", set()).add(name)
        return found


def test_clean_clips_go_by_the_settings_of_the_waveform_stage_alone():
    used = set()
    for noise_reduction in NOISE_REDUCTIONS:
        extractor = Watched(noise_reduction=noise_reduction, pre_emphasis=0.5)
        extractor.read.clear()
        extractor.clean(torch.zeros(1, 8000))
        used |= extractor.read
    assert used == set(preparation.WAVEFORM_SETTINGS)


def test_clean_clips_serve_features_of_every_kind(clips):
    cleaned = [
        clean_clips(clips["test"], KenyaBirdsFeatureExtractor(noise_reduction="none", **settings), CPU).cache_files
        for settings in ({}, {"feature_type": "stft"}, {"n_mels": 64, "top_db": 60.0}, {"high_pass_hz": 0.0})
    ]
    assert cleaned[0] == cleaned[1] == cleaned[2] != cleaned[3]
