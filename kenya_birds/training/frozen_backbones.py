"""Frozen backbones: published networks and trained models, found and checked without torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kenya_birds.defaults import BACKBONE
from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.model.graph_kenya_birds import RUNTIMES, find_graph
from kenya_birds.saved_models import PROCESSOR_FILE, SavedModel, check_one_network, check_ours, find_model
from kenya_birds.training.arguments import (
    AugmentationArguments,
    DataArguments,
    FeatureArguments,
    ModelArguments,
    WaveformArguments,
)
from kenya_birds.waveform_networks import PRESETS, WRAP_AGAIN, NetworkSettings, embedder_settings

# Random changes of spectrograms, which a network that takes the waveform does not have.
SPECTRAL = ("pitch_probability", "speed_probability", "mask_probability")
# Defaults of training a head: it has few parameters, and small steps would take many epochs.
OURS = "kenya_birds"
HEAD_DEFAULTS = {"learning_rate": 1e-3}


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone of which nothing is trained.

    Attributes:
        name: As the user gave it.
        features: Arguments of its feature extractor.
        graph: `graph` of the model's config, with the absolute path of the file; None for other models.
        saved: The model's files; None for a file of a published network.
        is_foreign: Whether it is an audio model of transformers.
    """

    name: str
    features: FeatureArguments
    graph: dict[str, Any] | None
    saved: SavedModel | None
    is_foreign: bool = False

    @property
    def architecture(self) -> str:
        """`backbone` of the model's config; without a meaning for a published network or a model of transformers."""
        if self.saved is None or self.is_foreign:
            return BACKBONE
        return str(self.saved.config.get("backbone", BACKBONE))

    @property
    def variant(self) -> str:
        """`backbone_variant` of the model's config."""
        return "timm" if self.saved is None else str(self.saved.config.get("backbone_variant", "timm"))

    @property
    def is_untrained(self) -> bool:
        """Whether it is a network or a model of others, of which nothing was trained here."""
        if self.graph is None:
            return self.is_foreign
        return self.saved is None or self.saved.config.get("head") is None

    @property
    def public_name(self) -> str:
        """Its name without local paths."""
        if self.graph is not None:
            return str(self.graph["name"])
        assert self.saved is not None
        return self.saved.public_name


def is_frozen(model: ModelArguments) -> bool:
    """Whether only a head is trained."""
    return model.freeze_backbone or has_path(model)


def has_path(model: ModelArguments) -> bool:
    """Whether the backbone is a network's file, or a model's folder or name on the Hub, and no name of timm's.

    A folder that has the name of its own timm model, such as the output of a run, counts as the name.
    """
    path = Path(model.backbone)
    if path.suffix in RUNTIMES or path.name != model.backbone:
        return True
    if not (path / "config.json").is_file():
        return False
    return str(read_json(path / "config.json").get("backbone")).partition(".")[0] != path.name.partition(".")[0]


def find_backbone(model: ModelArguments, features: Mapping[str, Any]) -> FrozenBackbone | None:
    """Finds the file or the folder that is the backbone.

    Args:
        model: The backbone and its settings.
        features: Given feature arguments: those of a network's file without a preset, or the length of windows.

    Returns:
        The backbone; None for a name of timm.

    Raises:
        UserError: If it does not exist or cannot be used, or its settings are not known.
    """
    if not has_path(model):
        _refuse_settings_of_files(model, "give --backbone FILE")
        return None
    path = Path(model.backbone)
    if path.suffix in RUNTIMES:
        return _of_file(model, path, features)
    _refuse_settings_of_files(model, f"'{model.backbone}' is a model, which has its settings: leave it out")
    saved = find_model(model.backbone)
    if saved.config.get("model_type") != OURS:
        return _of_audio_model(model, saved, features)
    return _of_model(model, saved)


def _refuse_settings_of_files(model: ModelArguments, advice: str) -> None:
    for name in ("backbone_preset", "backbone_embedding"):
        if getattr(model, name) is not None:
            raise UserError(f"--{name} is for the file of a published network: {advice}")


