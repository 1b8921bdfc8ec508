"""Registers this package's classes with the Auto classes of transformers, so that they load our model folders."""

import importlib
from typing import Any

import wrapt


def register_when_imported() -> None:
    """Registers configuration, feature extractor and model as soon as transformers' Auto classes are imported.

    transformers and torch take seconds to import, so this function imports neither. Where they are imported already,
    the classes are registered at once.
    """
    for module, register in (
        ("configuration_auto", _register_config),
        ("feature_extraction_auto", _register_feature_extractor),
        ("modeling_auto", _register_model),
    ):
        wrapt.register_post_import_hook(register, f"transformers.models.auto.{module}")


def _ours(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"kenya_birds.model.{module}"), name)


def _config() -> Any:
    return _ours("configuration_kenya_birds", "KenyaBirdsConfig")


def _register_config(auto: Any) -> None:
    auto.AutoConfig.register(_config().model_type, _config(), exist_ok=True)


def _register_feature_extractor(auto: Any) -> None:
    extractor = _ours("feature_extraction_kenya_birds", "KenyaBirdsFeatureExtractor")
    auto.AutoFeatureExtractor.register(_config(), extractor, exist_ok=True)


def _register_model(auto: Any) -> None:
    model = _ours("modeling_kenya_birds", "KenyaBirdsForAudioClassification")
    for auto_class in (auto.AutoModelForAudioClassification, auto.AutoModel):
        auto_class.register(_config(), model, exist_ok=True)
