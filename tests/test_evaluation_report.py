"""The files of an evaluation, and that they can be made again from the predictions alone."""

import json

import numpy as np
import pandas as pd
import pytest
from predicting import multi_label_logits, single_label_logits

from kenya_birds.evaluation.calibration import Calibration, fit_calibration
from kenya_birds.evaluation.evaluation_report import EvaluationContext, format_metrics, write_evaluation, write_report
from kenya_birds.evaluation.intervals import METRICS
from kenya_birds.evaluation.metrics import evaluation_metrics, probabilities
from kenya_birds.evaluation.predictions import Predictions, read_predictions
from kenya_birds.evaluation.thresholds import Thresholds, choose_thresholds

CLASSES = [f"bird{index}" for index in range(8)]
FILES = {
    "metrics.json",
    "per_species.csv",
    "predictions.parquet",
    "thresholds.json",
    "confusion_matrix.png",
    "precision_recall.png",
    "reliability.png",
    "f1_by_training_clips.png",
}


def evaluate(folder, multi_label=False, one_recording=False, **settings):
    case = multi_label_logits if multi_label else single_label_logits
    logits, references, recordings = case(clips=800, sharpness=4.0)
    fit, rest = slice(0, 400), slice(400, None)
    calibration = fit_calibration(logits[fit], references[fit])
    scores = probabilities(calibration.apply(logits[fit]), multi_label=multi_label)
    time_s = np.arange(400.0)
    names = ["one.flac"] * 400 if one_recording else recordings[rest]
    metrics = write_evaluation(
        folder,
        logits[rest],
        references[rest],
        {"recording": names, "start_s": time_s, "center_s": time_s + 1.5},
        CLASSES,
        calibration=settings.pop("calibration", calibration),
        thresholds=choose_thresholds(scores, references[fit], CLASSES),
        context=EvaluationContext({"bird0": "Ash Bird"}, range(1, 9), **settings),
    )
    return metrics, logits, references


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Evaluations with and without several labels a clip: the folder, the metrics, the logits and the references."""
    folders = {multi_label: tmp_path_factory.mktemp("evaluated") / "new" / "folder" for multi_label in (False, True)}
    return {multi_label: (folder, *evaluate(folder, multi_label)) for multi_label, folder in folders.items()}


@pytest.mark.parametrize("multi_label", [False, True])
def test_an_evaluation_leaves_its_files_and_returns_its_metrics(evaluated, multi_label):
    folder, metrics, logits, references = evaluated[multi_label]
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "metrics.json").read_text()) == {"test": metrics}
    assert set(metrics["intervals"]) == set(METRICS)
    assert metrics["intervals"]["macro_f1"][0] < metrics["macro_f1"]
    assert metrics["ece"] < metrics["ece_before_calibration"]
    raw = evaluation_metrics(probabilities(logits[400:], multi_label=multi_label), references[400:])
    assert metrics["ece_before_calibration"] == raw["ece"]
    if not multi_label:
        assert metrics["macro_f1"] == raw["macro_f1"]
    table = pd.read_csv(folder / "per_species.csv")
    assert table["f1"].mean() == pytest.approx(metrics["macro_f1"], abs=1e-4)
    assert table["common_name"][0] == "Ash Bird"
    assert table["n_train"].tolist() == list(range(1, 9))
    assert (metrics["clips"], metrics["recordings"]) == (400, 10)


@pytest.mark.parametrize("multi_label", [False, True])
def test_an_evaluation_is_repeated_from_its_predictions_and_thresholds(evaluated, tmp_path, multi_label):
    folder, metrics, *_ = evaluated[multi_label]
    predictions = read_predictions(folder / "predictions.parquet")
    again = write_report(
        tmp_path / "again",
        predictions,
        thresholds=Thresholds.read(folder / "thresholds.json"),
        context=EvaluationContext({"bird0": "Ash Bird"}),
    )
    assert {name: again[name] for name in (*METRICS, "intervals", "not_scored")} == {
        name: metrics[name] for name in (*METRICS, "intervals", "not_scored")
    }
    assert again["ece_before_calibration"] is None
    confusion = [(where / "confusion_matrix.png").read_bytes() for where in (folder, tmp_path / "again")]
    assert confusion[0] == confusion[1]


@pytest.mark.parametrize(
    ("multi_label", "with_thresholds", "column", "heading"),
    [
        (False, True, "f1", "F1 of each species"),
        (True, True, "f1_at_threshold", "F1 at the decision thresholds of each species"),
        (True, False, "f1", "F1 at a score of 0.5 of each species"),
    ],
)
def test_the_picture_of_f1_shows_the_decisions_of_the_model(
    evaluated, tmp_path, monkeypatch, multi_label, with_thresholds, column, heading
):
    from kenya_birds.evaluation import figures

    folder = evaluated[multi_label][0]
    drawn = {}
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.update({path.name: figure}))
    thresholds = Thresholds.read(folder / "thresholds.json")
    write_report(
        tmp_path,
        read_predictions(folder / "predictions.parquet"),
        thresholds=thresholds if with_thresholds else None,
        context=EvaluationContext(train_counts=range(1, 9)),
    )
    figure = drawn["f1_by_training_clips.png"]
    shown = figure.axes[0].collections[0].get_offsets()[:, 1]
    assert shown.tolist() == pytest.approx(pd.read_csv(tmp_path / "per_species.csv")[column].dropna(), abs=1e-4)
    assert figure.get_suptitle().startswith(heading)


def test_the_same_seed_gives_the_same_files(evaluated, tmp_path):
    folder, first, *_ = evaluated[False]
    second, *_ = evaluate(tmp_path)
    assert first == second
    for name in FILES - {"predictions.parquet"}:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_another_seed_gives_other_intervals(evaluated, tmp_path, blank_pictures):
    metrics, *_ = evaluate(tmp_path, seed=1)
    assert metrics["intervals"] != evaluated[False][1]["intervals"]


def test_one_recording_has_no_intervals_and_is_told(tmp_path, caplog, blank_pictures):
    metrics, *_ = evaluate(tmp_path, one_recording=True, split="validation")
    assert set(metrics["intervals"].values()) == {None}
    assert "validation has only one recording" in caplog.text
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"validation"}


def test_classes_that_cannot_be_scored_are_listed(tmp_path):
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    references = np.array([[1, 1, 0], [1, 0, 0]])
    inputs = {"recording": ["x", "y"], "start_s": [0.0, 0.0], "center_s": [1.5, 1.5]}, ["a", "b", "c"]
    metrics = write_evaluation(tmp_path, logits, references, *inputs)
    assert metrics["not_scored"] == {"no_clip": ["c"], "no_auroc": ["a", "c"]}
    assert metrics["classes"] == 2
    metrics = write_evaluation(tmp_path, logits, np.array([0, 0]), *inputs)
    assert metrics["auroc"] is None
    assert "not defined" in format_metrics(metrics)


def test_an_identity_calibration_changes_nothing(tmp_path, blank_pictures):
    metrics, *_ = evaluate(tmp_path, calibration=Calibration())
    assert metrics["ece"] == metrics["ece_before_calibration"]


def test_metrics_are_told_with_their_intervals(evaluated):
    _, metrics, *_ = evaluated[False]
    lines = format_metrics(metrics).splitlines()
    assert lines[0] == "400 clips of 10 recordings, 8 classes in them"
    assert lines[1].startswith(f"macro_f1       {metrics['macro_f1']:.4f}  ({metrics['intervals']['macro_f1'][0]:.4f}")


def test_misses_without_an_absent_class_are_in_the_last_column(tmp_path, monkeypatch):
    """Every clip contains both classes and none is found: there is nothing that they are taken for."""
    from kenya_birds.evaluation import figures

    drawn = {}
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.update({path.name: figure}))
    time_s, both = np.zeros(4), np.ones((4, 2), dtype=int)
    predictions = Predictions(["a", "b"], np.full((4, 2), 0.2), both, np.array(list("rrss")), time_s, time_s)
    assert write_report(tmp_path, predictions)["macro_f1"] == 0
    axes = drawn["confusion_matrix.png"].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "nothing reported instead"]
    assert axes.images[0].get_array().tolist() == [[0, 0, 1], [0, 0, 1]]
    assert "precision_recall.png" in drawn


@pytest.mark.parametrize(
    ("thresholds", "shares", "confused", "rule"),
    [
        (None, [[0, 0, 1], [0, 1, 0]], ["", ""], "above 0.5"),
        (Thresholds(None, 0.5, {"a": 0.3, "b": 0.05}), [[0, 1, 0], [0, 1, 0]], ["b", ""], "reaches its decision"),
        (Thresholds(None, 0.5, {"a": None, "b": None}), [[0, 0, 1], [0, 0, 1]], ["", ""], "reaches its decision"),
    ],
)
def test_only_what_the_model_reports_is_confused(tmp_path, monkeypatch, thresholds, shares, confused, rule):
    """In the first clip the model is right about what is most probable, but b may be reported too."""
    from kenya_birds.evaluation import figures

    drawn = {}
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.update({path.name: figure}))
    scores, references, time_s = np.array([[0.2, 0.1], [0.1, 0.9]]), np.eye(2, dtype=int), np.zeros(2)
    predictions = Predictions(["a", "b"], scores, references, np.array(["r", "s"]), time_s, time_s)
    write_report(tmp_path, predictions, thresholds=thresholds)
    axes = drawn["confusion_matrix.png"].axes[0]
    assert axes.images[0].get_array().tolist() == shares
    assert rule in axes.get_title(loc="left").replace("\n", " ")
    table = pd.read_csv(tmp_path / "per_species.csv", keep_default_na=False)
    assert table["most_confused_with"].tolist() == confused
