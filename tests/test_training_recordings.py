"""No command judges a model on recordings that it, or a model that it was started from, was trained on."""

import json
import shutil

import pandas as pd
import pytest
import soundfile
from running import flags, settings_of
from test_evaluate import save_model

from kenya_birds.data.dataset import clips_builder
from kenya_birds.errors import UserError
from kenya_birds.evaluation.evaluation_report import format_metrics
from kenya_birds.experiments.cross_validation import CrossValidation
from kenya_birds.experiments.evaluate import evaluate_model
from kenya_birds.experiments.probe import TrainedRun
from kenya_birds.saved_models import SavedModel
from kenya_birds.training.training_recordings import TrainingRecordings, overlap_of, recordings_before
from kenya_birds.training.training_run import Run

pytestmark = pytest.mark.usefixtures("blank_figures")

SPLITS = pd.DataFrame(
    {"recording": ["caf\u00e9.WAV", "b.wav", "c.wav"], "split": ["train", "validation", "test"]}, dtype=object
)


def saved(folder, name="birds", starting_point="model"):
    folder.mkdir(exist_ok=True)
    return SavedModel(name, folder, starting_point)


# The record


def test_recordings_are_known_by_their_names_in_any_spelling_and_by_their_sound(tmp_path):
    TrainingRecordings.of_splits(SPLITS, {"caf\u00e9.WAV": "s-1", "c.wav": "s-3", "b.wav": None}).write(tmp_path)
    model = saved(tmp_path)
    overlap = overlap_of(
        model, {"cafe\u0301.wav": None, "renamed.flac": "s-1", "B.wav": None, "b.WAV": None, "x": "s-3"}
    )
    assert overlap.used_for == {"cafe\u0301.wav": "train", "renamed.flac": "train", "b.WAV": "validation"}
    assert overlap.describe() | {"note": ""} == {
        "is_known": True,
        "trained_on": 2,
        "chosen_with": 1,
        "recordings": 5,
        "note": "",
    }
    assert "was trained on 2 of these 5 recordings" in overlap.note()
    assert "chosen on 1 of these 5" in overlap.note()
    with pytest.raises(UserError, match=r"'birds' was trained on 2 and chosen with .* 1 of the 5 .*caf.*\. Do that"):
        overlap.refuse("birds", ["train", "validation"], "Do that")
    with pytest.raises(UserError, match=r"was chosen with .* 1 of the 5 recordings of this evaluation: b\.WAV\."):
        overlap.refuse("birds", ["validation"], "")
    others = overlap_of(model, {"c.wav": "s-3", "other.wav": "s-4"})
    assert others.note() == ""
    others.refuse("birds", ["train", "validation"], "")


def test_a_model_without_the_record_is_known_by_its_splits_and_one_without_these_not_at_all(tmp_path):
    SPLITS.to_csv(tmp_path / "splits.csv", index=False)
    assert overlap_of(saved(tmp_path), {"b.wav": "s", "c.wav": "s"}).used_for == {"b.wav": "validation"}
    overlap = overlap_of(saved(tmp_path / "empty"), {"b.wav": "s"})
    assert not overlap.describe()["is_known"]
    assert "The training recordings of the model are unknown" in overlap.note()
    overlap.refuse("birds", ["train", "validation"], "")


def test_what_a_model_was_started_from_counts_over_generations(tmp_path):
    first = saved(tmp_path / "first")
    TrainingRecordings.of_splits(SPLITS, {}).write(first.folder)
    own = pd.DataFrame({"recording": ["d.wav"], "split": ["train"]})
    second = saved(tmp_path / "second", starting_point="ann/birds@0123")
    third = saved(tmp_path / "third")
    for donor, model in ((first, second), (second, third)):
        theirs = TrainingRecordings.of_starting_model(donor)
        TrainingRecordings.of_splits(own, {}).and_those_of(theirs).write(model.folder)
    table = TrainingRecordings.read(third.folder).table
    assert table["model"].tolist() == ["", "ann/birds@0123", *["ann/birds@0123, from first"] * 3]
    assert overlap_of(third, {"caf\u00e9.WAV": None, "c.wav": None}).used_for == {"caf\u00e9.WAV": "train"}
    unknown = TrainingRecordings.of_starting_model(saved(tmp_path / "unknown"))
    fourth = saved(tmp_path / "fourth")
    TrainingRecordings.of_splits(own, {}).and_those_of(unknown).write(fourth.folder)
    assert "The training recordings of unknown are unknown" in overlap_of(fourth, {"x": None}).note()
    assert overlap_of(fourth, {"": None}).used_for == {}


