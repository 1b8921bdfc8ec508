import numpy as np
import pytest
import torch

from kenya_birds.evaluation.classification_metric import ClassificationMetric
from kenya_birds.evaluation.metrics import (
    MASKED,
    aurocs,
    average_precisions,
    class_targets,
    classification_metrics,
    evaluation_metrics,
    expected_calibration_error,
    probabilities,
    top_k_hits,
)
from kenya_birds.model import modeling_kenya_birds


def test_the_model_masks_the_same_targets_as_the_metrics():
    assert modeling_kenya_birds.MASKED == MASKED


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


def test_one_species_worked_by_hand():
    # Precision 2/3, recall 1/2. scikit-learn takes such a column for class ids, and would score the class 0.
    result = scores([[1], [1], [0], [0], [1]], [[1], [1], [1], [1], [0]], "multi_label")
    assert result["macro_f1"] == pytest.approx(4 / 7)
    assert result["weighted_f1"] == pytest.approx(4 / 7)
    assert (result["accuracy"], result["classes"]) == (0.4, 1)


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


# All metrics of an evaluation


def single(clips=300, classes=7, seed=0):
    """Probabilities and class ids; every class occurs."""
    rng = np.random.default_rng(seed)
    references = rng.permutation(np.arange(clips) % classes)
    logits = rng.normal(size=(clips, classes)) + 1.5 * np.eye(classes)[references]
    return probabilities(logits, multi_label=False), references


def multi(clips=300, classes=7, seed=0, unknown=0.2):
    """Probabilities and a matrix of ones, zeros and -100."""
    rng = np.random.default_rng(seed)
    references = (rng.random((clips, classes)) < 0.2).astype(int)
    logits = rng.normal(size=(clips, classes)) + 2 * references - 1
    return probabilities(logits, multi_label=True), np.where(rng.random(references.shape) < unknown, -100, references)


def test_probabilities_are_softmax_or_logistic():
    logits = np.log([[1.0, 3.0]])
    np.testing.assert_allclose(probabilities(logits, multi_label=False), [[0.25, 0.75]])
    np.testing.assert_allclose(probabilities(logits, multi_label=True), [[0.5, 0.75]])


def test_sure_scores_do_not_become_ties():
    logits = np.array([[20.0, 0.0], [25.0, 0.0]], dtype=np.float32)
    assert len(np.unique(probabilities(logits, multi_label=False)[:, 0])) == 2


def test_average_precision_worked_by_hand():
    # Ranked: hit, miss, hit, miss: precision 1 at the first hit, 2/3 at the second.
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    np.testing.assert_allclose(average_precisions(scores, np.array([[1], [0], [1], [0]])), [(1 + 2 / 3) / 2])


def test_equal_scores_are_one_step_of_average_precision_and_half_a_pair_of_auroc():
    scores, targets = np.full((4, 1), 0.3), np.array([[1], [0], [0], [0]])
    np.testing.assert_allclose(average_precisions(scores, targets), [0.25])
    np.testing.assert_allclose(aurocs(scores, targets), [0.5])


def test_auroc_worked_by_hand():
    # Pairs (hit, miss): 0.9 above both, 0.4 above 0.1 and below 0.6: 3 of 4.
    scores = np.array([[0.9], [0.6], [0.4], [0.1]])
    np.testing.assert_allclose(aurocs(scores, np.array([[1], [0], [1], [0]])), [0.75])


def test_a_class_without_clips_has_no_average_precision_and_one_without_others_no_auroc():
    scores = np.array([[0.9, 0.2, 0.5], [0.8, 0.1, 0.4]])
    targets = np.array([[1, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(average_precisions(scores, targets), [1, np.nan, 1])
    np.testing.assert_array_equal(aurocs(scores, targets), [np.nan, np.nan, 1])


def test_elements_that_are_not_known_leave_average_precision_and_auroc():
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    targets = np.array([[-100], [1], [0], [-100]])
    np.testing.assert_array_equal(average_precisions(scores, targets), [1])
    np.testing.assert_array_equal(aurocs(scores, targets), [1])


def test_top_k_is_a_hit_when_any_label_of_the_clip_is_among_the_best():
    scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    targets = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [-100, 1, -100]])
    # The third clip has no bird; in the fourth, it is not known whether the best is there.
    np.testing.assert_array_equal(top_k_hits(scores, targets, 1), [1, 0, np.nan, 1])
    np.testing.assert_array_equal(top_k_hits(scores, targets, 2), [1, 1, np.nan, 1])
    np.testing.assert_array_equal(top_k_hits(scores, targets, 5), [1, 1, np.nan, 1])


def test_of_equally_likely_classes_the_first_is_the_top():
    targets = class_targets(np.array([0, 1]), 2)
    np.testing.assert_array_equal(top_k_hits(np.full((2, 2), 0.5), targets, 1), [1, 0])


def test_expected_calibration_error_worked_by_hand():
    # Two bins: in the lower confidence 0.3 and nothing right, in the upper 0.9 and two thirds right.
    confidences, outcomes = np.array([0.3, 0.9, 0.9, 0.9]), np.array([0, 1, 1, 0])
    found = expected_calibration_error(confidences, outcomes, bins=2)
    assert found == pytest.approx(0.3 / 4 + 3 / 4 * (0.9 - 2 / 3))
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([1, 1])) == 0
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0)))


