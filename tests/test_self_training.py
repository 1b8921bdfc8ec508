"""Self-training: a model is trained further on its certain predictions in recordings without annotations."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from running import flags, settings_of, train
from safetensors.torch import load_file

import train_hf
from kenya_birds.data.decoded_recordings import DecodedRecording, DecodedRecordings
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.training import pseudo_labels, self_training
from kenya_birds.training.pseudo_labels import PseudoLabels, PseudoLabelSampler, count_sure
from kenya_birds.training.trainer import KenyaBirdsTrainer
from kenya_birds.training.training_run import Run
from kenya_birds.training.window_sampler import WindowSampler

pytestmark = pytest.mark.usefixtures("blank_figures")

RATE, WINDOW = 100, 300
LOW = 0.05
UNCHANGED = {f"{change}_probability": 0 for change in ("pitch", "speed", "gain", "noise", "mask")}
ON_RECORDINGS = {"train_on": "recordings", "windows_per_epoch": 48, **UNCHANGED}


def recordings(folder, *seconds):
    found = []
    for index, length_s in enumerate(seconds):
        path = folder / f"{index}.npy"
        np.save(path, np.full(length_s * RATE, index + 1, dtype=np.int16))
        runs = np.array([[0, length_s * RATE]])
        found.append(DecodedRecording(f"{index}.wav", path, length_s * RATE, 1.0, runs, 0.0))
    return DecodedRecordings(found, RATE)


def test_windows_are_sure_of_a_species_or_of_no_call(tmp_path):
    grid = RecordingWindowGrid.of(recordings(tmp_path, 15, 2), WINDOW)  # five windows, and a part of one
    probabilities = np.array([[0.95, 0.5], [0.05, 0.02], [0.5, 0.01], [0.9, 0.95], [0.2, 0.1], [0.99, 0.0]])
    pseudo = PseudoLabels.of(grid, probabilities)
    assert pseudo.start.tolist() == [0, WINDOW, 3 * WINDOW]
    assert pseudo.labels.tolist() == [[1, -100], [0, 0], [1, 1]]
    assert (pseudo.calls.tolist(), pseudo.empty.tolist()) == ([0, 2], [1])
    assert count_sure(pseudo, ["a", "b"]) == {"a": 2, "b": 1}


@pytest.fixture
def samplers(tmp_path):
    (tmp_path / "own").mkdir()
    own = recordings(tmp_path / "own", 30, 30)
    calls = pd.DataFrame({"recording": ["0.wav", "1.wav"], "center_s": [5.0, 9.0], "species": ["a", "b"]})
    calls = calls.assign(start_s=calls["center_s"], end_s=calls["center_s"])
    targets = WindowTargets.of(
        calls, calls.iloc[:0], own.lengths, ["a", "b"], sampling_rate=RATE, window=WINDOW, margin_s=0.25
    )

    def make(windows_per_step=8, call_share=0.5, labels=((1, 0), (0, 0), (1, 0), (0, 1))):
        windows = WindowSampler(own, targets, length=48, windows_per_step=windows_per_step, numbers=3)
        grid = RecordingWindowGrid.of(recordings(tmp_path, 3 * len(labels)), WINDOW)
        pseudo = PseudoLabels(grid.decoded, grid.recording, grid.start, np.array(labels))
        sampler = PseudoLabelSampler(
            windows, pseudo, 2, call_share=call_share, windows_per_step=windows_per_step, species_power=1.0
        )
        return sampler, pseudo

    return make


def test_a_quarter_of_each_batch_has_pseudo_labels(samplers):
    sampler, _ = samplers()
    draws = list(sampler)
    assert len(draws) == len(sampler) == 64
    for first in range(0, 64, 8):
        assert sum(draw.recording >= 2 for draw in draws[first : first + 8]) == 2


def test_windows_of_the_training_recordings_are_those_of_their_own_sampler(samplers):
    sampler, _ = samplers()
    own = [draw[:4] for draw in sampler._windows]
    assert [draw[:4] for draw in sampler if draw.recording < 2] == own


def test_as_many_hold_a_call_and_species_are_alike(samplers):
    sampler, pseudo = samplers()
    rows = []
    for epoch in range(200):
        sampler.set_epoch(epoch)
        rows += [draw.start // WINDOW for draw in sampler if draw.recording >= 2]
    counts = np.bincount(rows, minlength=4) / len(rows)
    assert counts[pseudo.empty].sum() == pytest.approx(0.5, abs=0.01)
    assert counts[[0, 2]].sum() == pytest.approx(0.25, abs=0.02)
    assert counts[3] == pytest.approx(0.25, abs=0.02)


def test_epochs_repeat_and_differ(samplers):
    def draws(epoch):
        sampler, _ = samplers()
        sampler.set_epoch(epoch)
        return [(*draw[:4], *draw.chance) for draw in sampler]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_only_empty_windows_are_drawn_if_no_species_is_sure(samplers):
    sampler, pseudo = samplers(labels=((0, 0), (0, 0)))
    assert len(pseudo.calls) == 0
    assert len(list(sampler)) == 64


def test_without_empty_windows_calls_are_not_more_frequent(samplers):
    sampler, _ = samplers(labels=((1, 0), (0, 1)))
    draws = list(sampler)
    assert sum(draw.recording >= 2 for draw in draws) == len(draws) / 8  # a quarter, half of which holds calls


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("self_training")


@pytest.fixture(scope="module")
def elsewhere(place):
    """Recordings of the same birds, without annotations."""
    archive = synthesize_archive(place / "other", recordings=3, duration_s=15.0, species=6, scene="quiet", seed=9)
    (place / "elsewhere").mkdir()
    for path in sorted((archive or place / "other").glob("soundscape_data/*")):
        shutil.copyfile(path, place / "elsewhere" / f"night_{path.name}")
    return place / "elsewhere"


@pytest.fixture(scope="module")
def trained(place, small_archive, elsewhere):
    """A model after two rounds at most; two epochs give low scores, so low ones count as sure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudo_labels, "PRESENT", LOW)
        patch.setattr(pseudo_labels, "ABSENT", LOW / 2)
        settings = {"self_training": 2, "unlabelled": elsewhere, "num_train_epochs": 2, **ON_RECORDINGS}
        return train(small_archive, place / "birds", place / "cache", **settings)


