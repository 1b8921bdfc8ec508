"""The initial weights of training."""

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers import ConvNextForImageClassification, ConvNextV2ForImageClassification

from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification, build_backbone
from kenya_birds.model_loading import load
from kenya_birds.saved_models import NO_START, WEIGHTS_FILE, SavedModel, check_trained, find_model, transport_error
from kenya_birds.training.arguments import FeatureArguments

logger = logging.getLogger(__name__)


def feature_settings_of(donor: SavedModel) -> dict[str, Any] | None:
    """The feature settings in a starting model's preprocessor_config.json, by the flag's name; None if unknown."""
    if not (donor.folder / "preprocessor_config.json").is_file():
        return None
    saved = read_json(donor.folder / "preprocessor_config.json")
    # An image processor has none of the audio arguments.
    if "sampling_rate" not in saved:
        return None
    return {field.name: saved[field.name] for field in fields(FeatureArguments) if field.name in saved}


def feature_warnings(donor: SavedModel, extractor: KenyaBirdsFeatureExtractor) -> list[str]:
    """One line for each feature flag that differs between the run and the training of its starting model.

    Args:
        donor: The starting model.
        extractor: The run's feature extractor.
    """
    trained = feature_settings_of(donor)
    if trained is None:
        return [f"'{donor.name}' does not contain the feature settings of its training: see its model card"]
    return [
        f"'{donor.name}' was trained with --{name} {value}, this run has --{name} {getattr(extractor, name)}"
        for name, value in trained.items()
        if value != getattr(extractor, name)
    ]


# Names of modules in ConvNextModel or ConvNextV2Model of transformers, and in timm.
_RENAMED = (
    (r"embeddings\.patch_embeddings\.", "stem.0."),
    (r"embeddings\.layernorm\.", "stem.1."),
    (r"encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.", r"stages.\1.blocks.\2.norm."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.grn\.", r"stages.\1.blocks.\2.mlp.grn."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter$", r"stages.\1.blocks.\2.gamma"),
    (r"layernorm\.", "head.norm."),
)
_FIRST_LAYER = "stem.0.weight"


def to_timm_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the weights of a `ConvNextModel` or `ConvNextV2Model` for a timm model with one input channel.

    The input channels of the first layer are summed, as timm does for one channel (`adapt_input_conv`). Shapes are not
    changed; `fit` changes them to those of a timm model.

    Args:
        weights: Weights by transformers' names; names that ConvNeXt does not have are kept.
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in _RENAMED:
            name, found = re.subn(rf"^{pattern}", replacement, name)
            if found:
                break
        renamed[name] = value.sum(dim=1, keepdim=True) if name == _FIRST_LAYER else value
    return renamed


