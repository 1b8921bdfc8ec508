"""Cross-validation and the final fit: every recording tested once, stopped and gone on, a model of all recordings."""

import json
import re
import shutil
import signal

import filelock
import numpy as np
import pandas as pd
import pytest
from archives import edit
from running import SMALL, flags, run_script, settings_of, start, train, wait_until

import train_hf
from kenya_birds.errors import UserError
from kenya_birds.evaluation.evaluation_report import plain_metrics
from kenya_birds.evaluation.predictions import read_predictions
from kenya_birds.experiments.cross_validation import CrossValidation
from kenya_birds.experiments.results import format_folds
from kenya_birds.locks import LOCK_FILE
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.flags import parse_train_flags

SETTINGS = {"num_train_epochs": 2, "min_annotations": 8}

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def validated(small_archive, cache, tmp_path_factory):
    """A cross-validation of three folds, and the final fit."""
    folder = tmp_path_factory.mktemp("folds")
    return train(small_archive, folder / "birds", cache, folds=3, final_fit=True, **SETTINGS)


def read(path):
    return json.loads(path.read_text())


def test_every_recording_is_tested_once_by_a_model_that_has_not_heard_it(validated):
    folds = pd.read_csv(validated / "folds.csv")
    assert folds["recording"].is_unique
    tested = []
    for fold in range(3):
        splits = pd.read_csv(validated / f"fold-{fold}" / "splits.csv").set_index("recording")["split"]
        own = set(folds.loc[folds["fold"] == fold, "recording"])
        assert own == set(splits.index[splits == "test"])
        assert set(read_predictions(validated / f"fold-{fold}" / "predictions.parquet").recordings) == own
        tested += sorted(own)
    assert sorted(tested) == sorted(folds["recording"])
    assert sorted(set(read_predictions(validated / "predictions.parquet").recordings)) == sorted(tested)


def test_whole_recordings_of_all_folds_are_pooled(validated):
    pooled = read(validated / "metrics.json")["out_of_fold"]["whole_recordings"]
    folds = [read(path)["test"]["whole_recordings"] for path in sorted(validated.glob("fold-*/metrics.json"))]
    assert pooled["calls"] == sum(fold["calls"] for fold in folds)
    assert pooled["hours"] == pytest.approx(sum(fold["hours"] for fold in folds))
    false = [fold["metrics"]["false_per_h"]["value"] * fold["hours"] for fold in folds]
    assert pooled["metrics"]["false_per_h"]["value"] * pooled["hours"] == pytest.approx(sum(false))
    assert len(pd.read_csv(validated / "recording_counts.csv")) == len(pd.read_csv(validated / "folds.csv"))


def test_the_pooled_figures_are_those_of_the_out_of_fold_predictions(validated):
    told = read(validated / "metrics.json")["out_of_fold"]
    predictions = read_predictions(validated / "predictions.parquet")
    assert told["macro_f1"] == pytest.approx(plain_metrics(predictions.scores, predictions.references)["macro_f1"])
    assert told["intervals"]["macro_f1"][0] <= told["macro_f1"] <= told["intervals"]["macro_f1"][1]
    assert len(predictions.recordings) == sum(
        read(validated / f"fold-{fold}" / "metrics.json")["test"]["clips"] for fold in range(3)
    )


def test_mean_and_spread_are_those_of_the_folds(validated):
    results = read(validated / "cross_validation.json")
    scores = [read(validated / f"fold-{fold}" / "metrics.json")["test"]["macro_f1"] for fold in range(3)]
    assert [fold["macro_f1"] for fold in results["each"]] == scores
    assert results["mean"]["macro_f1"] == pytest.approx(np.mean(scores))
    assert results["sd"]["macro_f1"] == pytest.approx(np.std(scores, ddof=1))