def test_the_summary_tells_of_the_rounds(trained):
    rounds = json.loads((trained / "training_summary.json").read_text())["self_training"]
    assert 1 <= len(rounds) <= 2
    first = rounds[0]
    assert first["windows"] == 3 * 5
    assert first["hours"] == pytest.approx(45 / 3600)
    assert first["sure_windows"] > 0
    assert sum(first["by_species"].values()) >= first["sure_windows"]
    assert first["is_kept"] == (first["after"] > first["before"])
    assert [one["is_kept"] for one in rounds[:-1]] == [True] * (len(rounds) - 1)


def test_the_model_is_that_of_the_last_round_that_is_kept(trained):
    rounds = json.loads((trained / "training_summary.json").read_text())["self_training"]
    kept = [number for number, one in enumerate(rounds, 1) if one["is_kept"]]
    if kept:
        expected = load_file(trained / f"self-training-{kept[-1]}" / "model.safetensors")
    else:
        state = json.loads(next(iter(sorted(trained.glob("checkpoint-*/trainer_state.json")))).read_text())
        expected = load_file(trained / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    found = load_file(trained / "model.safetensors")
    assert all((found[name] == expected[name]).all() for name in expected)
    assert not list(trained.glob("self-training-*/checkpoint-*"))


def test_an_interrupted_round_resumes(trained, place, small_archive, elsewhere, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "PRESENT", LOW)
    monkeypatch.setattr(pseudo_labels, "ABSENT", LOW / 2)
    settings = {"self_training": 2, "unlabelled": elsewhere, "num_train_epochs": 2, **ON_RECORDINGS}
    words = flags(small_archive, place / "stopped", place / "cache", **settings)
    step, steps = KenyaBirdsTrainer.training_step, []

    def stop_in_the_round(self, *args, **kwargs):
        if self.pseudo is not None and (self.state.epoch or 0) > 1.2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(KenyaBirdsTrainer, "training_step", stop_in_the_round)
    with pytest.raises(KeyboardInterrupt, match="resume with the same command"):
        train_hf.main(words)

    def count(self, *args, **kwargs):
        steps.append((self.pseudo is not None, self.state.global_step))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(KenyaBirdsTrainer, "training_step", count)
    shutil.copyfile(small_archive / "annotations.csv", elsewhere / "annotations.csv")  # no recording
    new = elsewhere / "new.wav"
    soundfile.write(new, np.random.default_rng(0).normal(0, 0.1, 40_000), 8000)
    with pytest.raises(UserError, match=rf"when this run was started \(1, such as {elsewhere.name}/new.wav\)"):
        train_hf.main([*words, "--resume_from_checkpoint", "true"])
    new.unlink()
    train_hf.main([*words, "--resume_from_checkpoint", "true"])
    assert steps[0][0]  # the training before is not repeated
    assert steps[0][1] > 0  # nor is the first epoch of the round
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained, place / "stopped"))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_a_round_of_another_model_is_neither_used_nor_resumed(trained, tmp_path):
    folder = shutil.copytree(trained / "self-training-1", tmp_path / "round")
    checkpoint = sorted(trained.glob("checkpoint-*"))[-1].name
    shutil.copytree(trained / checkpoint, folder / checkpoint)
    before = json.loads((folder / "round.json").read_text())["before"]
    assert self_training._begin_round(folder, before)
    assert (folder / checkpoint).exists()
    for _ in range(2):
        assert not self_training._begin_round(folder, before - 0.01)
    assert {path.name for path in folder.iterdir()} == {"start.json"}
    assert not self_training._begin_round(tmp_path / "new", before)


