"""Predictions as a file: what pandas opens, and what gives every figure again."""

import numpy as np
import pandas as pd
import pytest
from predicting import predictions_of

from kenya_birds.data.archive import RESERVED_CODES
from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import evaluation_metrics
from kenya_birds.evaluation.predictions import (
    CLIP_COLUMNS,
    LABEL_COLUMNS,
    Predictions,
    read_predictions,
    write_predictions,
)


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_come_back_as_they_were(tmp_path, multi_label):
    predictions = predictions_of(multi_label=multi_label)
    write_predictions(predictions, tmp_path / "predictions.parquet")
    found = read_predictions(tmp_path / "predictions.parquet")
    assert found.classes == predictions.classes
    for name in ("scores", "references", "recordings", "start_s", "center_s"):
        np.testing.assert_array_equal(getattr(found, name), getattr(predictions, name), err_msg=name)
    assert evaluation_metrics(found.scores, found.references) == evaluation_metrics(
        predictions.scores, predictions.references
    )
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]


def test_pandas_opens_the_file_with_a_column_for_each_code(tmp_path):
    predictions = predictions_of(classes=3)
    write_predictions(predictions, tmp_path / "predictions.parquet")
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table.columns) == ["recording", "start_s", "center_s", "label", "bird0", "bird1", "bird2"]
    np.testing.assert_allclose(table[["bird0", "bird1", "bird2"]].sum(axis=1), 1)
    assert (table["label"] == np.array(predictions.classes)[predictions.references]).all()


def test_several_labels_are_a_list_of_codes_and_unknown_birds_are_told(tmp_path):
    references = np.array([[1, 0, 1], [0, 0, 0], [-100, 1, -100]])
    nothing = np.zeros(3)
    write_predictions(
        Predictions(["a", "b", "c"], np.full((3, 3), 0.5), references, np.array(["r"] * 3), nothing, nothing),
        tmp_path / "p.parquet",
    )
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert [list(codes) for codes in table["labels"]] == [["a", "c"], [], ["b"]]
    assert table["unknown"].tolist() == [False, False, True]


def test_the_names_of_all_other_columns_are_reserved():
    assert {*CLIP_COLUMNS, *LABEL_COLUMNS} <= RESERVED_CODES


def test_a_code_that_is_the_name_of_another_column_is_refused(tmp_path):
    predictions = predictions_of(classes=2)
    predictions.classes[1] = "label"
    with pytest.raises(UserError, match="codes label are names of other columns"):
        write_predictions(predictions, tmp_path / "p.parquet")


def test_another_file_is_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("no Parquet")
    pd.DataFrame({"recording": ["r"]}).to_parquet(tmp_path / "other.parquet")
    for name in ("text", "other", "missing"):
        with pytest.raises(UserError, match=rf"{name}\.parquet is not a predictions file"):
            read_predictions(tmp_path / f"{name}.parquet")


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores has the shape \(2, 2\)"):
        Predictions(["a"], np.zeros((2, 2)), np.zeros(2), np.array(["r", "r"]), np.zeros(2), np.zeros(2))


def test_confusions_count_what_each_class_was_taken_for():
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])
    nothing = np.zeros(3)
    single = Predictions(["a", "b", "c"], scores, np.array([0, 1, 1]), np.array(["r"] * 3), nothing, nothing)
    np.testing.assert_array_equal(single.confusions(), [[1, 0, 0], [0, 1, 1], [0, 0, 0]])


def test_confusions_of_several_labels_go_to_what_is_reported_and_not_in_the_clip():
    # First clip: a is found, b is missed; c, louder, is in it too, and d is too quiet. Second: b is missed, c and d
    # are reported but not known to be absent. Third: b is missed, a and d are reported.
    scores = np.array([[0.8, 0.3, 0.9, 0.4], [0.2, 0.4, 0.9, 0.9], [0.9, 0.1, 0.1, 0.6]])
    references = np.array([[1, 1, 1, 0], [0, 1, -100, -100], [0, 1, 0, 0]])
    nothing = np.zeros(3)
    multi = Predictions(list("abcd"), scores, references, np.array(["r"] * 3), nothing, nothing)
    expected = [[1, 0, 0, 0, 0], [1, 0, 0, 0, 2], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(multi.confusions(), expected)
    # At thresholds: d is reported from 0.4 on, a never, b from 0.35 on.
    reported = scores >= [np.inf, 0.35, 0.5, 0.4]
    expected = [[0, 0, 0, 1, 0], [0, 1, 0, 2, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(multi.confusions(reported), expected)