def test_the_log_of_multi_label_folds_begins_with_average_precision():
    folds = [{"cmap": 0.6, "macro_f1": 0.0}, {"cmap": 0.8, "macro_f1": 0.0}, {"cmap": None, "macro_f1": 0.0}]
    assert format_folds(folds, multi_label=True).splitlines() == [
        "mean average precision of 3 folds: mean 0.7000, standard deviation 0.1414 (0.6000, 0.8000)",
        "macro F1 at a score of 0.5 of 3 folds: mean 0.0000, standard deviation 0.0000 (0.0000, 0.0000, 0.0000)",
    ]
    assert format_folds(folds, multi_label=False).startswith("macro F1 of 3 folds: mean 0.0000, standard")


def test_thresholds_of_the_table_are_judged_by_what_each_fold_reported(validated):
    predictions = read_predictions(validated / "predictions.parquet")
    reported = np.zeros_like(predictions.scores, dtype=bool)
    folds = pd.read_csv(validated / "folds.csv").set_index("recording")["fold"]
    for row, recording in enumerate(predictions.recordings):
        own = read(validated / f"fold-{folds[recording]}" / "thresholds.json")["species"]
        cut = [np.inf if own[code] is None else own[code] for code in predictions.classes]
        reported[row] = predictions.scores[row] >= cut
    hits = (reported & (predictions.targets == 1)).sum(axis=0)
    table = pd.read_csv(validated / "per_species.csv")
    np.testing.assert_allclose(table["recall_at_threshold"], hits / table["n"], atol=1e-4)


def test_the_final_model_is_trained_on_all_recordings_for_the_median_best_epoch(validated):
    splits = pd.read_csv(validated / "splits.csv")
    assert set(splits["split"]) == {"train"}
    assert set(splits["recording"]) == set(pd.read_csv(validated / "folds.csv")["recording"])
    summary, results = read(validated / "training_summary.json"), read(validated / "cross_validation.json")
    assert summary["clips_per_split"] == {"train": read(validated / "metrics.json")["out_of_fold"]["clips"]}
    assert results["median_best_epoch"] == np.median([fold["best_epoch"] for fold in results["each"]])
    assert summary["result"]["epochs"] == pytest.approx(results["median_best_epoch"], abs=0.15)
    model, _ = load_classifier(find_model(str(validated)))
    assert model.config.logit_scale == results["calibration"]["scale"]
    assert list((validated / "final-fit").glob("checkpoint-*"))


def test_the_card_says_whose_figures_these_are(validated):
    card = (validated / "README.md").read_text()
    assert "On the whole recordings, out of fold (" in card
    assert "thresholds of each fold's model" in card
    told = read(validated / "metrics.json")
    assert "These metrics come from cross-validation" in card
    assert "name: Macro F1 (cross-validation)" in card
    low, high = told["out_of_fold"]["intervals"]["macro_f1"]
    pooled, mean, sd = (told[part]["macro_f1"] for part in ("out_of_fold", "mean_of_folds", "sd_of_folds"))
    assert f"| Macro F1 | {pooled:.3f} | {low:.3f} to {high:.3f} | {mean:.3f} | {sd:.3f} |" in card
    assert "None" not in re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert "on the test split" not in card


def test_a_model_of_all_recordings_is_not_evaluated_on_them(validated, small_archive, tmp_path):
    from kenya_birds.experiments.evaluate import evaluate_model

    with pytest.raises(UserError, match=r"was trained on every recording.* --splits_file"):
        evaluate_model(str(validated), small_archive, tmp_path / "again")


