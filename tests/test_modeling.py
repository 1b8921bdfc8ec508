"""The model: any convolutional timm backbone on one-channel features, saved and loaded as transformers' models are."""

import ast
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoModel, AutoModelForAudioClassification
from transformers.modeling_outputs import SequenceClassifierOutput

import kenya_birds.model
from kenya_birds.model import configuration_kenya_birds
from kenya_birds.model.backbone_kenya_birds import build_backbone
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification, classification_loss

SPECIES = {
    "combul2": {"scientific_name": "Pycnonotus barbatus", "common_name": "Common Bulbul"},
    "gnbcam2": {"scientific_name": "Camaroptera brachyura", "common_name": "Green-backed Camaroptera"},
}


def build(backbone="test_convnext", num_labels=3, **fields):
    torch.manual_seed(0)
    labels = [f"bird{index}" for index in range(num_labels)]
    config = KenyaBirdsConfig(
        backbone=backbone,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **fields,
    )
    return KenyaBirdsForAudioClassification(config)


def spectrograms(batch=2, bands=128, frames=188, seed=1):
    return torch.randn(batch, bands, frames, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    return build().eval()


# Forward


@pytest.mark.parametrize("backbone", ["test_convnext", "mobilenetv4_conv_small", "tf_efficientnet_lite0", "resnet18"])
def test_a_backbone_scores_clips_and_shows_embeddings(backbone):
    model = build(backbone).eval()
    with torch.no_grad():
        output = model(spectrograms())
        embeddings = model.embed(spectrograms())
    assert isinstance(output, SequenceClassifierOutput)
    assert output.loss is None
    assert output.logits.shape == (2, 3)
    assert embeddings.shape == (2, model.embedding_size)
    torch.testing.assert_close(model.classifier(embeddings), output.logits)


@pytest.mark.parametrize("backbone", ["dla46_c", "hrnet_w18_small", "resnetaa50", "test_convnext"])
def test_bands_and_frames_need_not_be_multiples_of_32(backbone):
    model = build(backbone).eval()
    for shape in ((128, 188), (100, 130)):
        with torch.no_grad():
            assert model(spectrograms(1, *shape)).logits.isfinite().all()


def test_the_last_frames_count_as_much_as_the_first():
    # ConvNeXt's last stage drops what does not fill a column of 32 frames: of 188, the last 28.
    model = build().eval()
    features = spectrograms(1).requires_grad_()
    model(features).logits.sum().backward()
    weight = features.grad.abs().sum(dim=(0, 1))
    assert float(weight[-28:].mean()) > 0.5 * float(weight[:28].mean())


def test_features_are_padded_with_zeros_at_their_end(model):
    padded = torch.zeros(2, 128, 192)
    padded[:, :, :188] = spectrograms()
    torch.testing.assert_close(model(spectrograms()).logits, model(padded).logits)


def test_a_tuple_is_returned_on_request(model):
    (logits,) = model(spectrograms(), return_dict=False)
    torch.testing.assert_close(logits, model(spectrograms()).logits)
    loss, logits = model(spectrograms(), labels=torch.tensor([0, 1]), return_dict=False)
    assert loss.ndim == 0
    assert logits.shape == (2, 3)


def test_bfloat16_gives_finite_scores(model):
    output = model.to(torch.bfloat16)(spectrograms().to(torch.bfloat16), labels=torch.tensor([0, 1]))
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


@pytest.mark.parametrize(
    "fields", [{}, {"problem_type": "multi_label_classification", "no_call_class": True}], ids=["usual", "softmax"]
)
def test_the_classifier_keeps_its_precision_in_mixed_precision(fields):
    model = build(**fields).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        head_input, logits = model.embed(spectrograms()), model(spectrograms()).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(head_input=head_input.float()).logits)


def test_drop_rate_acts_in_training_only():
    model = build(drop_rate=0.5)
    features = spectrograms()
    model.eval()
    assert torch.equal(model(features).logits, model(features).logits)
    model.train()
    assert not torch.equal(model(features).logits, model(features).logits)


# Loss


def test_the_loss_of_single_labels_is_cross_entropy(model):
    labels = torch.tensor([2, 0])
    output = model(spectrograms(), labels=labels)
    by_hand = output.logits.exp().sum(dim=1).log() - output.logits[torch.arange(2), labels]
    torch.testing.assert_close(output.loss, by_hand.mean())
    torch.testing.assert_close(classification_loss(output.logits, labels, None), by_hand)


