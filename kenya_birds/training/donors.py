"""Trained models to start from, in a folder or on the Hub: safetensors only, and no code of theirs is run."""

from dataclasses import dataclass, fields
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
from transformers import PreTrainedModel

from kenya_birds.errors import UserError
from kenya_birds.json_files import read_json
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.arguments import FeatureArguments

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# All that is fetched: neither code nor pickled weights, nor the checkpoints of somebody's training.
FETCHED = ("config.json", "preprocessor_config.json", WEIGHTS_FILE, WEIGHTS_INDEX, "model-*-of-*.safetensors")
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
class Donor:
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


def find_donor(name: str) -> Donor:
    """Finds a trained model, and fetches it where it is on the Hub.

    Args:
        name: A folder, or `owner/name` or `owner/name@revision` on the Hub. A folder goes first.

    Raises:
        UserError: If there is no such model, it cannot be fetched, or it lacks a configuration or safetensors weights.
    """
    folder = Path(name)
    if folder.is_dir():
        donor = Donor(name, folder, "model")
    else:
        folder = _fetch(name)
        donor = Donor(name, folder, f"{name.partition('@')[0]}@{folder.name}")
    if not (folder / "config.json").is_file():
        raise UserError(f"'{name}' is no model: expected a config.json in it and found none")
    _check_weights(donor)
    return donor


def load(donor: Donor, model_class: type[PreTrainedModel], unused: str | None = None, **settings: Any) -> Any:
    """Loads the donor in float32 with a class of an installed package.

    Args:
        donor: The donor.
        model_class: A class with whose weights it must agree.
        unused: Start of the names of weights that need not agree.
        **settings: Values that replace those of its config.

    Raises:
        UserError: If the donor cannot be read, or its weights are not those of its config.
    """
    try:
        model, info = model_class.from_pretrained(
            donor.folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings,
        )
    except _UNREADABLE as error:
        raise UserError(f"'{donor.name}' cannot be loaded ({type(error).__name__}: {error})") from None
    # What does not agree would be random, or lost, with no more than a table in the log.
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    wrong = {"missing": info["missing_keys"], "unknown": info["unexpected_keys"], "of another shape": mismatched}
    for how, names in wrong.items():
        if found := sorted(name for name in names if not (unused and name.startswith(unused))):
            raise UserError(
                f"'{donor.name}' does not hold the weights that its config.json tells of: {len(found)} are {how}, the "
                f"first is {found[0]}"
            )
    return model


def front_end_of(donor: Donor) -> dict[str, Any] | None:
    """What the donor's preprocessor_config.json says of our feature flags, by the flag's name; None if nothing."""
    if not (donor.folder / "preprocessor_config.json").is_file():
        return None
    told = read_json(donor.folder / "preprocessor_config.json")
    # An image processor has none of the audio arguments.
    if "sampling_rate" not in told:
        return None
    return {field.name: told[field.name] for field in fields(FeatureArguments) if field.name in told}


def front_end_warnings(donor: Donor, extractor: KenyaBirdsFeatureExtractor) -> list[str]:
    """One line for each feature flag in which the run differs from what the donor was trained with.

    Args:
        donor: The donor.
        extractor: The run's front end.
    """
    trained = front_end_of(donor)
    if trained is None:
        return [f"The front end that '{donor.name}' was trained with is not stated in it: its card may tell"]
    return [
        f"'{donor.name}' was trained with --{name} {value}, this run has --{name} {getattr(extractor, name)}"
        for name, value in trained.items()
        if value != getattr(extractor, name)
    ]


def _fetch(name: str) -> Path:
    repo_id, _, revision = name.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = ""
    if "/" not in repo_id:
        raise UserError(
            f"--init_from is '{name}': expected 'pretrained', 'scratch', an existing .safetensors file, the folder of "
            "a model, or OWNER/NAME or OWNER/NAME@REVISION of one on the Hub"
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
            "connect to it, or pass --init_from FOLDER"
        ) from None


def _check_weights(donor: Donor) -> None:
    if (donor.folder / WEIGHTS_FILE).is_file():
        return
    if not (donor.folder / WEIGHTS_INDEX).is_file():
        raise UserError(f"'{donor.name}' has no {WEIGHTS_FILE}: pickled weights (pytorch_model.bin) are not loaded")
    shards = read_json(donor.folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{WEIGHTS_INDEX} of '{donor.name}' has no weight_map")
    for shard in sorted(set(map(str, shards.values()))):
        if Path(shard).name != shard or not (donor.folder / shard).is_file():
            raise UserError(f"'{donor.name}' lacks the file {shard!r} that its {WEIGHTS_INDEX} names")