def test_a_lower_loss_on_validation_is_better(place, small_archive, elsewhere, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "PRESENT", LOW)
    settings = {"self_training": 1, "unlabelled": elsewhere, "num_train_epochs": 2, "metric_for_best_model": "loss"}
    folder = train(small_archive, place / "by_loss", place / "cache", **settings, **ON_RECORDINGS)
    (one,) = json.loads((folder / "training_summary.json").read_text())["self_training"]
    assert one["sure_windows"] > 0
    assert one["is_kept"] == (one["after"] < one["before"])


def test_rounds_need_the_best_epoch_of_training(place, small_archive, elsewhere):
    settings = {"self_training": 1, "unlabelled": elsewhere, "load_best_model_at_end": "false", **ON_RECORDINGS}
    with pytest.raises(UserError, match="only if validation is better: leave out --load_best_model_at_end"):
        Run(settings_of(flags(small_archive, place / "last", place / "cache", **settings)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"self_training": 1, "train_on": "recordings"}, "add --unlabelled FOLDER"),
        ({"self_training": 1, "unlabelled": "{sound}"}, "use --train_on recordings"),
        (
            {"self_training": 1, "unlabelled": "{sound}", "train_on": "recordings", "final_fit": "true"},
            "no validation",
        ),
        (
            {"self_training": 1, "unlabelled": "{sound}", "train_on": "recordings", "freeze_backbone": "true"},
            "this one is frozen",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(given, message, small_archive, elsewhere, tmp_path):
    given = {name: str(value).format(sound=elsewhere) for name, value in given.items()}
    with pytest.raises(UserError, match=message):
        settings_of(flags(small_archive, tmp_path / "out", tmp_path / "cache", **given))
