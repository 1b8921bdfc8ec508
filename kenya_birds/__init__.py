"""Bird-call classifiers: train them on annotated soundscape recordings, run them on hours of sound, publish them.

Names are imported when they are first used, so `import kenya_birds` is quick. With the package imported, the Auto
classes and `pipeline` of transformers load this package's models without `trust_remote_code`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kenya_birds.auto_classes import register_when_imported
from kenya_birds.errors import UserError

if TYPE_CHECKING:
    from kenya_birds.data.dataset import load_clips
    from kenya_birds.experiments.evaluate import evaluate_model
    from kenya_birds.inference.detections import Detection
    from kenya_birds.inference.pipeline import SoundscapePipeline, detect
    from kenya_birds.inference.table_reader import read_detections
    from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
    from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
    from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
    from kenya_birds.model_loading import load_model
    from kenya_birds.training.trainer import KenyaBirdsTrainer
    from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments

__version__ = "0.1.0"

_MODULES = {
    "Detection": "inference.detections",
    "KenyaBirdsConfig": "model.configuration_kenya_birds",
    "KenyaBirdsFeatureExtractor": "model.feature_extraction_kenya_birds",
    "KenyaBirdsForAudioClassification": "model.modeling_kenya_birds",
    "KenyaBirdsTrainer": "training.trainer",
    "KenyaBirdsTrainingArguments": "training.training_arguments",
    "SoundscapePipeline": "inference.pipeline",
    "detect": "inference.pipeline",
    "evaluate_model": "experiments.evaluate",
    "load_clips": "data.dataset",
    "load_model": "model_loading",
    "read_detections": "inference.table_reader",
}

__all__ = [
    "Detection",
    "KenyaBirdsConfig",
    "KenyaBirdsFeatureExtractor",
    "KenyaBirdsForAudioClassification",
    "KenyaBirdsTrainer",
    "KenyaBirdsTrainingArguments",
    "SoundscapePipeline",
    "UserError",
    "__version__",
    "detect",
    "evaluate_model",
    "load_clips",
    "load_model",
    "read_detections",
]

register_when_imported()


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
