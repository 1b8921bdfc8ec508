"""Loads trained models: from safetensors only, and no code of theirs is run."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedModel

from kenya_birds.console import transformers_bars_hidden, user_errors
from kenya_birds.errors import UserError
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.saved_models import SavedModel, check_ours, find_model

# What from_pretrained raises on a damaged file, and on a config.json with values that make no sense.
_UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


def load(
    saved: SavedModel,
    model_class: type[PreTrainedModel] | type[AutoModel],
    unused: str | None = None,
    *,
    heads_may_differ: bool = False,
    **settings: Any,
) -> Any:
    """Loads a model in float32 with a class of an installed package.

    Args:
        saved: The model.
        model_class: A class with whose weights it must agree.
        unused: Start of the names of weights that need not agree.
        heads_may_differ: Whether there may be weights that the class does not know.
        **settings: Values that replace those of its config.

    Raises:
        UserError: If the model cannot be read, or its weights are not those of its config.
    """
    try:
        with transformers_bars_hidden():
            model, info = model_class.from_pretrained(
                saved.folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **settings,
            )
    except _UNREADABLE as error:
        raise UserError(f"'{saved.name}' cannot be loaded ({type(error).__name__}: {error})") from None
    # What does not agree would be random, or lost, with no more than a table in the log.
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    unknown = () if heads_may_differ else info["unexpected_keys"]
    wrong = {"missing": info["missing_keys"], "unknown": unknown, "of another shape": mismatched}
    for how, names in wrong.items():
        if found := sorted(name for name in names if not (unused and name.startswith(unused))):
            raise UserError(
                f"'{saved.name}' does not hold the weights that its config.json tells of: {len(found)} are {how}, the "
                f"first is {found[0]}"
            )
    return model


def load_model(name: str | Path) -> tuple[KenyaBirdsForAudioClassification, KenyaBirdsFeatureExtractor]:
    """Loads a trained model of this package and its feature extractor; no code from the model's folder is run.

    Args:
        name: The model's folder, or `owner/name` or `owner/name@revision` on the Hub.

    Returns:
        The model in float32 and evaluation mode, and its feature extractor.

    Raises:
        UserError: If there is no such model, it is another kind of model, or a file of it cannot be used.
    """
    model, extractor = load_classifier(find_model(str(name)))
    return model.eval(), extractor


def load_classifier(
    saved: SavedModel,
) -> tuple[KenyaBirdsForAudioClassification, KenyaBirdsFeatureExtractor]:
    """Loads a model of this package and its front end.

    Args:
        saved: The model.

    Raises:
        UserError: If it is another kind of model, or a file of it cannot be used.
    """
    check_ours(saved)
    model = load(saved, KenyaBirdsForAudioClassification)
    with user_errors(OSError, ValueError):
        return model, KenyaBirdsFeatureExtractor.from_pretrained(saved.folder, local_files_only=True)
