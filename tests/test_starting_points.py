import pytest
import timm
import torch
from safetensors.torch import save_file

from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.starting_points import initialize_backbone


def model(backbone="test_convnext"):
    torch.manual_seed(0)
    return KenyaBirdsForAudioClassification(KenyaBirdsConfig(backbone=backbone, num_labels=3))


@pytest.fixture
def weights_file(tmp_path):
    torch.manual_seed(1)
    weights = timm.create_model("test_convnext", num_classes=1000).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", weights


def test_scratch_leaves_the_random_weights(weights_file):
    ours, untouched = model(), model()
    initialize_backbone(ours, "scratch")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, untouched.state_dict()[name])


def test_a_file_fills_the_backbone_and_sums_the_colours_of_the_first_layer(weights_file):
    path, weights = weights_file
    ours, untouched = model(), model()
    initialize_backbone(ours, str(path))
    loaded = ours.backbone.state_dict()
    torch.testing.assert_close(loaded["stem.0.weight"], weights["stem.0.weight"].sum(dim=1, keepdim=True))
    for name in loaded.keys() - {"stem.0.weight"}:
        assert torch.equal(loaded[name], weights[name]), name
    assert torch.equal(ours.classifier.weight, untouched.classifier.weight)


def test_a_file_of_another_backbone_is_refused(weights_file):
    with pytest.raises(
        UserError, match=r"does not hold the weights of resnet18 in timm's naming: 120 of 120 are missing"
    ):
        initialize_backbone(model("resnet18"), str(weights_file[0]))


def test_weights_of_another_shape_are_refused(weights_file, tmp_path):
    _, weights = weights_file
    name = next(name for name in weights if name.endswith("conv_dw.weight"))
    weights[name] = torch.zeros(3, 1, 7, 7)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit test_convnext"):
        initialize_backbone(model(), str(tmp_path / "other.safetensors"))


def test_pickled_weights_and_missing_files_are_refused(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    for path in (tmp_path / "weights.pth", tmp_path / "nothing.safetensors"):
        with pytest.raises(UserError, match=r"expected 'pretrained', 'scratch', or an existing \.safetensors file"):
            initialize_backbone(model(), str(path))


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(UserError, match="is not a safetensors file"):
        initialize_backbone(model(), str(tmp_path / "broken.safetensors"))


def test_without_the_hub_the_error_names_the_other_two_ways():
    # The test suite runs with HF_HUB_OFFLINE=1.
    with pytest.raises(UserError, match=r"--init_from FILE .* or --init_from scratch"):
        initialize_backbone(model("convnext_atto"), "pretrained")
