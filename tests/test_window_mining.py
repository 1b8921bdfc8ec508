"""Hard empty windows: which are scored, which are kept, and how often they are drawn."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from kenya_birds.data.decoded_recordings import DecodedRecording, DecodedRecordings
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.arguments import AugmentationArguments
from kenya_birds.training.augmentation import Augmentation
from kenya_birds.training.recording_windows import RecordingWindows
from kenya_birds.training.window_mining import HardWindows, _scores
from kenya_birds.training.window_sampler import WindowSampler

RATE, WINDOW = 8_000, 8_000
SECONDS = 40


class Loudness(torch.nn.Module):
    """Hears one species where features are high; the other species never."""

    def forward(self, features):
        level = features.mean(dim=(1, 2))
        return SimpleNamespace(logits=torch.stack([level, torch.full_like(level, -100.0)], dim=1))


@pytest.fixture
def material(tmp_path):
    """One recording whose noise becomes louder, with a call in its first second, and its windows."""
    amplitude = np.linspace(100, 10_000, SECONDS * RATE)
    samples = (np.random.default_rng(0).uniform(-1, 1, SECONDS * RATE) * amplitude).astype(np.int16)
    np.save(tmp_path / "a.npy", samples)
    runs = np.array([[0, len(samples)]])
    recording = DecodedRecording("a", tmp_path / "a.npy", len(samples), 1 / 32768, runs, 0.0)
    decoded = DecodedRecordings([recording], RATE)
    calls = pd.DataFrame([("a", 0.5, 0.5, "owl")], columns=["recording", "start_s", "end_s", "species"])
    unknown = pd.DataFrame(columns=["recording", "start_s", "end_s"])
    targets = WindowTargets.of(calls, unknown, decoded.lengths, ["lark", "owl"], sampling_rate=RATE, window=WINDOW)
    extractor = KenyaBirdsFeatureExtractor(
        sampling_rate=RATE,
        clip_s=1.0,
        f_max_hz=4_000.0,
        noise_reduction="none",
        do_peak_normalize=False,
        do_standardize=False,
    )
    augmentation = Augmentation(AugmentationArguments.none(), extractor, torch.Generator())
    return decoded, targets, RecordingWindows(decoded, targets, augmentation, 80)


def sampler_of(decoded, targets, hard_windows=None, epoch=0, **settings):
    settings = {"length": 80, "call_share": 0.25, "empty_share": 0.5, "hard_share": 0.5, **settings}
    sampler = WindowSampler(decoded, targets, hard_windows=hard_windows, seed=3, **settings)
    sampler.set_epoch(epoch)
    return sampler


def test_half_of_the_empty_windows_are_hard_and_the_others_are_drawn_as_before(material):
    decoded, targets, _ = material
    places = np.array([100_000, 100_003, 200_000])
    draws = [draw.start for draw in sampler_of(decoded, targets, lambda sampler: places)]
    assert len(draws) == 80
    # 40 empty windows, 20 of them hard; there are only three, which are repeated evenly.
    assert sorted(draws.count(place) for place in places) == [6, 7, 7]
    empty = targets.is_empty(np.zeros(80, dtype=int), np.array(draws))
    assert empty.sum() >= 40
    without = [draw.start for draw in sampler_of(decoded, targets, lambda sampler: places[:0])]
    assert without == [draw.start for draw in sampler_of(decoded, targets, hard_share=0.0)]


def test_the_quarter_with_the_highest_scores_is_kept(material):
    decoded, targets, windows = material
    hard = HardWindows(rescore_epochs=1, scored_windows=1000)
    sampler = sampler_of(decoded, targets, epoch=1)
    model = Loudness().train()
    places = hard.find(sampler, windows, model, Accelerator(cpu=True))
    assert model.training
    scored = sampler.empty_places(4 * 20)
    assert sorted(places) == sorted(scored)[-20:]
    assert targets.is_empty(np.zeros(20, dtype=int), places).all()


def test_windows_are_scored_every_few_epochs_up_to_a_number(material):
    decoded, targets, windows = material
    hard, accelerator = HardWindows(rescore_epochs=2, scored_windows=40), Accelerator(cpu=True)
    found = [
        hard.find(sampler_of(decoded, targets, epoch=epoch), windows, Loudness(), accelerator).tolist()
        for epoch in range(6)
    ]
    assert [len(places) for places in found] == [0, 0, 10, 10, 10, 10]
    assert found[2] == found[3] != found[4] == found[5]


def test_the_state_of_a_checkpoint_is_enough_to_go_on(material):
    decoded, targets, windows = material
    hard, accelerator = HardWindows(rescore_epochs=2, scored_windows=40), Accelerator(cpu=True)
    places = hard.find(sampler_of(decoded, targets, epoch=2), windows, Loudness(), accelerator)
    again = HardWindows.from_state(hard.state())
    # No model is needed: nothing is scored.
    found = again.find(sampler_of(decoded, targets, epoch=3), windows, None, accelerator)
    assert np.array_equal(places, found)


def test_processes_share_the_scoring_and_get_the_same_scores(material):
    decoded, targets, windows = material
    sampler = sampler_of(decoded, targets, epoch=1)
    recording, start = sampler.split(sampler.empty_places(21))
    alone = _scores(recording, start, windows, Loudness(), Accelerator(cpu=True))

    def part(process):
        accelerator = SimpleNamespace(
            process_index=process,
            num_processes=2,
            device=torch.device("cpu"),
            autocast=torch.enable_grad,
            reduce=lambda scores, _: scores,
        )
        return _scores(recording, start, windows, Loudness(), accelerator)

    parts = [part(process) for process in range(2)]
    assert [np.count_nonzero(scores) for scores in parts] == [11, 10]
    np.testing.assert_allclose(sum(parts), alone, rtol=1e-5)


def test_features_keep_their_precision_in_mixed_precision(material):
    decoded, targets, windows = material
    sampler = sampler_of(decoded, targets, epoch=1)
    recording, start = sampler.split(sampler.empty_places(21))
    alone = _scores(recording, start, windows, Loudness(), Accelerator(cpu=True))
    mixed = SimpleNamespace(
        process_index=0,
        num_processes=1,
        device=torch.device("cpu"),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        reduce=lambda scores, _: scores,
    )
    np.testing.assert_array_equal(_scores(recording, start, windows, Loudness(), mixed), alone)
