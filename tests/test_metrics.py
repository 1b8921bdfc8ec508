import numpy as np
import pytest

from kenya_birds.evaluation.metrics import ClassificationMetric, classification_metrics


def scores(predictions, references, config_name="default"):
    metric = ClassificationMetric(config_name=config_name, keep_in_memory=True)
    return metric.compute(predictions=predictions, references=references)


def test_macro_f1_worked_by_hand():
    # Class 0: precision 2/3, recall 1, F1 0.8. Class 1: precision 1, recall 1/2, F1 2/3.
    result = scores([0, 0, 0, 1], [0, 0, 1, 1])
    assert result["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert result["weighted_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert result["accuracy"] == 0.75
    assert result["classes"] == 2


def test_weighted_f1_weighs_by_clips():
    # Class 0 (3 clips) F1 = 2 * 1 * (2/3) / (5/3) = 0.8; class 1 (1 clip): precision 1/2, recall 1, F1 2/3.
    assert scores([0, 0, 1, 1], [0, 0, 0, 1])["weighted_f1"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)


def test_a_class_that_no_reference_has_is_left_out_but_its_prediction_counts_as_an_error():
    result = scores([2, 1, 1], [1, 1, 1])
    assert result["classes"] == 1
    # Precision 1, recall 2/3; class 2 does not enter as a zero.
    assert result["macro_f1"] == pytest.approx(0.8)


def test_a_class_that_is_never_predicted_counts_as_zero():
    assert scores([0, 0, 0], [0, 0, 1])["macro_f1"] == pytest.approx(0.4)


def test_multi_label_worked_by_hand():
    references = [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    predictions = [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    result = scores(predictions, references, "multi_label")
    # Class 0: F1 1. Class 1: precision 1, recall 1/2. Class 2 is in no reference.
    assert result["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["classes"] == 2


def test_logits_become_the_likeliest_class_or_every_class_above_one_half():
    logits = np.array([[2.0, 1.0, -1.0], [-1.0, 3.0, 0.5]])
    assert classification_metrics(logits, np.array([0, 1]), multi_label=False)["accuracy"] == 1
    assert classification_metrics(logits, np.array([[1, 1, 0], [0, 1, 1]]), multi_label=True)["accuracy"] == 1


def test_what_is_not_known_counts_neither_for_nor_against():
    logits = np.array([[1.0, 1.0], [1.0, -1.0]])
    known = classification_metrics(logits, np.array([[1, 0], [1, 0]]), multi_label=True)
    masked = classification_metrics(logits, np.array([[1, -100], [1, 0]]), multi_label=True)
    assert known["accuracy"] == 0.5
    assert masked["accuracy"] == 1


def test_references_without_any_class_are_refused():
    with pytest.raises(ValueError, match="no class"):
        scores([[0, 1]], [[0, 0]], "multi_label")
