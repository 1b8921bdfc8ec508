"""Learning rates by layer."""

import pytest
import torch

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.optimization import parameter_groups


@pytest.fixture(scope="module", params=["test_convnext", "test_efficientnet"])
def model(request):
    return KenyaBirdsForAudioClassification(KenyaBirdsConfig(backbone=request.param, num_labels=4))


def rates(model, **settings):
    settings = {"learning_rate": 1e-3, "weight_decay": 0.05, "layer_decay": 1.0, "head_factor": 1.0, **settings}
    groups = parameter_groups(model, **settings)
    return {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_every_parameter_is_in_one_group(model):
    groups = parameter_groups(model, 1e-3, 0.05, 0.5, 2.0)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


def test_without_decay_all_layers_learn_at_one_rate_and_vectors_do_not_shrink(model):
    found = rates(model)
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == (1e-3, 0.05 if parameter.ndim > 1 else 0.0), name


def test_lower_layers_learn_more_slowly(model):
    found = rates(model, layer_decay=0.5)
    by_name = {name: found[id(parameter)][0] for name, parameter in model.named_parameters()}
    in_order = list(dict.fromkeys(rate for name, rate in by_name.items() if name.startswith("backbone")))
    assert max(in_order) == 1e-3
    first = next(rate for name, rate in by_name.items() if "stem" in name)
    assert first == min(in_order) < 1e-3 / 4
    ratios = {round(a / b, 6) for a, b in zip(sorted(in_order), sorted(in_order)[1:], strict=False)}
    assert ratios == {0.5}


def test_the_classifier_has_a_rate_of_its_own(model):
    found = rates(model, head_factor=10.0, layer_decay=0.9)
    assert found[id(model.classifier.weight)] == (pytest.approx(1e-2), 0.05)
    assert found[id(model.classifier.bias)] == (pytest.approx(1e-2), 0.0)


def test_a_schedule_keeps_the_proportions(model):
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 0.05, 0.5, 4.0))
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25 * rate for rate in before])
