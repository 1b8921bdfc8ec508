"""What a recording's level and resolution change in features and scores: nothing."""

import shutil

import datasets
import numpy as np
import pytest
import soundfile
import torch
from archives import write_archive
from detecting import CLIP_S, CODES, RATE, chirps, extractor, save_model

from kenya_birds.data.dataset import load_clips
from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.predictions import score_clips
from kenya_birds.inference.audio_stream import Stopwatch, read_windows
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.inference.windows import WindowGrid
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.preparation import clean_clips, extract_features

EVERYTHING = FindingSettings(threshold=0.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "birds")


@pytest.fixture
def model(saved, tmp_path):
    """A model of one's own, with noise reduction."""
    folder = shutil.copytree(saved, tmp_path / "model")
    extractor(noise_reduction="stationary").save_pretrained(folder)
    return folder


def test_scores_do_not_depend_on_the_level_of_a_recording(model, tmp_path):
    pipeline = SoundscapePipeline(model, device="cpu", settings=EVERYTHING)
    sound = chirps(4) / np.abs(chirps(4).astype(int)).max()
    scores = {}
    for peak_dbfs in (0, -150, -90, -76, -56, 12):
        soundfile.write(tmp_path / "a.wav", 10 ** (peak_dbfs / 20) * sound, RATE, subtype="FLOAT")
        found = sorted(pipeline(tmp_path / "a.wav"), key=lambda one: (one.start_sample, one.species))
        scores[peak_dbfs] = [one.score for one in found]
    for level in scores:
        np.testing.assert_allclose(scores[level], scores[0], atol=2e-3)


@pytest.mark.parametrize(("subtype", "rate"), [("PCM_24", RATE), ("FLOAT", RATE), ("PCM_24", 22_050)])
def test_a_quiet_recording_has_the_same_features_in_training_evaluation_and_detection(model, tmp_path, subtype, rate):
    archive = write_archive(
        tmp_path / "archive", [(f"r{n}.wav", 1.5, code) for n in range(3) for code in CODES[:2]], seconds=3
    )
    for n in range(3):
        sound = chirps(3, n, rate) / 32768
        path = archive / "soundscape_data" / f"r{n}.wav"
        soundfile.write(path, 10 ** (-76 / 20) * sound / np.abs(sound).max(), rate, subtype=subtype)
    clips = load_clips(archive, cache_dir=tmp_path, sampling_rate=RATE, clip_s=CLIP_S, min_annotations=1)
    rows = datasets.concatenate_datasets([clips[split].select([0]) for split in clips])
    classifier, own = load_classifier(find_model(str(model)))
    device = torch.device("cpu")

    evaluated = np.reshape(extract_features(rows, own, device)["input_features"][:], (3, *own.feature_shape))
    clean = clean_clips(rows, own, device)
    waveform = torch.tensor(clean["waveform"][:]) * torch.tensor(clean["scale"][:])[:, None]
    trained = own.to_level(own.band_power(waveform)).numpy()
    detected = []
    for recording in rows["recording"][:]:
        grid = WindowGrid.with_overlap(own.clip_samples, 0.5, RATE)
        *found, _ = read_windows(archive / "soundscape_data" / recording, grid, RATE, Stopwatch())
        windows = {int(start): sound for one in found for start, sound in zip(one.starts, one.sound, strict=True)}
        detected.append(own.extract(torch.from_numpy(windows[RATE][None]))[0].numpy())
    np.testing.assert_allclose(detected, evaluated, atol=2e-3)
    assert np.abs(trained - evaluated).mean() < 2e-3, "kept with 16 bits below its peak"

    expected = probabilities(score_clips(classifier, own, rows), multi_label=True)
    pipeline = SoundscapePipeline(model, overlap_s=0.5, device="cpu", settings=EVERYTHING)
    for recording, scores in zip(rows["recording"][:], expected, strict=True):
        found = pipeline(archive / "soundscape_data" / recording)
        there = {one.species: one.score for one in found if one.start_sample == RATE}
        np.testing.assert_allclose([there[code] for code in CODES], scores, atol=1e-2)