def test_the_loss_of_several_labels_is_binary_cross_entropy():
    model = build(problem_type="multi_label_classification").eval()
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]])
    output = model(spectrograms(), labels=labels)
    score = output.logits.sigmoid()
    by_hand = -torch.where(labels == 1, score, 1 - score).log()
    torch.testing.assert_close(output.loss, by_hand.mean())
    per_class = classification_loss(output.logits, labels, "multi_label_classification")
    torch.testing.assert_close(per_class, by_hand)


def test_another_problem_type_is_refused():
    model = build(problem_type="regression")
    with pytest.raises(ValueError, match=r"regression.*multi_label_classification"):
        model(spectrograms(), labels=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("problem_type", "labels", "kind"),
    [
        ("multi_label_classification", torch.tensor([0, 1]), "zeros and ones of each class"),
        ("single_label_classification", torch.zeros(2, 3), "class ids"),
    ],
)
def test_labels_of_another_problem_are_refused(problem_type, labels, kind):
    with pytest.raises(ValueError, match=rf"labels have shape .*{kind}, because problem_type is '{problem_type}'"):
        build(problem_type=problem_type)(spectrograms(), labels=labels)


# Calibration


@pytest.mark.parametrize(
    "calibration",
    [{"logit_scale": 0.5}, {"logit_scale": [0.5, 2.0, 1.0], "logit_offset": [1.0, 0.0, -1.0]}],
)
def test_a_calibration_scales_and_shifts_the_logits_in_evaluation_only(calibration, tmp_path):
    plain, calibrated = build(), build(**calibration)
    features = spectrograms()
    torch.testing.assert_close(calibrated.train()(features).logits, plain.train()(features).logits)
    logits = plain.eval()(features).logits
    expected = torch.tensor(calibration["logit_scale"]) * logits + torch.tensor(calibration.get("logit_offset", 0.0))
    torch.testing.assert_close(calibrated.eval()(features).logits, expected)
    torch.testing.assert_close(
        calibrated(features, labels=torch.tensor([0, 1])).loss,
        torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1])),
    )
    calibrated.save_pretrained(tmp_path)
    assert {name: json.loads((tmp_path / "config.json").read_text())[name] for name in calibration} == calibration
    loaded = KenyaBirdsForAudioClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(features).logits, calibrated(features).logits)


NEW_LABELS = {
    "another number": {"num_labels": 2},
    "names as well": {"num_labels": 2, "id2label": {0: "bird1", 1: "x"}, "label2id": {"bird1": 0, "x": 1}},
    "names only": {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}},
    "names by id only": {"id2label": {0: "x", 1: "y", 2: "z"}},
}


@pytest.mark.parametrize("given", NEW_LABELS)
@pytest.mark.parametrize("calibration", [{"logit_scale": 0.5}, {"logit_scale": [1.0] * 3, "logit_offset": [2.0] * 3}])
def test_a_new_classifier_does_not_keep_the_old_calibration_and_names(tmp_path, given, calibration):
    species = {"bird1": {"common_name": "Bee-eater"}, "bird2": {"common_name": "Crow"}}
    build(**calibration, species=species).save_pretrained(tmp_path)
    for model_class in (KenyaBirdsForAudioClassification, AutoModelForAudioClassification, AutoModel):
        model = model_class.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **NEW_LABELS[given]).eval()
        config = model.config
        assert config.logit_scale is config.logit_offset is None
        assert config.species == ({"bird1": {"common_name": "Bee-eater"}} if given == "names as well" else None)
        assert model(spectrograms()).logits.shape[1] == config.num_labels == NEW_LABELS[given].get("num_labels", 3)
        assert config.label2id == {label: index for index, label in config.id2label.items()}
    model.save_pretrained(tmp_path / "again")
    assert KenyaBirdsForAudioClassification.from_pretrained(tmp_path / "again").config.logit_scale is None


@pytest.mark.parametrize(("labels", "is_told"), [(["x", "y", "z"], True), (["x", "y"], False)])
def test_as_many_new_labels_start_from_the_weights_of_the_old_ones(tmp_path, monkeypatch, labels, is_told):
    build().save_pretrained(tmp_path)
    messages = []
    monkeypatch.setattr(configuration_kenya_birds.logger, "warning", messages.append)
    KenyaBirdsConfig.from_pretrained(tmp_path, id2label=dict(enumerate(labels)))
    assert [message.startswith("There are as many new labels as old ones") for message in messages] == [True] * is_told


