"""Loading of trained models, from safetensors only and without running code from the model's folder."""

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

# Exceptions of from_pretrained for a damaged file or invalid values in config.json.
_UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
# Only training uses this vector of wav2vec 2.0 and its relatives, and fine-tuned models do not always have it.
_MASK = "masked_spec_embed"


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
        model_class: Class of the model, whose weights must all be in the file.
        unused: Prefix of the names of weights that may be missing.
        heads_may_differ: Whether the file may have additional weights.
        **settings: Values that replace those of its config.

    Raises:
        UserError: If the model cannot be read, or its weights do not match its config.
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
    # transformers only logs such weights; missing ones would be random, unknown ones lost.
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    unknown = () if heads_may_differ else info["unexpected_keys"]
    masks = [name for name in info["missing_keys"] if name.endswith(_MASK)]
    wrong = {
        "missing": set(info["missing_keys"]).difference(masks),
        "unknown": unknown,
        "of another shape": mismatched,
    }
    for how, names in wrong.items():
        if found := sorted(name for name in names if not (unused and name.startswith(unused))):
            raise UserError(
                f"'{saved.name}' has other weights than its config.json requires: {len(found)} are {how}, the first "
                f"is {found[0]}"
            )
    with torch.no_grad():
        for name in masks:
            model.get_parameter(name).zero_()  # it is random, and embeddings are cached by all weights
    return model


def load_model(name: str | Path) -> tuple[KenyaBirdsForAudioClassification, KenyaBirdsFeatureExtractor]:
    """Loads a trained model of this package and its feature extractor; code in the model's folder is not run.

    Args:
        name: The model's folder, or `owner/name` or `owner/name@revision` on the Hub.

    Returns:
        The model in float32 and evaluation mode, and its feature extractor.

    Raises:
        UserError: If the model does not exist, is another kind of model, or one of its files cannot be used.
    """
    model, extractor = load_classifier(find_model(name))
    return model.eval(), extractor


def load_classifier(
    saved: SavedModel,
) -> tuple[KenyaBirdsForAudioClassification, KenyaBirdsFeatureExtractor]:
    """Loads a model of this package and its feature extractor.

    Args:
        saved: The model.

    Raises:
        UserError: If it is another kind of model, or one of its files cannot be used.
    """
    check_ours(saved)
    model = load(saved, KenyaBirdsForAudioClassification)
    with user_errors(OSError, ValueError):
        return model, KenyaBirdsFeatureExtractor.from_pretrained(saved.folder, local_files_only=True)