def _of_file(model: ModelArguments, path: Path, features: Mapping[str, Any]) -> FrozenBackbone:
    known = PRESETS.get(str(model.backbone_preset))
    if known is None:
        known = NetworkSettings(path.stem, features.get("sampling_rate"), clip_s=features.get("clip_s"))
    known = dataclasses.replace(known, embedding=model.backbone_embedding or known.embedding)
    if known.sampling_rate is None or known.embedding is None:
        raise UserError(
            f"the {'embedding' if known.sampling_rate else 'sampling rate'} of {path.name} is not known: give "
            f"--backbone_preset {'|'.join(PRESETS)}, or --backbone_embedding TENSOR and --sampling_rate HZ, or a "
            "folder that kenya-birds wrap made of it"
        )
    graph = embedder_settings(path, known)
    highest = known.sampling_rate / 2
    known = dataclasses.replace(
        known, clip_s=graph["samples"] / known.sampling_rate, f_max_hz=min(known.f_max_hz or highest, highest)
    )
    return FrozenBackbone(model.backbone, WaveformArguments(**known.front_end()), graph, None)


def _of_audio_model(model: ModelArguments, saved: SavedModel, features: Mapping[str, Any]) -> FrozenBackbone:
    """An audio model of transformers; what it can embed is checked when it is loaded."""
    _refuse_settings_of_networks(model, saved)
    rate = _extractor_settings(saved).get("sampling_rate")
    if not isinstance(rate, int):
        raise UserError(
            f"'{saved.name}' is no audio model: expected a preprocessor_config.json with the sampling_rate of a "
            "feature extractor of waveforms"
        )
    clip_s = features.get("clip_s", FeatureArguments.clip_s)
    settings = NetworkSettings(sampling_rate=rate, clip_s=clip_s, f_max_hz=rate / 2).front_end()
    return FrozenBackbone(saved.name, WaveformArguments(**settings), None, saved, is_foreign=True)


def _refuse_settings_of_networks(model: ModelArguments, saved: SavedModel) -> None:
    for name in ("network_scores", "bundle_backbone"):
        if getattr(model, name):
            raise UserError(f"--{name} is for a published network, and '{saved.name}' is a model of transformers")


def _extractor_settings(saved: SavedModel) -> dict[str, Any]:
    """Settings of the feature extractor of a model of transformers, which may be a part of a processor."""
    path, processor = saved.folder / "preprocessor_config.json", saved.folder / PROCESSOR_FILE
    parts = read_json(processor) if processor.is_file() else {}
    part = parts.get("feature_extractor", parts.get("audio_processor"))
    if isinstance(part, dict):
        return part
    return read_json(path) if path.is_file() else {}


def _of_model(model: ModelArguments, saved: SavedModel) -> FrozenBackbone:
    name = saved.name
    check_ours(saved)
    check_one_network(saved)
    graph = saved.config.get("graph")
    if graph is not None:
        if graph.get("embedding") is None:
            raise UserError(f"the embedding of '{name}' is not known: {WRAP_AGAIN}")
        graph = {**graph, "file": find_graph(graph, saved.folder).absolute().as_posix()}
    front_end = read_json(saved.folder / "preprocessor_config.json")
    if saved.config.get("audio_model") is not None:
        _refuse_settings_of_networks(model, saved)
    takes_waveform = graph is not None or saved.config.get("audio_model") is not None
    kind = WaveformArguments if takes_waveform else FeatureArguments
    features = kind(**{field.name: front_end[field.name] for field in fields(kind) if field.name in front_end})
    return FrozenBackbone(name, features, graph, saved)


