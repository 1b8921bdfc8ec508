"""The table of species: its means are the metrics, and what is not defined is empty."""

import numpy as np
import pandas as pd
import pytest
from predicting import predictions_of

from kenya_birds.evaluation.evaluation_report import species_table
from kenya_birds.evaluation.metrics import evaluation_metrics
from kenya_birds.evaluation.predictions import Predictions
from kenya_birds.evaluation.thresholds import Thresholds


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_means_of_the_columns_are_the_metrics(multi_label):
    predictions = predictions_of(multi_label=multi_label)
    table = species_table(predictions)
    metrics = evaluation_metrics(predictions.scores, predictions.references)
    assert table["f1"].mean() == pytest.approx(metrics["macro_f1"])
    assert (table["f1"] * table["n"]).sum() / table["n"].sum() == pytest.approx(metrics["weighted_f1"])
    assert table["ap"].mean() == pytest.approx(metrics["cmap"])
    assert table["auroc"].mean() == pytest.approx(metrics["auroc"])
    assert table["threshold"].isna().all()
    assert table["n_train"].isna().all()


def small():
    scores = np.array([[0.7, 0.2, 0.05, 0.05], [0.6, 0.3, 0.05, 0.05], [0.1, 0.8, 0.05, 0.05], [0.9, 0.1, 0, 0]])
    names, nothing = np.array(["r"] * 4), np.zeros(4)
    return Predictions(["a", "b", "c", "d"], scores, np.array([0, 1, 1, 2]), names, nothing, nothing)


def test_a_row_worked_by_hand():
    thresholds = Thresholds(None, 0.5, {"a": 0.5, "b": 0.25, "c": None})
    table = species_table(small(), common_names={"a": "Ash"}, train_counts=[5, 3, 2, 0], thresholds=thresholds)
    a, b, c, d = (row for _, row in table.iterrows())
    assert (a["common_name"], b["common_name"]) == ("Ash", "")
    assert table["n"].tolist() == [1, 2, 1, 0]
    assert table["n_train"].tolist() == [5, 3, 2, 0]
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((1 / 3, 1, 0.5))
    assert (b["precision"], b["recall"], b["f1"]) == pytest.approx((1, 0.5, 2 / 3))
    assert (b["precision_at_threshold"], b["recall_at_threshold"], b["f1_at_threshold"]) == (1, 1, 1)
    assert (a["precision_at_threshold"], a["f1_at_threshold"]) == pytest.approx((1 / 3, 0.5))
    assert (b["most_confused_with"], b["confused_share"]) == ("a", 0.5)
    assert a["most_confused_with"] == ""
    # Never predicted, but there: F1 is 0. Not there: no score at all.
    assert np.isnan(c["precision"])
    assert (c["recall"], c["f1"]) == (0, 0)
    assert pd.isna(c[["threshold", "precision_at_threshold", "recall_at_threshold", "f1_at_threshold"]]).all()
    assert pd.isna(d[["precision", "recall", "f1", "ap", "auroc", "threshold", "confused_share"]]).all()


def test_what_is_not_known_does_not_count_in_a_row():
    scores, names, nothing = np.array([[0.9, 0], [0.9, 0], [0.1, 0]]), np.array(["r"] * 3), np.zeros(3)
    references = np.array([[1, 0], [-100, 1], [0, 0]])
    row = species_table(Predictions(["a", "b"], scores, references, names, nothing, nothing)).iloc[0]
    assert (row["n"], row["precision"], row["auroc"]) == (1, 1, 1)