@pytest.mark.usefixtures("forked_check")
def test_the_final_model_can_be_published(validated):
    result = run_script("push_model.py", "--model_dir", validated, "--repo_id", "ann/birds", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "fold-" not in result.stdout
    assert "folds.csv" in result.stdout


def test_its_clips_are_published_with_the_splits_of_the_first_fold(validated, small_archive):
    from kenya_birds.publishing.clips_dataset import model_clips_builder

    splits = model_clips_builder(validated, small_archive).splits.set_index("recording")["split"]
    first = pd.read_csv(validated / "fold-0" / "splits.csv").set_index("recording")["split"]
    assert splits.to_dict() == first.to_dict()


def test_going_on_does_not_repeat_what_is_done(validated, small_archive, cache, tmp_path):
    """A fold that is lost is run again, from its start, and gives what it gave; the others are left alone."""
    folder = shutil.copytree(validated, tmp_path / "birds")
    (folder / "fold-1" / "logits.npz").unlink()
    (folder / "fold-1" / "runs").mkdir()  # as TensorBoard leaves it
    (folder / "fold-0" / "checkpoint-6").mkdir()  # as a run leaves it that was killed at the end of the fold
    for name in ("training_summary.json", "model.safetensors", "README.md"):
        (folder / name).unlink()
    untouched = (folder / "fold-0" / "model.safetensors").stat().st_mtime_ns
    train(
        small_archive,
        folder,
        cache,
        folds=3,
        final_fit=True,
        resume_from_checkpoint="true",
        **SETTINGS,
    )
    assert (folder / "fold-0" / "model.safetensors").stat().st_mtime_ns == untouched
    assert not (folder / "fold-0" / "checkpoint-6").exists()
    for name in ("metrics.json", "per_species.csv", "thresholds.json", "folds.csv"):
        assert (folder / name).read_text() == (validated / name).read_text()
    assert (folder / "model.safetensors").read_bytes() == (validated / "model.safetensors").read_bytes()


def test_a_killed_cross_validation_goes_on_at_the_fold_that_was_running(validated, small_archive, cache, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(validated / "fold-0", folder / "fold-0")
    for name in ("cross_validation.json", "folds.csv", "run_settings.json"):
        shutil.copy(validated / name, folder)
    settings = {**SETTINGS, "folds": 3, "resume_from_checkpoint": "true"}
    words = flags(small_archive, folder, cache, **settings)
    process = start(train_hf.main, words)
    wait_until(lambda: list(folder.glob("fold-1/checkpoint-*/trainer_state.json")) or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "killed before its end"
    assert not (folder / "fold-2").exists()
    done = (folder / "fold-0" / "model.safetensors").stat().st_mtime_ns
    train_hf.main(words)
    assert (folder / "fold-0" / "model.safetensors").stat().st_mtime_ns == done
    again, before = read(folder / "metrics.json"), read(validated / "metrics.json")
    assert again["out_of_fold"]["macro_f1"] == pytest.approx(before["out_of_fold"]["macro_f1"], abs=0.01)
    assert not (folder / "README.md").exists(), "without a final fit there is no model to describe"


def refused(match, **settings):
    settings = {**SMALL, **SETTINGS, "output_dir": "nowhere", **settings}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with pytest.raises(UserError, match=match):
        train_hf.main(words)


def test_what_cannot_be_cross_validated_is_refused(small_archive, cache, validated, tmp_path):
    here = {"data_dir": small_archive, "cache_dir": cache, "output_dir": tmp_path / "run"}
    refused("folds is 2: expected 3 or more", **here, folds=2)
    refused("expected 2 to 8", **here, folds=9)
    refused("fold is 1 and a cross-validation runs every fold", **here, folds=3, fold=1)
    refused("leave out --eval_strategy no", **here, folds=3, eval_strategy="no", load_best_model_at_end=False)
    refused("is a table of splits", **here, folds=3, splits_file=validated / "fold-0" / "splits.csv")
    refused("folds is 4, but .* has 3 folds", **here, folds=4, splits_file=validated / "folds.csv")
    refused("no cross-validation to resume in", **here, folds=3, resume_from_checkpoint="true")
    assert not (tmp_path / "run").exists()


def test_another_cross_validation_is_not_resumed(small_archive, cache, validated, tmp_path, monkeypatch):
    here = {"data_dir": small_archive, "cache_dir": cache, "output_dir": validated}
    refused("exists and is not an empty folder", **here, folds=3)
    goes_on = {**here, "resume_from_checkpoint": "true"}
    with monkeypatch.context() as patch:
        patch.setattr("kenya_birds.training.training_run.clips_builder", None)  # the archive is not read
        refused("learning_rate was 0.003 and is 0.001 now", **{**goes_on, "learning_rate": 1e-3}, folds=3)
        refused("split_seed was 42 and is 3 now", **goes_on, folds=3, split_seed=3)
    refused("folds was 3 and is 4 now", **goes_on, folds=4)
    refused("recordings are in different folds now", **goes_on, folds=3, splits_file=other_folds(validated, tmp_path))
    refused(r"no checkpoint .*to resume a cross-validation, add --folds", **goes_on)
    archive = shutil.copytree(small_archive, tmp_path / "archive")
    edit(archive / "annotations.csv", "\n", "\n\n")  # the same annotations, and yet other bytes
    refused("annotations.csv has changed since then", **{**goes_on, "data_dir": archive}, folds=3)


def other_folds(validated, tmp_path):
    table = pd.read_csv(validated / "folds.csv")
    table["fold"] = (table["fold"] + 1) % 3
    table.to_csv(tmp_path / "other.csv", index=False)
    return tmp_path / "other.csv"


def test_a_cross_validation_replaces_no_file_of_others_and_shares_its_folder_with_nobody(
    small_archive, cache, validated, tmp_path
):
    folder = shutil.copytree(validated, tmp_path / "birds")
    goes_on = {"data_dir": small_archive, "cache_dir": cache, "output_dir": folder, "folds": 3}
    goes_on["resume_from_checkpoint"] = "true"
    with filelock.FileLock(folder / LOCK_FILE):
        refused("another run is writing to", **goes_on)
    (folder / "fold-1" / "logits.npz").unlink()
    (folder / "fold-1" / "thresholds.json").write_text("checked by me")
    refused(r"fold-1/thresholds.json was changed since training wrote it", **goes_on)
    assert (folder / "fold-1" / "thresholds.json").read_text() == "checked by me"
    (folder / "README.md").write_text("mine")
    refused("README.md was changed since training wrote it", **goes_on)
    assert (folder / "README.md").read_text() == "mine"


def test_of_a_cross_validation_that_fails_before_training_nothing_is_left(small_archive, cache, validated, tmp_path):
    words = flags(small_archive, tmp_path / "run", cache, folds=3, **SETTINGS)
    planned = CrossValidation(settings_of(words))
    planned.__enter__()
    assert (tmp_path / "run" / "folds.csv").is_file()
    planned.__exit__(UserError, UserError("no clip can be read"), None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("last", ["run_settings.json", "folds.csv", "cross_validation.json.part"])
def test_a_cross_validation_that_was_killed_at_its_start_starts_again(small_archive, cache, validated, tmp_path, last):
    words = flags(small_archive, tmp_path / "run", cache, folds=3, **SETTINGS)
    names = ["run_settings.json", "folds.csv", "cross_validation.json.part"]
    (tmp_path / "run").mkdir()
    for name in names[: names.index(last) + 1]:
        (tmp_path / "run" / name).write_text("")
    with CrossValidation(parse_train_flags(words).settings()) as planned:
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "folds.csv"), planned.table)
        assert read(tmp_path / "run" / "cross_validation.json")["folds"] == 3
    (tmp_path / "run" / "cross_validation.json").unlink()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        CrossValidation(settings_of(words))


def test_a_table_of_folds_decides(small_archive, cache, validated, tmp_path):
    recordings = sorted(pd.read_csv(validated / "folds.csv")["recording"])
    table = pd.DataFrame({"recording": recordings, "fold": [number % 4 for number in range(len(recordings))]})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "folds.csv", index=False)
    words = flags(
        small_archive,
        tmp_path / "run",
        cache,
        splits_file=tmp_path / "folds.csv",
        final_fit=True,
        **SETTINGS,
    )
    planned = CrossValidation(settings_of(words))
    assert planned.folds == 4
    pd.testing.assert_frame_equal(planned.table, table, check_dtype=False)
