"""Losses of windows: a softmax over the species and no call, and binary losses that are weighted by what is known."""

import math

import pytest
import torch

from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import (
    KenyaBirdsForAudioClassification,
    log_softmax_with_no_call,
    softmax_log_odds,
    softmax_loss,
)
from kenya_birds.training.trainer import KenyaBirdsTrainer
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments
from kenya_birds.training.window_training import focal_weights, log_softmax_of_log_odds

# Odds against no call: the probabilities of no call and of three classes are 1/8, 2/8, 4/8 and 1/8.
LOGITS = torch.tensor([[2.0, 4.0, 1.0]]).log()
MULTI_LABEL = "multi_label_classification"


def build(**fields):
    torch.manual_seed(0)
    config = KenyaBirdsConfig(backbone="test_convnext", num_labels=3, problem_type=MULTI_LABEL, **fields)
    model = KenyaBirdsForAudioClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    return model


def loss_of(*labels, weights=None):
    return softmax_loss(log_softmax_with_no_call(LOGITS), torch.tensor([labels]), weights)[0].tolist()


@pytest.fixture
def features():
    return torch.randn(4, 128, 188, generator=torch.Generator().manual_seed(1))


def test_scores_are_shares_of_a_softmax_with_no_call(features):
    model = build(no_call_class=True)
    logits = model.classifier(model.embed(features))
    torch.testing.assert_close(model.train()(features).logits, logits)
    scores = model.eval()(features).logits.sigmoid()
    exponentials = logits.exp()
    torch.testing.assert_close(scores, exponentials / (1 + exponentials.sum(dim=1, keepdim=True)))
    assert scores.shape == (4, 3)
    assert (scores.sum(dim=1) < 1).all()


def test_log_odds_are_exact_for_any_logits():
    logits = torch.tensor([[50.0, 0.0], [-50.0, -60.0], [300.0, 299.0], [0.0, 0.0]], dtype=torch.float64)
    others = torch.stack([torch.logaddexp(logits.new_zeros(4), logits[:, 1 - index]) for index in (0, 1)], dim=1)
    found = softmax_log_odds(logits)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, logits - others, rtol=1e-5, atol=1e-5)


def test_calibration_acts_on_log_odds(features):
    model = build(no_call_class=True, logit_scale=[2.0, 1.0, 0.5], logit_offset=[1.0, 0.0, -1.0]).eval()
    log_odds = softmax_log_odds(model.classifier(model.embed(features)))
    expected = log_odds * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([1.0, 0.0, -1.0])
    torch.testing.assert_close(model(features).logits, expected)


def test_a_saved_model_keeps_the_class_for_no_call_and_can_be_exported(features, tmp_path):
    model = build(no_call_class=True).eval()
    model.save_pretrained(tmp_path)
    loaded = KenyaBirdsForAudioClassification.from_pretrained(tmp_path)
    assert loaded.config.no_call_class
    assert loaded.classifier.out_features == loaded.config.num_labels == 3
    assert torch.equal(loaded(features).logits, model(features).logits)
    exported = torch.export.export(model, (), {"input_features": features}).module()
    torch.testing.assert_close(exported(input_features=features)["logits"], model(features).logits)
    assert model.to(torch.bfloat16)(features.to(torch.bfloat16)).logits.dtype == torch.bfloat16


def test_the_loss_of_one_class_and_of_no_call_is_cross_entropy():
    assert loss_of(0, 1, 0) == pytest.approx([math.log(2)] * 3)
    assert loss_of(0, 0, 0) == pytest.approx([math.log(8)] * 3)


def test_the_target_is_spread_over_the_classes_that_are_present():
    assert loss_of(1, 1, 0) == pytest.approx([(math.log(4) + math.log(2)) / 2] * 3)
    weights = torch.tensor([3.0, 1.0, 5.0])
    assert loss_of(1, 1, 0, weights=weights) == pytest.approx([(3 * math.log(4) + math.log(2)) / 2] * 3)
    assert loss_of(0, 0, 0, weights=weights) == pytest.approx([math.log(8)] * 3)


def test_beside_a_class_that_is_present_unknown_classes_are_left_out():
    # Of 1/8, 2/8 and 4/8, the first class has 2/8.
    assert loss_of(1, 0, -100) == pytest.approx([math.log(7 / 2)] * 2 + [0])
    logits = LOGITS.clone().requires_grad_()
    softmax_loss(log_softmax_with_no_call(logits), torch.tensor([[1, 0, -100]])).sum().backward()
    assert logits.grad[0, 2] == pytest.approx(0, abs=1e-6)


def test_where_no_class_is_present_the_target_is_no_call_or_one_of_the_unknown_classes():
    assert loss_of(0, -100, 0) == pytest.approx([math.log(8 / 5), 0, math.log(8 / 5)])
    assert loss_of(-100, -100, -100) == [0, 0, 0]
    logits = LOGITS.clone().requires_grad_()
    softmax_loss(log_softmax_with_no_call(logits), torch.tensor([[0, -100, 0]])).sum().backward()
    # Absent classes become less probable, the unknown one does not.
    assert (logits.grad > 0).tolist() == [[True, False, True]]


def test_the_loss_of_a_model_is_that_of_its_softmax(features):
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, -100]])
    for model in (build(no_call_class=True).train(), build(no_call_class=True, logit_scale=0.1).eval()):
        logits = model.classifier(model.embed(features))
        expected = softmax_loss(log_softmax_with_no_call(logits), labels).mean()
        torch.testing.assert_close(model(features, labels=labels).loss, expected)


def test_validation_has_the_loss_of_training():
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 2
    again = log_softmax_of_log_odds(softmax_log_odds(logits))
    torch.testing.assert_close(again, log_softmax_with_no_call(logits), rtol=1e-4, atol=1e-3)
    # A certain class leaves no call a finite loss.
    assert log_softmax_of_log_odds(torch.tensor([[60.0]]))[0, 0] == pytest.approx(math.log(1e-7))


def test_a_single_label_model_has_no_class_for_no_call():
    config = KenyaBirdsConfig(backbone="test_convnext", num_labels=3, no_call_class=True)
    with pytest.raises(ValueError, match="no_call_class is set and problem_type is"):
        KenyaBirdsForAudioClassification(config)


def test_focal_weights_are_powers_of_the_probability_of_what_is_false():
    logits = torch.tensor([[math.log(3), math.log(3), 0.0]])  # probabilities 3/4, 3/4 and 1/2
    labels = torch.tensor([[1.0, 0.0, -100.0]])
    assert focal_weights(logits, labels, 2.0)[0, :2].tolist() == pytest.approx([1 / 16, 9 / 16])
    assert focal_weights(logits, labels, 0.0)[0, :2].tolist() == [1, 1]


def test_a_softmax_is_not_trained_with_focal_weights(clips, tmp_path):
    args = KenyaBirdsTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", focal_gamma=2.0)
    with pytest.raises(UserError, match="focal_gamma weighs binary losses, and this model has a softmax"):
        KenyaBirdsTrainer(build(no_call_class=True), args, KenyaBirdsFeatureExtractor(), clips["train"], None)
