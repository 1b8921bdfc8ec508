"""Weights of published bird networks: under timm's names they compute the same as the networks themselves."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import batch_norm, conv2d, linear, pad, silu
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
)

from kenya_birds.errors import UserError
from kenya_birds.model.backbone_kenya_birds import build_backbone
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.saved_models import WEIGHTS_FILE
from kenya_birds.training import starting_points

# EfficientNet-B0: number of blocks, channels, kernel, stride, expansion.
STAGES = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6), (3, 112, 5, 1, 6))
STAGES = (*STAGES, (4, 192, 5, 2, 6), (1, 320, 3, 1, 6))
B1 = {"width_coefficient": 1.0, "depth_coefficient": 1.1, "hidden_dim": 1280, "depthwise_padding": [16]}


def model(backbone, variant="timm"):
    config = KenyaBirdsConfig(backbone=backbone, backbone_variant=variant, num_labels=3)
    return KenyaBirdsForAudioClassification(config).eval()


def initialize(ours, init_from):
    return starting_points.initialize(ours, str(init_from), KenyaBirdsFeatureExtractor())


def randomize(weights, seed=2):
    """Gives each weight a random value that matters, without changing the scale of activations much."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        if not value.is_floating_point():
            continue
        random = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(random.abs() + 0.1)
        elif value.ndim > 1:
            value.copy_(random * value.shape[1:].numel() ** -0.5)
        else:
            value.copy_(random * 0.2 + float(name.endswith(("bn.weight", "norm.weight"))))
    return weights


@pytest.fixture(scope="module")
def birdset(tmp_path_factory):
    """An EfficientNet-B1 of transformers as BirdSet's: one channel, random weights, saved."""
    folder = tmp_path_factory.mktemp("efficientnet")
    donor = EfficientNetForImageClassification(EfficientNetConfig(num_labels=5, num_channels=1, **B1)).eval()
    with torch.no_grad():
        randomize(donor.state_dict())
    donor.save_pretrained(folder)
    return folder, donor.base_model


def perch_channels(number):
    """Channels of EfficientNet-B3: 1.2 times those of B0, rounded to a multiple of 8, but not down by 10% or more."""
    rounded = int(number * 1.2 + 4) // 8 * 8
    return rounded + 8 if rounded < 0.9 * number * 1.2 else rounded


def perch_blocks():
    """Input and output channels, kernel, stride, expansion, and whether the input is added, of each block."""
    before = perch_channels(32)
    for number, channels, kernel, stride, expansion in STAGES:
        for repeat in range(math.ceil(number * 1.4)):
            yield before, perch_channels(channels), kernel, stride if repeat == 0 else 1, expansion, repeat > 0
            before = perch_channels(channels)


def perch_weights():
    """Random weights of Perch 2 under the names of its PyTorch form."""
    weights = {}

    def norm(name, channels):
        for parameter in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{name}.{parameter}"] = torch.empty(channels)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    weights["stem_conv.weight"] = torch.empty(40, 1, 3, 3)
    norm("stem_bn", 40)
    for block, (before, after, kernel, _, expansion, _) in enumerate(perch_blocks()):
        name, inner = f"blocks.{block}", before * expansion
        if expansion != 1:
            weights[f"{name}.expand_conv.weight"] = torch.empty(inner, before, 1, 1)
            norm(f"{name}.expand_bn", inner)
        weights[f"{name}.depthwise_conv.weight"] = torch.empty(inner, 1, kernel, kernel)
        norm(f"{name}.depthwise_bn", inner)
        squeezed = inner // (4 * expansion)
        for part, shape in (("reduce", (squeezed, inner)), ("expand", (inner, squeezed))):
            weights[f"{name}.se.{part}.weight"] = torch.empty(shape)
            weights[f"{name}.se.{part}.bias"] = torch.empty(shape[0])
        weights[f"{name}.project_conv.weight"] = torch.empty(after, inner, 1, 1)
        norm(f"{name}.project_bn", after)
    weights["head_conv.weight"] = torch.empty(1536, 384, 1, 1)
    norm("head_bn", 1536)
    return randomize(weights)