def test_labels_of_a_config_file_are_not_new(tmp_path, monkeypatch):
    """There, the numbers of 12 labels are texts."""
    labels = {str(number): f"bird{number}" for number in range(12)}
    KenyaBirdsConfig(id2label={int(number): label for number, label in labels.items()}).save_pretrained(tmp_path)
    messages = []
    monkeypatch.setattr(configuration_kenya_birds.logger, "warning", messages.append)
    config = KenyaBirdsConfig.from_pretrained(tmp_path, id2label=labels)
    assert messages == []
    assert config.id2label[11] == "bird11"


def test_the_same_labels_keep_the_calibration(tmp_path):
    labels = {0: "bird0", 1: "bird1", 2: "bird2"}
    build(logit_scale=0.5, species={"bird1": {"common_name": "Bee-eater"}}).save_pretrained(tmp_path)
    ids = {code: index for index, code in labels.items()}
    for given in ({}, {"num_labels": 3}, {"id2label": labels, "label2id": ids}):
        config = KenyaBirdsForAudioClassification.from_pretrained(tmp_path, **given).config
        assert (config.logit_scale, config.species) == (0.5, {"bird1": {"common_name": "Bee-eater"}})


def test_a_calibration_set_after_training_acts_at_once(model):
    logits = model(spectrograms()).logits
    model.config.logit_scale, model.config.logit_offset = 2.0, [0.0, 1.0, 0.0]
    torch.testing.assert_close(model(spectrograms()).logits, 2 * logits + torch.tensor([0.0, 1.0, 0.0]))


def test_a_calibrated_model_can_be_exported_and_keeps_its_type(model):
    model.config.logit_scale, model.config.logit_offset = [1.0, 2.0, 3.0], [0.0, 1.0, 0.0]
    features = spectrograms()
    exported = torch.export.export(model, (), {"input_features": features}).module()
    torch.testing.assert_close(exported(input_features=features)["logits"], model(features).logits)
    assert model.to(torch.bfloat16)(features.to(torch.bfloat16)).logits.dtype == torch.bfloat16


def test_a_calibration_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"logit_offset has 2 numbers, but there are 3 classes"):
        build(logit_offset=[0.0, 1.0])


# Names


@pytest.mark.parametrize(
    ("backbone", "text"),
    [
        ("convnext_tinny", "no model 'convnext_tinny': did you mean convnext_tiny"),
        ("qqqqqqqq", "list_models"),
        ("convnext_tiny.no_such_weights", r"no weights.*convnext_tiny\.in12k_ft_in1k"),
        ("vit_base_patch16_224", "one size only.*convolutional"),
        ("swin_tiny_patch4_window7_224.ms_in1k", "one size only"),
    ],
)
def test_a_backbone_that_cannot_work_is_refused_with_a_hint(backbone, text):
    with pytest.raises(ValueError, match=text):
        build(backbone)


