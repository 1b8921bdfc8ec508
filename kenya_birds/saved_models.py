"""Trained models in a folder or on the Hub: found, fetched, loaded. Safetensors only, and no code of theirs is run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedModel

from kenya_birds.console import user_errors
from kenya_birds.errors import UserError
from kenya_birds.json_files import read_json
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# All that is fetched: neither code nor pickled weights, nor the checkpoints of somebody's training.
FETCHED = ("*.json", "splits.csv", "training_recordings.csv", WEIGHTS_FILE, "model-*-of-*.safetensors")
# The transport's own base error: httpx.HTTPError with huggingface_hub 1.x, httpx2.HTTPError with 2.x.
TransportError = cast(type[Exception], HfHubHTTPError.__mro__[1])
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


@dataclass(frozen=True)
class SavedModel:
    """A trained model on this machine.

    Attributes:
        name: What the user called it.
        folder: Where its files are.
        starting_point: What may be published about it: `owner/name@commit`, or `model` where it is a folder.
    """

    name: str
    folder: Path
    starting_point: str

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return read_json(self.folder / "config.json")


def find_model(name: str) -> SavedModel:
    """Finds a trained model, and fetches it where it is on the Hub.

    Args:
        name: A folder, or `owner/name` or `owner/name@revision` on the Hub. A folder goes first.

    Raises:
        UserError: If there is no such model, it cannot be fetched, or it lacks a configuration or safetensors weights.
    """
    folder = Path(name)
    if folder.is_dir():
        saved = SavedModel(name, folder, "model")
    else:
        folder = _fetch(name)
        saved = SavedModel(name, folder, f"{name.partition('@')[0]}@{folder.name}")
    if not (folder / "config.json").is_file():
        raise UserError(f"'{name}' is no model: expected a config.json in it and found none")
    _check_weights(saved)
    return saved


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


def load_classifier(saved: SavedModel) -> tuple[KenyaBirdsForAudioClassification, KenyaBirdsFeatureExtractor]:
    """Loads a model of this package and its front end.

    Args:
        saved: The model.

    Raises:
        UserError: If it is another kind of model, or a file of it cannot be used.
    """
    if saved.config.get("model_type") != "kenya_birds":
        raise UserError(
            f"'{saved.name}' is no model of this package: its config.json says {saved.config.get('model_type')}"
        )
    model = load(saved, KenyaBirdsForAudioClassification)
    with user_errors(OSError, ValueError):
        return model, KenyaBirdsFeatureExtractor.from_pretrained(saved.folder, local_files_only=True)


def _fetch(name: str) -> Path:
    repo_id, _, revision = name.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = ""
    if "/" not in repo_id:
        raise UserError(
            f"there is no model '{name}': expected a model's folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hub"
        )
    try:
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=list(FETCHED)))
    except GatedRepoError:
        raise UserError(
            f"{repo_id} is gated: ask for access on its page, and log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"there is no folder '{name}', and no model {repo_id} on the Hub that you may read: check the name, or "
            "log in with `hf auth login` if it is private"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repo_id} has no revision '{revision}': check the part after the @") from None
    except (OSError, HfHubHTTPError, TransportError) as error:
        raise UserError(
            f"there is no folder '{name}', and {repo_id} cannot be fetched from the Hub ({type(error).__name__}): "
            "connect to it, or give a folder"
        ) from None


def _check_weights(saved: SavedModel) -> None:
    if (saved.folder / WEIGHTS_FILE).is_file():
        return
    if not (saved.folder / WEIGHTS_INDEX).is_file():
        raise UserError(f"'{saved.name}' has no {WEIGHTS_FILE}: pickled weights (pytorch_model.bin) are not loaded")
    shards = read_json(saved.folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{WEIGHTS_INDEX} of '{saved.name}' has no weight_map")
    for shard in sorted(set(map(str, shards.values()))):
        if Path(shard).name != shard or not (saved.folder / shard).is_file():
            raise UserError(f"'{saved.name}' lacks the file {shard!r} that its {WEIGHTS_INDEX} names")