def test_scores_that_mean_probabilities_have_next_to_no_calibration_error():
    rng = np.random.default_rng(0)
    confidences = rng.random(200_000)
    assert expected_calibration_error(confidences, rng.random(200_000) < confidences) < 0.01


def test_a_split_of_one_class_has_no_auroc():
    result = evaluation_metrics(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]))
    assert (result["classes"], result["cmap"], result["top1_accuracy"]) == (1, 1, 0.5)
    assert np.isnan(result["auroc"])


def test_clips_of_one_species_have_no_figures_that_compare_them_with_others():
    undefined = {"top1_accuracy", "top5_accuracy", "cmap", "auroc", "ece"}
    scores = np.array([[0.9], [0.4]])
    result = evaluation_metrics(scores, np.array([[1], [1]]))
    assert {name for name, value in result.items() if np.isnan(value)} == undefined
    assert (result["accuracy"], result["macro_f1"]) == (0.5, pytest.approx(2 / 3))
    assert evaluation_metrics(scores, np.array([[1], [0]]))["auroc"] == 1


def test_clips_of_which_nothing_is_known_to_be_present_are_refused():
    with pytest.raises(ValueError, match="no class"):
        evaluation_metrics(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0, -100], [0, 0]]))


def test_what_training_reports_and_what_evaluation_reports_agree():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 4))
    for references, multi_label in ((rng.integers(0, 4, 50), False), (rng.integers(0, 2, (50, 4)), True)):
        quick = classification_metrics(logits, references, multi_label=multi_label)
        result = evaluation_metrics(probabilities(logits, multi_label=multi_label), references)
        assert {name: result[name] for name in quick} == quick


# torchmetrics is what BirdSet computes with.


@pytest.fixture
def tm():
    from torchmetrics.functional import classification

    return classification


def test_single_label_metrics_agree_with_torchmetrics(tm):
    scores, references = single()
    result = evaluation_metrics(scores, references)
    prediction, target = torch.tensor(scores), torch.tensor(references)
    for name, value in {
        "macro_f1": tm.multiclass_f1_score(prediction, target, 7, average="macro"),
        "weighted_f1": tm.multiclass_f1_score(prediction, target, 7, average="weighted"),
        "accuracy": tm.multiclass_accuracy(prediction, target, 7, average="micro"),
        "top1_accuracy": tm.multiclass_accuracy(prediction, target, 7, average="micro"),
        "top5_accuracy": tm.multiclass_accuracy(prediction, target, 7, average="micro", top_k=5),
        "cmap": tm.multiclass_average_precision(prediction, target, 7, average="macro"),
        "auroc": tm.multiclass_auroc(prediction, target, 7, average="macro"),
        "ece": tm.multiclass_calibration_error(prediction, target, 7, n_bins=15, norm="l1"),
    }.items():
        assert result[name] == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize("unknown", [0, 0.2])
def test_multi_label_metrics_agree_with_torchmetrics(tm, unknown):
    scores, references = multi(unknown=unknown)
    result = evaluation_metrics(scores, references)
    prediction, target = torch.tensor(scores), torch.tensor(references)
    known = target >= 0
    for name, value in {
        "macro_f1": tm.multilabel_f1_score(prediction, target, 7, average="macro", ignore_index=-100),
        "weighted_f1": tm.multilabel_f1_score(prediction, target, 7, average="weighted", ignore_index=-100),
        "cmap": tm.multilabel_average_precision(prediction, target, 7, average="macro", ignore_index=-100),
        "auroc": tm.multilabel_auroc(prediction, target, 7, average="macro", ignore_index=-100),
        "ece": tm.binary_calibration_error(prediction[known], target[known], n_bins=15, norm="l1"),
    }.items():
        assert result[name] == pytest.approx(float(value), abs=1e-6), name
    likeliest = prediction.masked_fill(~known, -1).argsort(dim=1, descending=True)
    with_bird = (target == 1).any(dim=1)
    for k in (1, 5):
        hits = (target.gather(1, likeliest[:, :k]) == 1).any(dim=1)[with_bird]
        assert result[f"top{k}_accuracy"] == pytest.approx(float(hits.double().mean()))


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_a_class_without_clips_pulls_torchmetrics_means_down_and_not_ours(tm):
    scores, references = multi(unknown=0)
    references[:, 0] = 0
    result = evaluation_metrics(scores, references)
    prediction, target = torch.tensor(scores), torch.tensor(references)
    assert float(tm.multilabel_auroc(prediction, target, 7)) == pytest.approx(result["auroc"] * 6 / 7)
    assert float(tm.multilabel_average_precision(prediction, target, 7)) == pytest.approx(result["cmap"] * 6 / 7)