def perch(weights, frames_by_bands):
    """Perch 2 after chirp/models/efficientnet.py and layers.py: feature map of `(batch, 1, frames, bands)`."""

    def norm(name, values):
        mean, variance, weight, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return batch_norm(values, mean, variance, weight, bias, eps=1e-5)

    def halving(size, kernel):
        return kernel // 2 - (1 - size % 2), kernel // 2

    values = conv2d(frames_by_bands, weights["stem_conv.weight"], stride=2)
    values = silu(norm("stem_bn", values))
    for block, (_, _, kernel, stride, expansion, is_added) in enumerate(perch_blocks()):
        name, shortcut = f"blocks.{block}", values
        if expansion != 1:
            values = silu(norm(f"{name}.expand_bn", conv2d(values, weights[f"{name}.expand_conv.weight"])))
        if stride == 2:
            values = pad(values, (*halving(values.shape[3], kernel), *halving(values.shape[2], kernel)))
        else:
            values = pad(values, (kernel // 2,) * 4)
        depthwise = weights[f"{name}.depthwise_conv.weight"]
        values = conv2d(values, depthwise, stride=stride, groups=len(depthwise))
        values = silu(norm(f"{name}.depthwise_bn", values))
        squeezed = values.mean(dim=(2, 3))
        squeezed = silu(linear(squeezed, weights[f"{name}.se.reduce.weight"], weights[f"{name}.se.reduce.bias"]))
        gate = linear(squeezed, weights[f"{name}.se.expand.weight"], weights[f"{name}.se.expand.bias"]).sigmoid()
        values = values * gate[:, :, None, None]
        values = norm(f"{name}.project_bn", conv2d(values, weights[f"{name}.project_conv.weight"]))
        values = values + shortcut if is_added else values
    return silu(norm("head_bn", conv2d(values, weights["head_conv.weight"])))


@pytest.fixture(scope="module")
def perch_file(tmp_path_factory):
    weights = perch_weights()
    path = tmp_path_factory.mktemp("perch") / "perch.safetensors"
    front_end = {"frontend.window": torch.ones(640), "frontend.mel_matrix": torch.ones(513, 128)}
    save_file({**{f"backbone.{name}": value for name, value in weights.items()}, **front_end}, path)
    return path, weights


def features(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


# Odd sizes at several depths: there the two libraries pad in different ways.
@pytest.mark.parametrize(("file", "kind", "shape"), [("", "model", (2, 64, 96)), (WEIGHTS_FILE, "file", (1, 75, 157))])
def test_an_efficientnet_of_transformers_computes_the_same_under_timms_names(birdset, file, kind, shape):
    folder, donor = birdset
    ours = model("tf_efficientnet_b1", "transformers")
    assert initialize(ours, folder / file) == kind
    spectrograms = features(*shape)
    with torch.no_grad():
        expected = donor(spectrograms[:, None])
        torch.testing.assert_close(
            ours.backbone.forward_features(spectrograms[:, None]), expected.last_hidden_state, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(ours.embed(spectrograms), expected.pooler_output, rtol=1e-4, atol=1e-5)


def test_perch_in_pytorch_computes_the_same_under_timms_names(perch_file):
    path, weights = perch_file
    ours = model("tf_efficientnet_b3", "perch-2")
    assert initialize(ours, path) == "file"
    # In float32, rounding alone would change activations by up to 1e-4.
    ours, spectrograms = ours.double(), features(1, 128, 500).double()
    weights = {name: value.double() for name, value in weights.items()}
    with torch.no_grad():
        # The rows of Perch's spectrograms are frames, ours are bands.
        expected = perch(weights, spectrograms.transpose(1, 2)[:, None])
        torch.testing.assert_close(ours.backbone.forward_features(spectrograms[:, None]), expected.transpose(2, 3))
        torch.testing.assert_close(ours.embed(spectrograms), expected.mean(dim=(2, 3)))
    assert expected.shape == (1, 1536, 16, 4)  # as Perch's own spatial embedding


def test_perch_with_timms_names_is_turned_to_our_axes(perch_file, tmp_path):
    straight = model("tf_efficientnet_b3", "perch-2")
    initialize(straight, perch_file[0])
    state = straight.backbone.state_dict()
    turned = {name: value.transpose(2, 3).contiguous() if value.ndim == 4 else value for name, value in state.items()}
    save_file(turned, tmp_path / "timm.safetensors")
    save_file({f"model.{name}": value for name, value in turned.items()}, tmp_path / "prefixed.safetensors")
    for name in ("timm", "prefixed"):
        ours = model("tf_efficientnet_b3", "perch-2")
        initialize(ours, tmp_path / f"{name}.safetensors")
        assert all(torch.equal(value, state[key]) for key, value in ours.backbone.state_dict().items())


def test_weights_of_perch_need_its_variant_and_no_others_have_it(perch_file, birdset):
    with pytest.raises(
        UserError, match=r"perch\.safetensors has the weights of Perch 2: pass --front_end_from perch-2$"
    ):
        initialize(model("tf_efficientnet_b3"), perch_file[0])
    with pytest.raises(
        UserError, match="is not Perch 2, but --front_end_from or --backbone_variant is perch-2: leave"
    ):
        initialize(model("tf_efficientnet_b1", "perch-2"), birdset[0])
    with pytest.raises(ValueError, match="backbone 'convnext_atto' has no variant 'perch-2'"):
        build_backbone(KenyaBirdsConfig(backbone="convnext_atto", backbone_variant="perch-2"))
    with pytest.raises(ValueError, match="backbone_variant is 'keras', expected one of"):
        build_backbone(KenyaBirdsConfig(backbone="convnext_atto", backbone_variant="keras"))


def test_another_backbone_is_refused_by_the_name_of_the_right_one(birdset, perch_file):
    for source in (birdset[0], birdset[0] / "model.safetensors"):
        # The second one has the same weights, and pads in another way.
        for backbone in ("tf_efficientnet_b0", "efficientnet_b1"):
            with pytest.raises(UserError, match=f"is not a {backbone}: pass --backbone tf_efficientnet_b1$"):
                initialize(model(backbone), source)
    with pytest.raises(UserError, match=r"is not a tf_efficientnet_b0: pass --backbone tf_efficientnet_b3$"):
        initialize(model("tf_efficientnet_b0", "perch-2"), perch_file[0])


def test_models_of_this_package_keep_their_variant(tmp_path):
    donor = model("tf_efficientnet_b0", "transformers")
    donor.save_pretrained(tmp_path)
    loaded = KenyaBirdsForAudioClassification.from_pretrained(tmp_path).eval()
    spectrograms = features(1, 40, 57)
    with torch.no_grad():
        wanted = donor.embed(spectrograms)
        # The embeddings of random weights are small.
        torch.testing.assert_close(loaded.embed(spectrograms), wanted, rtol=1e-3, atol=1e-10)
        other = model("tf_efficientnet_b0").embed(spectrograms)
        assert not torch.allclose(other, wanted, rtol=0.1, atol=1e-8)
    with pytest.raises(UserError, match="has the backbone_variant transformers, expected timm: pass --front_end_from"):
        initialize(model("tf_efficientnet_b0"), tmp_path)


def test_a_convnext_of_transformers_computes_the_same_without_padding(tmp_path):
    shape = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}
    donor = ConvNextForImageClassification(ConvNextConfig(num_channels=1, **shape)).eval()
    with torch.no_grad():
        randomize(donor.state_dict())
    donor.save_pretrained(tmp_path)
    padded, unpadded = model("convnext_atto"), model("convnext_atto", "transformers")
    for ours in (padded, unpadded):
        initialize(ours, tmp_path / WEIGHTS_FILE)
    spectrograms = features(1, 64, 75)
    with torch.no_grad():
        expected = donor.base_model(spectrograms[:, None]).pooler_output
        torch.testing.assert_close(unpadded.embed(spectrograms), expected, rtol=1e-4, atol=1e-5)
        assert (padded.embed(spectrograms) - expected).abs().max() > 0.01
