import json
import shutil

import pytest
import timm
import torch
from fake_hub import FakeHub
from safetensors.torch import load_file, save_file
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
)

from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.saved_models import find_model
from kenya_birds.training import starting_points
from kenya_birds.training.starting_points import feature_settings_of, feature_warnings
from kenya_birds.training.window_training import start_at_prior

ATTO = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}
CONVNEXT = (ConvNextConfig, ConvNextForImageClassification)
CONVNEXT_V2 = (ConvNextV2Config, ConvNextV2ForImageClassification)
OID = "0123456789abcdef0123456789abcdef01234567"


def model(backbone="test_convnext", classes=("a", "b", "c"), seed=0, **settings):
    torch.manual_seed(seed)
    id2label = dict(enumerate(classes))
    label2id = {code: index for index, code in id2label.items()}
    config = KenyaBirdsConfig(backbone=backbone, id2label=id2label, label2id=label2id, **settings)
    return KenyaBirdsForAudioClassification(config).eval()


def initialize(ours, init_from):
    return starting_points.initialize(ours, str(init_from), KenyaBirdsFeatureExtractor())


def convnext(folder, kind=CONVNEXT, **config):
    """A transformers ConvNeXt whose every parameter is random and matters, saved."""
    config_class, model_class = kind
    donor = model_class(config_class(num_labels=5, **config)).eval()
    generator = torch.Generator().manual_seed(2)
    for name, value in donor.named_parameters():
        is_kernel = value.ndim > 1 and "grn" not in name
        scale = value.shape[1:].numel() ** -0.5 if is_kernel else 0.5
        value.data = torch.randn(value.shape, generator=generator) * scale + float(name.endswith("norm.weight"))
    donor.save_pretrained(folder)
    return donor.base_model


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.fixture
def own(tmp_path):
    """A model of this package that knows a, b and c, in a folder with its front end."""
    donor = model(seed=1)
    torch.nn.init.normal_(donor.classifier.bias)
    donor.save_pretrained(tmp_path / "own")
    KenyaBirdsFeatureExtractor(n_mels=64, noise_reduction="none").save_pretrained(tmp_path / "own")
    return tmp_path / "own", donor


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        server.redirect(monkeypatch, tmp_path / "home")
        yield server


def publish(hub, name, folder, oid=OID):
    tree = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos.setdefault(name, {"private": False, "commits": []})
    hub.repos[name]["commits"].append({"oid": oid, "message": "", "files": tree, "tree": tree})


@pytest.fixture
def weights_file(tmp_path):
    torch.manual_seed(1)
    weights = timm.create_model("test_convnext", num_classes=1000).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", weights


def test_scratch_leaves_the_random_weights(weights_file):
    ours, untouched = model(), model()
    assert initialize(ours, "scratch") == "scratch"
    for name, value in ours.state_dict().items():
        assert torch.equal(value, untouched.state_dict()[name])


def test_a_file_fills_the_backbone_and_sums_the_colours_of_the_first_layer(weights_file):
    path, weights = weights_file
    ours, untouched = model(), model()
    assert initialize(ours, path) == "file"
    loaded = ours.backbone.state_dict()
    torch.testing.assert_close(loaded["stem.0.weight"], weights["stem.0.weight"].sum(dim=1, keepdim=True))
    for name in loaded.keys() - {"stem.0.weight"}:
        assert torch.equal(loaded[name], weights[name]), name
    assert torch.equal(ours.classifier.weight, untouched.classifier.weight)


def test_a_file_of_another_backbone_is_refused(weights_file):
    with pytest.raises(
        UserError, match=r"does not contain the weights of resnet18 with timm's names: 120 of 120 are missing"
    ):
        initialize(model("resnet18"), str(weights_file[0]))


def test_weights_of_another_shape_are_refused(weights_file, tmp_path):
    _, weights = weights_file
    name = next(name for name in weights if name.endswith("conv_dw.weight"))
    weights[name] = torch.zeros(3, 1, 7, 7)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit test_convnext"):
        initialize(model(), str(tmp_path / "other.safetensors"))