def fit(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Reshapes weights to the shapes of a timm model.

    timm's small models have 1x1 convolutions instead of linear layers, and a vector for V2's normalisation: the same
    numbers with more or fewer axes of length 1.

    Args:
        weights: Weights by timm's names.
        expected: The timm model's state.

    Returns:
        The weights by name, or None if a name or a shape belongs to another network.
    """
    if weights.keys() != expected.keys():
        return None
    if any(_lengths(weights[name]) != _lengths(value) for name, value in expected.items()):
        return None
    return {name: weights[name].reshape(value.shape) for name, value in expected.items()}


def timm_backbones(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of timm's ConvNeXts that fit these weights (see `fit`)."""
    return [name for name, state in _timm_states().items() if fit(weights, state) is not None]


@functools.cache
def _timm_states() -> dict[str, dict[str, torch.Tensor]]:
    """Names and shapes of the weights of timm's ConvNeXts; nothing is computed or kept in memory."""
    # timm's `test_` models are excluded: they have another activation, which weights do not show.
    names = timm.list_models("convnext*")
    with torch.device("meta"):
        return {name: timm.create_model(name, in_chans=1, num_classes=0).state_dict() for name in names}


def _lengths(value: torch.Tensor) -> list[int]:
    return [length for length in value.shape if length != 1]


CONVNEXTS = {"convnext": ConvNextForImageClassification, "convnextv2": ConvNextV2ForImageClassification}


def initialize(model: KenyaBirdsForAudioClassification, init_from: str, extractor: KenyaBirdsFeatureExtractor) -> str:
    """Loads initial weights into a model; warns if a starting model was trained with other feature settings.

    A model of this package provides its backbone, and the classifier's rows of the shared classes. Other weights
    provide only a backbone; the input channels of its first layer are summed into one.

    Args:
        model: A model with random weights.
        init_from: `"pretrained"` (timm's weights for this backbone, from the Hub), `"scratch"` (leave it random), a
            safetensors file with the weights of this backbone in timm's naming, or a model: a folder, `owner/name` or
            `owner/name@revision` on the Hub, of this package or transformers' ConvNeXt.
        extractor: The feature extractor of the training.

    Returns:
        The origin of the weights, without local paths: `"pretrained"`, `"scratch"`, `"file"`, `"model"` (a folder) or
        `owner/name@commit`.

    Raises:
        UserError: If the weights cannot be downloaded or read, or are not for this backbone.
    """
    kind = kind_of_starting_point(init_from)
    if kind == "pretrained":
        model.backbone.load_state_dict(_pretrained(model).state_dict())
    elif kind == "file":
        model.backbone.load_state_dict(_from_file(model, Path(init_from)).state_dict())
    elif kind == "model":
        donor = find_model(init_from)
        _from_donor(model, donor)
        for line in feature_warnings(donor, extractor):
            logger.warning(line)
        return donor.starting_point
    return kind


def kind_of_starting_point(init_from: str) -> str:
    """The kind of `--init_from`, without local paths: `"pretrained"`, `"scratch"`, `"file"` or `"model"`."""
    if init_from in ("pretrained", "scratch"):
        return init_from
    return "file" if init_from.endswith(".safetensors") or Path(init_from).is_file() else "model"


def _pretrained(model: KenyaBirdsForAudioClassification) -> Any:
    name = model.config.backbone
    repo_id = model.backbone.pretrained_cfg.get("hf_hub_id")
    if not repo_id:
        raise UserError(
            f"the Hub has no timm weights of '{name}': pass --init_from FILE (safetensors) or --init_from scratch"
        )
    try:
        if not isinstance(try_to_load_from_cache(repo_id, WEIGHTS_FILE), str):
            # One request, which fails immediately without network: the download would retry for a minute.
            files = [file.rfilename for file in model_info(repo_id).siblings or []]
            if WEIGHTS_FILE not in files:
                raise UserError(f"{repo_id} has no {WEIGHTS_FILE}, and pickled weights are not loaded")
        return build_backbone(model.config, pretrained=True)
    except (OSError, HfHubHTTPError, transport_error()) as error:
        raise UserError(
            f"the pretrained weights of '{name}' cannot be downloaded from the Hub ({type(error).__name__}): check "
            "the network, or pass --init_from FILE (safetensors with timm's names) or --init_from scratch"
        ) from None


def _from_file(model: KenyaBirdsForAudioClassification, path: Path) -> Any:
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"--init_from is '{path}': expected 'pretrained', 'scratch', a model, or an existing .safetensors file "
            f"with the weights of {model.config.backbone}"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            found = set(file.keys())
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from None
    expected = set(model.backbone.state_dict())
    classifier = model.backbone.pretrained_cfg.get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    missing = sorted(expected - found)
    surplus = sorted(name for name in found - expected if name.rpartition(".")[0] not in classifiers)
    if missing or surplus:
        example = f"lacks {missing[0]}" if missing else f"has {surplus[0]}"
        raise UserError(
            f"{path} does not contain the weights of {model.config.backbone} with timm's names: {len(missing)} of "
            f"{len(expected)} are missing and {len(surplus)} are unknown (it {example})"
        )
    try:
        return build_backbone(model.config, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit {model.config.backbone}: {str(error).splitlines()[-1].strip()}"
        ) from None


def _from_donor(model: KenyaBirdsForAudioClassification, donor: SavedModel) -> None:
    model_type = str(donor.config.get("model_type"))
    if model_type == KenyaBirdsConfig.model_type:
        _from_own_model(model, donor)
    elif model_type in CONVNEXTS:
        _from_convnext(model, donor, model_type)
    else:
        raise UserError(
            f"'{donor.name}' has the model_type {model_type!r}: expected one of "
            f"{', '.join((KenyaBirdsConfig.model_type, *CONVNEXTS))}"
        )


def _from_own_model(model: KenyaBirdsForAudioClassification, donor: SavedModel) -> None:
    check_trained(donor, NO_START)
    theirs, ours = str(donor.config.get("backbone", KenyaBirdsConfig.backbone)), model.config.backbone
    if theirs.split(".")[0] != ours.split(".")[0]:
        raise UserError(f"'{donor.name}' has the backbone {theirs}, expected {ours}: pass --backbone {theirs}")
    # The same architecture, but the installed timm may not know the tag of the donor's weights.
    given = load(donor, KenyaBirdsForAudioClassification, backbone=ours)
    model.backbone.load_state_dict(given.backbone.state_dict())
    if given.config.head is not None or model.config.head is not None:
        logger.info(
            "The classifier of '%s' is not taken over, because a head on embeddings differs from it", donor.name
        )
        return
    indices = model.config.label2id
    shared = {indices[code]: index for index, code in given.config.id2label.items() if code in indices}
    with torch.no_grad():
        for index, given_index in shared.items():
            model.classifier.weight[index] = given.classifier.weight[given_index]
            model.classifier.bias[index] = given.classifier.bias[given_index]
    logger.info(
        "'%s' has %d of %d classes; the classifier's other rows are random", donor.name, len(shared), len(indices)
    )


def _from_convnext(model: KenyaBirdsForAudioClassification, donor: SavedModel, model_type: str) -> None:
    activation = donor.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise UserError(f"'{donor.name}' has the activation {activation!r}, expected 'gelu' as in timm's ConvNeXt")
    weights = to_timm_names(load(donor, CONVNEXTS[model_type], unused="classifier.").base_model.state_dict())
    fitted = fit(weights, model.backbone.state_dict())
    ours = model.config.backbone
    if fitted is None or not ours.startswith("convnext"):
        names = timm_backbones(weights)
        advice = f"pass --backbone {names[0]}" if names else "timm has no such ConvNeXt, so it cannot be used"
        raise UserError(f"'{donor.name}' is not a {ours}: {advice}")
    model.backbone.load_state_dict(fitted)
