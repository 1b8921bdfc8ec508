"""The initial weights of training."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    ConvNextForImageClassification,
    ConvNextV2ForImageClassification,
    EfficientNetForImageClassification,
    PreTrainedModel,
)

from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.model.backbone_kenya_birds import build_backbone
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load
from kenya_birds.saved_models import (
    NO_START,
    WEIGHTS_FILE,
    SavedModel,
    check_one_network,
    check_trained,
    find_model,
    transport_error,
)
from kenya_birds.training.arguments import NAMED_STARTS, FeatureArguments
from kenya_birds.training.weight_names import (
    fit,
    is_perch,
    strip_prefixes,
    sum_input_channels,
    timm_backbone,
    to_timm_names,
)

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
    """Lines about feature flags that differ between the run and the training of its starting model; none if none do.

    Args:
        donor: The starting model.
        extractor: The run's feature extractor.
    """
    trained = feature_settings_of(donor)
    if trained is None:
        # Fixed levels are those of a published network (see `front_ends`).
        if extractor.fixed_mean_db is not None:
            return []
        return [
            f"'{donor.name}' does not contain the feature settings of its training: see --front_end_from, and its "
            "model card"
        ]
    lines = [
        f"'{donor.name}' was trained with --{name} {value}, this run has --{name} {getattr(extractor, name)}"
        for name, value in trained.items()
        if value != getattr(extractor, name)
    ]
    return [*lines, f"to take over the feature settings: --front_end_from {donor.name}"] if lines else []


class _Kind(NamedTuple):
    """An image model of transformers: its class, and what must be as in timm, where a config has it."""

    model_class: type[PreTrainedModel]
    expected: dict[str, tuple[Any, ...]]


_KINDS = {
    "convnext": _Kind(ConvNextForImageClassification, {"hidden_act": ("gelu",)}),
    "convnextv2": _Kind(ConvNextV2ForImageClassification, {"hidden_act": ("gelu",)}),
    "efficientnet": _Kind(
        EfficientNetForImageClassification, {"hidden_act": ("swish", "silu"), "batch_norm_eps": (0.001,)}
    ),
}
PERCH = "perch-2"


def initialize(model: KenyaBirdsForAudioClassification, init_from: str, extractor: KenyaBirdsFeatureExtractor) -> str:
    """Loads initial weights into a model; warns if a starting model was trained with other feature settings.

    A model of this package provides its backbone, and the classifier's rows of the shared classes. Other weights
    provide only a backbone; the input channels of its first layer are summed into one.

    Args:
        model: A model with random weights.
        init_from: `"pretrained"` (timm's weights for this backbone, from the Hub), `"scratch"` (leave it random), a
            safetensors file with the weights of this backbone under the names of timm, of transformers or of Perch 2
            in PyTorch, or a model: a folder, `owner/name` or `owner/name@revision` on the Hub, of this package or
            transformers' ConvNeXt or EfficientNet.
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
        model.backbone.load_state_dict(_from_file(model, Path(init_from)))
    elif kind == "model":
        donor = find_model(init_from)
        _from_donor(model, donor)
        for line in feature_warnings(donor, extractor):
            logger.warning(line)
        return donor.starting_point
    return kind


def kind_of_starting_point(init_from: str) -> str:
    """The kind of `--init_from`, without local paths: `"pretrained"`, `"scratch"`, `"file"` or `"model"`."""
    if init_from in NAMED_STARTS:
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


def _from_file(model: KenyaBirdsForAudioClassification, path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"--init_from is '{path}': expected 'pretrained', 'scratch', a model, or an existing .safetensors file "
            f"with the weights of {model.config.backbone}. Pickled weights are not loaded: convert them with "
            "safetensors.torch.save_file"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            found = set(file.keys())
        if found >= set(model.backbone.state_dict()):
            return _in_our_axes(model, _with_timms_names(model, path, found))
        stripped = strip_prefixes(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from None
    renamed = to_timm_names(stripped)
    if renamed is not None:
        return _fitted(model, renamed, str(path), is_perch(stripped))
    if stripped.keys() == model.backbone.state_dict().keys():
        summed, of_perch = sum_input_channels(stripped), model.config.backbone_variant == PERCH
        return _in_our_axes(model, _fitted(model, summed, str(path), of_perch))
    return _with_timms_names(model, path, found)


def _in_our_axes(model: KenyaBirdsForAudioClassification, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Transposes kernels of Perch 2 under timm's names: the rows of its spectrograms are frames."""
    if model.config.backbone_variant != PERCH:
        return state
    return {name: value.transpose(2, 3) if value.ndim == 4 else value for name, value in state.items()}


def _with_timms_names(model: KenyaBirdsForAudioClassification, path: Path, found: set[str]) -> dict[str, torch.Tensor]:
    """State of the backbone, from a file that has timm's names or is refused."""
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
        loaded = build_backbone(model.config, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit {model.config.backbone}: {str(error).splitlines()[-1].strip()}"
        ) from None
    return loaded.state_dict()


def _from_donor(model: KenyaBirdsForAudioClassification, donor: SavedModel) -> None:
    model_type = str(donor.config.get("model_type"))
    if model_type == KenyaBirdsConfig.model_type:
        _from_own_model(model, donor)
    elif model_type in _KINDS:
        _from_transformers(model, donor, _KINDS[model_type])
    else:
        raise UserError(
            f"'{donor.name}' has the model_type {model_type!r}: expected one of "
            f"{', '.join((KenyaBirdsConfig.model_type, *_KINDS))}"
        )


def _from_own_model(model: KenyaBirdsForAudioClassification, donor: SavedModel) -> None:
    check_trained(donor, NO_START)
    check_one_network(donor)
    theirs, ours = str(donor.config.get("backbone", KenyaBirdsConfig.backbone)), model.config.backbone
    if theirs.split(".")[0] != ours.split(".")[0]:
        raise UserError(
            f"'{donor.name}' has the backbone {theirs}, expected {ours}: pass --front_end_from {donor.name}, which "
            f"sets the feature settings too, or --backbone {theirs}"
        )
    variants = str(donor.config.get("backbone_variant", "timm")), model.config.backbone_variant
    if variants[0] != variants[1]:
        raise UserError(
            f"'{donor.name}' has the backbone_variant {variants[0]}, expected {variants[1]}: pass "
            f"--front_end_from {donor.name}, or --backbone_variant {variants[0]}"
        )
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


def _from_transformers(model: KenyaBirdsForAudioClassification, donor: SavedModel, kind: _Kind) -> None:
    for name, allowed in kind.expected.items():
        value = donor.config.get(name, allowed[0])
        if value not in allowed:
            raise UserError(f"'{donor.name}' has {name} {value!r}, expected {allowed[0]!r} as in timm")
    weights = to_timm_names(load(donor, kind.model_class, unused="classifier.").base_model.state_dict())
    assert weights is not None
    model.backbone.load_state_dict(_fitted(model, weights, f"'{donor.name}'", False))


def _fitted(
    model: KenyaBirdsForAudioClassification, weights: dict[str, torch.Tensor], source: str, of_perch: bool
) -> dict[str, torch.Tensor]:
    """State of the backbone from weights with timm's names.

    Raises:
        UserError: If they are of another backbone, or of another variant of it.
    """
    ours, variant = model.config.backbone, model.config.backbone_variant
    if of_perch and variant != PERCH:
        raise UserError(f"{source} has the weights of Perch 2: pass --front_end_from {PERCH}")
    if variant == PERCH and not of_perch:
        raise UserError(
            f"{source} is not Perch 2, but --front_end_from or --backbone_variant is {PERCH}: leave it out"
        )
    fitted = fit(weights, model.backbone.state_dict())
    # timm's test models and EfficientNets without tf_ have the same weights in some cases, and are other networks.
    if fitted is None or not ours.startswith(("convnext", "tf_efficientnet_b")):
        name = timm_backbone(weights)
        advice = f"pass --backbone {name}" if name else "timm has no such network, so it cannot be used"
        raise UserError(f"{source} is not a {ours}: {advice}")
    return fitted