def test_pickled_weights_and_missing_files_are_refused(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    for path in (tmp_path / "weights.pth", tmp_path / "nothing.safetensors"):
        with pytest.raises(UserError, match=r"expected 'pretrained', 'scratch', .* existing \.safetensors file"):
            initialize(model(), str(path))


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(UserError, match="is not a safetensors file"):
        initialize(model(), str(tmp_path / "broken.safetensors"))


def test_without_the_hub_the_error_names_the_other_two_ways():
    # The test suite runs with HF_HUB_OFFLINE=1.
    with pytest.raises(UserError, match=r"--init_from FILE .* or --init_from scratch"):
        initialize(model("convnext_atto"), "pretrained")


@pytest.mark.parametrize(
    ("backbone", "kind", "shape", "channels"),
    [
        ("convnext_atto", CONVNEXT, ATTO, 3),
        ("convnext_tiny", CONVNEXT, {}, 1),
        ("convnextv2_atto", CONVNEXT_V2, ATTO, 1),
    ],
)
def test_a_convnext_of_transformers_computes_the_same_under_timms_names(tmp_path, backbone, kind, shape, channels):
    donor = convnext(tmp_path, kind, num_channels=channels, **shape)
    ours, untouched = model(backbone), model(backbone)
    assert initialize(ours, tmp_path) == "model"
    features = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = donor(features[:, None].expand(-1, channels, -1, -1)).pooler_output
        torch.testing.assert_close(ours.embed(features), expected, rtol=1e-4, atol=2e-5)
    assert torch.equal(ours.classifier.weight, untouched.classifier.weight)


def test_a_convnext_without_a_classifier_does_as_well(tmp_path):
    donor = convnext(tmp_path / "whole", **ATTO)
    donor.save_pretrained(tmp_path / "bare")
    whole, bare = model("convnext_atto"), model("convnext_atto")
    initialize(whole, tmp_path / "whole")
    initialize(bare, tmp_path / "bare")
    for name, value in whole.state_dict().items():
        assert torch.equal(bare.state_dict()[name], value), name


@pytest.mark.parametrize("backbone", ["convnext_femto", "test_convnext", "convnext_atto_ols", "resnet18"])
def test_a_convnext_of_another_size_is_refused_by_its_name(tmp_path, backbone):
    convnext(tmp_path, **ATTO)
    with pytest.raises(UserError, match=f"is not a {backbone}: pass --backbone convnext_atto$"):
        initialize(model(backbone), tmp_path)


def test_a_convnext_that_timm_does_not_have_is_refused(tmp_path, monkeypatch):
    # To build all of timm's would take seconds.
    monkeypatch.setattr(timm, "list_models", lambda family: ["convnext_atto", "convnext_femto"])
    # timm's test_convnext has these sizes and another activation.
    convnext(tmp_path, depths=[1, 2, 4, 2], hidden_sizes=[24, 32, 48, 64])
    with pytest.raises(UserError, match="is not a test_convnext: timm has no such network"):
        initialize(model(), tmp_path)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ({"depths": [3, 2, 6, 2]}, "9 are missing"),
        ({"depths": [1, 2, 6, 2]}, "9 are unknown"),
        ({"num_channels": 1}, "1 are of another shape, .*patch_embeddings.weight"),
        ({"hidden_act": "relu"}, "has hidden_act 'relu', expected 'gelu' as in timm"),
        ({"hidden_sizes": "small"}, "cannot be loaded"),
        ({"model_type": "swin"}, "has the model_type 'swin': expected one of kenya_birds, convnext, convnextv2"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(tmp_path, damage, match):
    convnext(tmp_path, **ATTO)
    change_config(tmp_path, **damage)
    with pytest.raises(UserError, match=match):
        initialize(model("convnext_atto"), tmp_path)


def test_our_own_model_gives_its_backbone_and_the_rows_of_the_classes_that_both_know(own):
    folder, donor = own
    ours, untouched = model(classes=("d", "c", "a")), model(classes=("d", "c", "a"))
    assert initialize(ours, folder) == "model"
    for name, value in donor.backbone.state_dict().items():
        assert torch.equal(ours.backbone.state_dict()[name], value), name
    for index, (source, row) in enumerate([(untouched, 0), (donor, 2), (donor, 0)]):
        assert torch.equal(ours.classifier.weight[index], source.classifier.weight[row])
        assert torch.equal(ours.classifier.bias[index], source.classifier.bias[row])


def test_in_training_on_recordings_only_the_classes_that_the_model_does_not_know_start_rare(own):
    folder, donor = own
    ours = model(classes=("d", "c", "a"), problem_type="multi_label_classification")
    initialize(ours, folder)
    start_at_prior(ours)
    assert torch.sigmoid(ours.classifier.bias[0]).item() == pytest.approx(0.02)
    assert torch.equal(ours.classifier.bias[1:], donor.classifier.bias[[2, 0]])


def test_our_own_model_of_other_classes_leaves_the_classifier_new(own):
    ours, untouched = (model(classes=("x", "y"), problem_type="multi_label_classification") for _ in range(2))
    initialize(ours, own[0])
    assert torch.equal(ours.classifier.weight, untouched.classifier.weight)
    assert torch.equal(ours.backbone.state_dict()["stem.0.weight"], own[1].backbone.state_dict()["stem.0.weight"])


def test_our_own_model_with_another_backbone_is_refused_and_another_tag_is_not(own):
    with pytest.raises(
        UserError, match="has the backbone test_convnext, expected test_convnext2: pass --front_end_from"
    ):
        initialize(model("test_convnext2"), own[0])
    change_config(own[0], backbone="test_convnext.a_tag_that_timm_dropped")
    initialize(model(), own[0])


def test_our_own_model_without_its_classifier_is_refused(own):
    weights = load_file(own[0] / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, own[0] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 are missing, the first is classifier\.bias"):
        initialize(model(), own[0])


def test_a_model_in_several_files_is_put_together_and_its_index_stays_in_the_folder(own, tmp_path):
    donor = own[1]
    donor.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    ours = model()
    initialize(ours, tmp_path / "shards")
    assert torch.equal(ours.classifier.weight, donor.classifier.weight)
    table = json.loads(index.read_text())
    table["weight_map"]["classifier.bias"] = "../own/model.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"has no file '\.\./own/model\.safetensors'"):
        initialize(model(), tmp_path / "shards")


def test_pickled_weights_of_a_model_are_not_loaded(own):
    torch.save(own[1].state_dict(), own[0] / "pytorch_model.bin")
    (own[0] / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors: pickled weights .* are not loaded"):
        initialize(model(), own[0])


def test_a_folder_that_is_no_model_and_damaged_weights_are_refused(own, tmp_path):
    (own[0] / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(UserError, match=r"cannot be loaded \(SafetensorError"):
        initialize(model(), own[0])
    (own[0] / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        initialize(model(), own[0])
    (own[0] / "config.json").unlink()
    with pytest.raises(UserError, match=r"is no model: expected a config\.json"):
        initialize(model(), own[0])


def test_the_feature_settings_of_a_donor_is_compared_flag_by_flag(own):
    donor = find_model(str(own[0]))
    assert feature_warnings(donor, KenyaBirdsFeatureExtractor(n_mels=64, noise_reduction="none")) == []
    assert feature_warnings(donor, KenyaBirdsFeatureExtractor(noise_reduction="none")) == [
        f"'{own[0]}' was trained with --n_mels 64, this run has --n_mels 128",
        f"to take over the feature settings: --front_end_from {own[0]}",
    ]


def test_an_image_processor_states_no_front_end(tmp_path):
    convnext(tmp_path, **ATTO)
    ConvNextImageProcessor().save_pretrained(tmp_path)
    donor = find_model(str(tmp_path))
    assert feature_settings_of(donor) is None
    assert feature_warnings(donor, KenyaBirdsFeatureExtractor()) == [
        f"'{tmp_path}' does not contain the feature settings of its training: see --front_end_from, and its model card"
    ]


def test_a_model_of_the_hub_is_fetched_without_code_and_pickles(own, hub):
    folder, donor = own
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "modeling_kenya_birds.py").write_text("raise SystemExit")
    publish(hub, "ann/own", folder)
    ours = model()
    assert initialize(ours, "ann/own") == f"ann/own@{OID}"
    assert torch.equal(ours.classifier.weight, donor.classifier.weight)
    names = {path.name for path in find_model("ann/own").folder.iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_a_revision_of_the_hub_is_pinned(own, hub, tmp_path):
    older, newer = "a" * 40, "b" * 40
    publish(hub, "ann/pinned", own[0], older)
    shutil.copytree(own[0], tmp_path / "newer")
    model(seed=5).save_pretrained(tmp_path / "newer")
    publish(hub, "ann/pinned", tmp_path / "newer", newer)
    ours = model()
    assert initialize(ours, "ann/pinned") == f"ann/pinned@{newer}"
    assert initialize(ours, f"ann/pinned@{older}") == f"ann/pinned@{older}"
    assert torch.equal(ours.classifier.weight, own[1].classifier.weight)
    with pytest.raises(UserError, match="ann/pinned has no revision 'v9'"):
        initialize(ours, "ann/pinned@v9")


def test_what_the_hub_does_not_give_is_told(own, hub, monkeypatch):
    with pytest.raises(UserError, match="no folder 'ann/nothing', and no model ann/nothing on the Hub"):
        initialize(model(), "ann/nothing")
    publish(hub, "ann/secret", own[0])
    hub.repos["ann/secret"]["private"] = True
    hub.refuse_token = True
    with pytest.raises(UserError, match="ann/secret") as refused:
        initialize(model(), "ann/secret")
    assert hub.token not in str(refused.value)
    hub.refuse_token, hub.repos["ann/secret"]["private"] = False, False
    del hub.repos["ann/secret"]["commits"][0]["tree"]["model.safetensors"]
    with pytest.raises(UserError, match=r"'ann/secret' has no model\.safetensors"):
        initialize(model(), "ann/secret")


def test_a_hub_that_does_not_answer_is_told_at_once(hub):
    hub.server.server_close()
    with pytest.raises(UserError, match="ann/gone cannot be downloaded from the Hub"):
        initialize(model(), "ann/gone")


def test_offline_a_model_of_the_hub_is_refused_unless_it_was_fetched_before():
    # The test suite runs with HF_HUB_OFFLINE=1.
    with pytest.raises(
        UserError, match=r"no folder 'ann/away', and ann/away cannot be downloaded .*: check the connection"
    ):
        initialize(model(), "ann/away")