def check_frozen(
    data: DataArguments,
    model: ModelArguments,
    features: FeatureArguments,
    augmentation: AugmentationArguments,
) -> None:
    """Raises `UserError` if settings make no sense with the backbone.

    Args:
        data: The archive, and how it is cut and split.
        model: The backbone and the head.
        features: The feature settings.
        augmentation: Random changes of training windows.
    """
    takes_waveform = isinstance(features, WaveformArguments)
    if not is_frozen(model):
        usual = ModelArguments()
        for name in ("head", "head_hidden_size", "network_scores", "embedded_versions", "embedding_hop_s"):
            if getattr(model, name) != getattr(usual, name):
                raise UserError(
                    f"--{name} is for a frozen backbone: add --freeze_backbone true, or give a model folder or a "
                    "published network as --backbone"
                )
    if model.bundle_backbone and not takes_waveform:
        raise UserError("--bundle_backbone is for a published network: this backbone is in the model's weights anyway")
    if model.network_scores and not (takes_waveform and not Path(model.backbone).is_file()):
        raise UserError(
            "--network_scores needs a published network whose labels are known: give a folder of kenya-birds wrap as "
            "--backbone"
        )
    if not is_frozen(model):
        return
    if model.embedding_hop_s is not None and model.embedding_hop_s > features.clip_s:
        raise UserError(
            f"embedding_hop_s is {model.embedding_hop_s:g}: expected at most the length of a window, "
            f"{features.clip_s:g}"
        )
    refused = {
        "drop_path_rate": (model.drop_path_rate, "it changes a backbone in training"),
        "mixup_probability": (augmentation.mixup_probability, "it mixes sound anew in each epoch"),
        "hard_windows": (data.hard_windows, "it draws from windows that are not embedded"),
    }
    if model.embedded_versions == 1:
        changes = {
            field.name: getattr(augmentation, field.name)
            for field in fields(AugmentationArguments)
            if field.name.endswith("_probability")
        }
        why = "training windows are augmented with --embedded_versions 2 or more"
        refused = {**{name: (value, why) for name, value in changes.items()}, **refused}
    elif takes_waveform:
        why = "it changes spectrograms, and the network takes the waveform"
        refused = {**{name: (getattr(augmentation, name), why) for name in SPECTRAL}, **refused}
    for name, (value, why) in refused.items():
        if value:
            raise UserError(f"--{name} cannot be used with a frozen backbone: {why}; leave it out")


def frozen_values(
    backbone: FrozenBackbone | None,
    model: Mapping[str, Any],
    features: Mapping[str, Any],
    augmentation: Mapping[str, Any],
) -> tuple[FeatureArguments, dict[str, Any]]:
    """Feature settings and augmentation of a run with a frozen backbone.

    Args:
        backbone: The backbone; None if it is timm's.
        model: Given model arguments.
        features: Given feature arguments.
        augmentation: Given augmentation arguments.

    Returns:
        The feature settings, and the augmentation arguments: those that are impossible are off unless given.

    Raises:
        UserError: If a feature argument has another value than the backbone needs, or starting weights are given.
    """
    versions = model.get("embedded_versions", ModelArguments.embedded_versions)
    off: tuple[str, ...] = ()
    if backbone is not None and isinstance(backbone.features, WaveformArguments):
        off = SPECTRAL
    if versions == 1:
        off = tuple(field.name for field in fields(AugmentationArguments) if field.name.endswith("_probability"))
    changes = {**dict.fromkeys(off, 0.0), **augmentation}
    if backbone is None:
        return FeatureArguments(**features), changes
    for name, value in features.items():
        needed = getattr(backbone.features, name)
        if value != needed:
            raise UserError(f"{name} is {value}, but the backbone '{backbone.name}' needs {needed}: leave it out")
    if model.get("backbone_variant", backbone.variant) != backbone.variant:
        raise UserError(f"the backbone '{backbone.name}' has backbone_variant {backbone.variant}: leave it out")
    if model.get("init_from", "pretrained") != "pretrained":
        raise UserError(f"the weights of the backbone are those of '{backbone.name}': leave --init_from out")
    return backbone.features, changes