def test_weights_in_a_models_folder_are_those_of_the_model(tmp_path):
    TrainingRecordings.of_splits(SPLITS, {}).write(saved(tmp_path / "birds").folder)
    for name in ("model.safetensors", "epoch_weights/step-3.safetensors"):
        theirs = recordings_before(str(tmp_path / "birds" / name), None)
        assert set(theirs.table["model"]) == {"birds"}
        assert theirs.overlap({"b.wav": None}).used_for == {"b.wav": "validation"}
    # Beside the table of a user, who divided an archive.
    SPLITS.to_csv(tmp_path / "splits.csv", index=False)
    assert recordings_before(str(tmp_path / "imagenet.safetensors"), None) is None


# Evaluation


@pytest.fixture(scope="module")
def builder(small_archive, cache):
    return clips_builder(small_archive, cache_dir=cache, min_annotations=8)


@pytest.fixture(scope="module")
def model(builder, tmp_path_factory):
    """A model that says that it was trained on the splits of the small archive."""
    folder = tmp_path_factory.mktemp("models") / "birds"
    save_model(folder, builder.classes)
    builder.splits.to_csv(folder / "splits.csv", index=False)
    fingerprints = builder.archive.fingerprints(builder.splits["recording"])
    TrainingRecordings.of_splits(builder.splits, fingerprints).write(folder)
    return folder


def evaluate(model, archive, output, cache, **settings):
    return evaluate_model(str(model), archive, output, cache_dir=cache, min_annotations=8, context_s=0.0, **settings)


def turned(splits):
    """The same recordings in other splits."""
    return splits.assign(split=splits["split"].map({"train": "test", "test": "train", "validation": "validation"}))


def test_a_table_that_tests_on_training_recordings_is_refused(model, small_archive, builder, cache, tmp_path):
    turned(builder.splits).to_csv(tmp_path / "other.csv", index=False)
    number = (builder.splits["split"] == "train").sum()
    for split, of in (("test", number), ("all", len(builder.splits))):
        settings = {} if split == "all" else {"splits_file": tmp_path / "other.csv"}
        with pytest.raises(UserError, match=rf"was trained on {number}.* of the {of} recordings of this evaluation"):
            evaluate(model, small_archive, tmp_path / "out", cache, split=split, **settings)
    assert not (tmp_path / "out").exists()


def test_renamed_recordings_are_recognised(model, small_archive, builder, cache, tmp_path):
    archive = shutil.copytree(small_archive, tmp_path / "archive")
    text = (archive / "annotations.csv").read_text()
    for number, name in enumerate(builder.splits["recording"]):
        path = archive / "soundscape_data" / name
        sound, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path.with_name(f"new{number}.wav"), sound, rate)
        text = text.replace(name, f"new{number}.wav")
        path.unlink()
    (archive / "annotations.csv").write_text(text)
    with pytest.raises(UserError, match=r"was trained on \d and chosen with .* 8 recordings .*: new\d\.wav"):
        evaluate(model, archive, tmp_path / "out", cache, split="all")


def test_training_and_validation_recordings_are_evaluated_when_asked_for_and_labelled(
    model, small_archive, cache, tmp_path
):
    told = evaluate(model, small_archive, tmp_path / "train", cache, split="train")
    overlap = json.loads((tmp_path / "train" / "metrics.json").read_text())["train"]["training_overlap"]
    assert overlap["trained_on"] == overlap["recordings"] == told["recordings"]
    assert "The model was trained on" in format_metrics(told)
    told = evaluate(model, small_archive, tmp_path / "validation", cache, split="validation")
    assert told["training_overlap"]["chosen_with"] == told["recordings"]
    assert "calibration or thresholds of the model were chosen on" in format_metrics(told)
    told = evaluate(model, small_archive, tmp_path / "test", cache)
    assert told["training_overlap"] == {
        "is_known": True,
        "trained_on": 0,
        "chosen_with": 0,
        "recordings": told["recordings"],
        "note": "",
    }