def test_stochastic_depth_reaches_the_backbone():
    model = build(drop_path_rate=0.3)
    rates = [module.drop_prob for module in model.modules() if hasattr(module, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)


def test_stochastic_depth_is_refused_where_the_backbone_has_none():
    with pytest.raises(ValueError, match=r"vgg11.*drop_path_rate"):
        build_backbone(KenyaBirdsConfig(backbone="vgg11", drop_path_rate=0.1))


# Weights


@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet"])
def test_the_backbone_starts_with_timms_own_initialisation(backbone):
    torch.manual_seed(5)
    plain = timm.create_model(backbone, pretrained=False, in_chans=1, num_classes=0)
    torch.manual_seed(5)
    model = KenyaBirdsForAudioClassification(KenyaBirdsConfig(backbone=backbone))
    expected = plain.state_dict()
    found = model.backbone.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_the_classifier_starts_small_and_without_bias():
    model = build("resnet18", num_labels=200)
    assert float(model.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not model.classifier.bias.any()


@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet", "resnetblur18", "tiny_vit_5m_224"])
def test_a_saved_model_gives_equal_scores(tmp_path, backbone):
    # The last two have buffers that no checkpoint holds: blur filters, and indices of attention biases.
    model = build(backbone).eval()
    model.save_pretrained(tmp_path)
    loaded = KenyaBirdsForAudioClassification.from_pretrained(tmp_path)
    for (name, buffer), (_, expected) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    with torch.no_grad():
        assert torch.equal(loaded(spectrograms()).logits, model(spectrograms()).logits)


def test_weights_are_saved_as_safetensors_only(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}


def test_a_new_head_of_another_size_keeps_the_backbone(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = KenyaBirdsForAudioClassification.from_pretrained(tmp_path, num_labels=50, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.eval().embed(spectrograms()), model.embed(spectrograms()))
    assert loaded.classifier.weight.shape == (50, model.embedding_size)
    assert float(loaded.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert not loaded.classifier.bias.any()
    assert loaded(spectrograms()).logits.shape == (2, 50)


def test_a_model_of_windows_is_fine_tuned_on_class_ids(tmp_path):
    build(problem_type="multi_label_classification", no_call_class=True).save_pretrained(tmp_path)
    new = {"num_labels": 2, "ignore_mismatched_sizes": True, "problem_type": "single_label_classification"}
    with pytest.raises(ValueError, match="or also no_call_class=False"):
        KenyaBirdsForAudioClassification.from_pretrained(tmp_path, **new)
    loaded = KenyaBirdsForAudioClassification.from_pretrained(tmp_path, **new, no_call_class=False)
    assert loaded(spectrograms(), labels=torch.tensor([0, 1])).loss > 0


def test_a_head_of_another_size_is_refused_unless_asked_for(tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        KenyaBirdsForAudioClassification.from_pretrained(tmp_path, num_labels=50)


# Gradient checkpointing


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.backbone.stages[0].grad_checkpointing
        assert model.is_gradient_checkpointing == checkpointing
        model(spectrograms(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    model.gradient_checkpointing_disable()
    assert not model.backbone.stages[0].grad_checkpointing
    assert not model.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_is_refused_where_timm_has_none():
    model = build("dla46_c")
    assert not model.supports_gradient_checkpointing
    with pytest.raises(ValueError, match="does not support"):
        model.gradient_checkpointing_enable()


# Config


def test_the_config_survives_json_with_species_and_labels(tmp_path):
    config = KenyaBirdsConfig(
        backbone="test_convnext",
        drop_rate=0.1,
        drop_path_rate=0.2,
        id2label={0: "combul2", 1: "gnbcam2"},
        label2id={"combul2": 0, "gnbcam2": 1},
        problem_type="multi_label_classification",
        species=SPECIES,
    )
    config.save_pretrained(tmp_path)
    loaded = KenyaBirdsConfig.from_pretrained(tmp_path)
    assert loaded.id2label == {0: "combul2", 1: "gnbcam2"}
    assert loaded.label2id == {"combul2": 0, "gnbcam2": 1}
    assert loaded.species == SPECIES
    assert (loaded.backbone, loaded.drop_rate, loaded.drop_path_rate) == ("test_convnext", 0.1, 0.2)
    assert loaded.problem_type == "multi_label_classification"
    assert loaded.num_labels == 2
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "kenya_birds"


# Files that travel


ALLOWED = {"torch", "timm", "transformers", "numpy", *sys.stdlib_module_names}
FOLDER = Path(kenya_birds.model.__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_kenya_birds.py")), ids=lambda path: path.name)
def test_a_file_that_travels_imports_nothing_but_what_is_allowed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            # The flat form, of a file that lies beside this one, is the only one that transformers copies.
            assert node.level == 1
            assert (FOLDER / f"{node.module}.py").exists()
            continue
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        else:
            continue
        for module in modules:
            package = module.split(".")[0]
            assert package in ALLOWED, f"line {node.lineno}"


def test_the_folder_of_files_that_travel_is_flat():
    assert {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"} == {
        "__init__.py",
        "audio_model_kenya_birds.py",
        "backbone_kenya_birds.py",
        "configuration_kenya_birds.py",
        "feature_extraction_kenya_birds.py",
        "graph_kenya_birds.py",
        "modeling_kenya_birds.py",
        "network_input_kenya_birds.py",
        "noise_reduction_kenya_birds.py",
        "signal_kenya_birds.py",
    }
    assert (FOLDER / "__init__.py").read_text() == ""