def test_all_recordings_of_another_archive_need_no_split(model, small_archive, cache, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    for name in ("splits.csv", "training_recordings.csv"):
        (other / name).unlink()
    told = evaluate(other, small_archive, tmp_path / "all", cache, split="all")
    assert told["recordings"] == 8
    assert not told["training_overlap"]["is_known"]
    assert "The training recordings of the model are unknown" in format_metrics(told)
    with pytest.raises(UserError, match="omit --splits_file or --split"):
        evaluate(other, small_archive, tmp_path / "no", cache, split="all", splits_file=model / "splits.csv")


def test_a_model_of_all_recordings_is_evaluated_on_them_only_as_training_recordings(
    model, small_archive, builder, cache, tmp_path
):
    final = shutil.copytree(model, tmp_path / "final")
    TrainingRecordings.of_splits(builder.splits.assign(split="train"), {}).write(final)
    (final / "training_summary.json").write_text('{"cross_validation": {}}')
    with pytest.raises(UserError, match="was trained on every recording of its archive"):
        evaluate(final, small_archive, tmp_path / "out", cache)
    with pytest.raises(UserError, match=r"trained on [2-7] of the [2-7] recordings"):
        evaluate(final, small_archive, tmp_path / "out", cache, splits_file=model / "splits.csv")
    told = evaluate(final, small_archive, tmp_path / "out", cache, split="train")
    assert told["training_overlap"]["trained_on"] == told["recordings"] == 8


# Training, and what stands beside it


def test_training_does_not_test_on_what_its_starting_model_was_trained_on(
    model, small_archive, builder, cache, tmp_path, caplog
):
    def words(**more):
        return settings_of(flags(small_archive, tmp_path / "run", cache, init_from=model, **more))

    turned(builder.splits).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UserError, match=r"was trained on \d of the \d recordings .* own splits.csv as --splits_file"):
        Run(words(splits_file=tmp_path / "other.csv"))
    with pytest.raises(UserError, match=r"was trained on \d and chosen with .* of the 8 recordings"):
        CrossValidation(words(folds=3))
    run = Run(words(splits_file=model / "splits.csv"))
    assert set(run.earlier.recordings.table["model"]) == {"birds"}
    exchanged = {"train": "validation", "validation": "train", "test": "test"}
    builder.splits.assign(split=builder.splits["split"].map(exchanged)).to_csv(tmp_path / "other.csv", index=False)
    caplog.clear()
    Run(words(splits_file=tmp_path / "other.csv"))
    assert "starting model was trained on" in caplog.text


def test_training_warns_where_its_settings_were_tuned_on_its_test_recordings(
    small_archive, builder, cache, tmp_path, caplog
):
    splits = builder.splits
    params, tested = tmp_path / "best.json", splits.loc[splits["split"] == "test", "recording"].tolist()
    run = Run(settings_of(flags(small_archive, tmp_path / "run", cache)))
    others = [name for name in splits["recording"] if name not in tested]
    sound = builder.archive.fingerprints(tested[:1])[tested[0]]
    for tuned_on, number in (
        (dict.fromkeys(others), 0),
        (dict.fromkeys([*others, tested[0]]), 1),
        ({"renamed.wav": sound}, 1),
    ):
        params.write_text(json.dumps({"recordings": tuned_on}))
        caplog.clear()
        run.earlier.warn_of_tuning(params, tested)
        assert (f"tuned on {number} of the {len(tested)} test recordings" in caplog.text) == bool(number)
    caplog.clear()
    CrossValidation(settings_of(flags(small_archive, tmp_path / "run", cache, folds=3)), params)
    assert "tuned on 1 of the 8 test recordings" in caplog.text


def test_a_run_that_began_with_its_test_recordings_cannot_stand_beside(builder, tmp_path):
    folds = pd.DataFrame({"recording": ["a", "b", "c"], "fold": [0, 1, 2]})
    run = TrainedRun(tmp_path, tmp_path / "folds.csv", folds, {}, None)
    for fold in range(3):
        (tmp_path / f"fold-{fold}").mkdir()
        part = {fold: "test", (fold + 1) % 3: "validation"}
        splits = folds.assign(split=[part.get(number, "train") for number in folds["fold"]])
        TrainingRecordings.of_splits(splits, {}).write(tmp_path / f"fold-{fold}")
    run.check_not_trained_on({"a": None, "b": None, "c": None})
    donor = pd.DataFrame({"recording": ["c"], "split": ["train"]})
    donor = TrainingRecordings(donor.assign(sound="", model="donor"))
    TrainingRecordings.of_splits(splits, {}).and_those_of(donor).write(tmp_path / "fold-2")
    with pytest.raises(UserError, match=r"fold-2' was trained on 1 of the 1 recordings"):
        run.check_not_trained_on({"a": None, "b": None, "c": None})
