"""Search for trained models in a folder or on the Hub. Commands check a model before they import torch."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kenya_birds.errors import UserError
from kenya_birds.extras import check_extra
from kenya_birds.files import read_json

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
THRESHOLDS_FILE = "thresholds.json"
# Settings of a processor of transformers, with those of its feature extractor.
PROCESSOR_FILE = "processor_config.json"
# Embeddings of training calls, for `kenya-birds detect --novelty`.
NOVELTY_FILE = "novelty.safetensors"
# Why a published network is refused for training.
NO_START = "its weights cannot be the start of a training; give another --init_from"
# Extras with the runtimes of published networks, by the suffix of the network's file.
RUNTIME_EXTRAS = {".onnx": "onnxruntime", ".tflite": "tflite"}
# Files that are downloaded, besides that of a published network: no code, no pickled weights and no checkpoints.
FETCHED = (
    *("*.json", "splits.csv", "training_recordings.csv"),
    *(WEIGHTS_FILE, "model-*-of-*.safetensors", NOVELTY_FILE),
)


@dataclass(frozen=True)
class SavedModel:
    """A trained model on this machine.

    Attributes:
        name: Name that the user gave.
        folder: Folder of its files.
        starting_point: Public origin: `owner/name@commit`, or `model` for a folder.
    """

    name: str
    folder: Path
    starting_point: str

    @property
    def public_name(self) -> str:
        """Public name: `owner/name@commit`, or the name of its folder without the path."""
        return self.folder.resolve().name if self.starting_point == "model" else self.starting_point

    @property
    def config(self) -> dict[str, Any]:
        """Content of its config.json."""
        return read_json(self.folder / "config.json")


def find_model(name: str | Path) -> SavedModel:
    """Finds a trained model; a model on the Hub is downloaded.

    Args:
        name: A folder, or `owner/name` or `owner/name@revision` on the Hub. An existing folder has priority.

    Raises:
        UserError: If the model does not exist, cannot be downloaded, or has no configuration or safetensors weights.
    """
    name = os.fspath(name)
    saved = check_model(name)
    if saved is None:
        folder = _fetch(name)
        saved = SavedModel(name, folder, f"{name.partition('@')[0]}@{folder.name}")
        _check_files(saved)
    return saved


def check_model(name: str, *, ours: bool = False) -> SavedModel | None:
    """Checks a model without the network, and without slow imports.

    Args:
        name: See `find_model`.
        ours: Whether it must be a model of this package.

    Returns:
        The model; None for a name on the Hub.

    Raises:
        UserError: If there is no such folder and the name is not valid on the Hub, or the folder has no configuration
            or safetensors weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", name) or folder.exists():
            raise UserError(
                f"there is no model '{name}': expected a model's folder, or OWNER/NAME or OWNER/NAME@REVISION on the "
                "Hub"
            )
        return None
    saved = SavedModel(name, folder, "model")
    _check_files(saved)
    if ours:
        check_ours(saved)
    return saved


def check_ours(saved: SavedModel) -> None:
    """Raises `UserError` if a model is not of this package, or the file of its published network is unusable."""
    if saved.config.get("model_type") != "kenya_birds":
        raise UserError(
            f"'{saved.name}' is no model of this package: its config.json has the model_type "
            f"{saved.config.get('model_type')}"
        )
    graph = saved.config.get("graph")
    if graph is not None:
        # It imports numpy.
        from kenya_birds.model.graph_kenya_birds import check_sha256, find_graph

        try:
            path = find_graph(graph, saved.folder)
            check_extra(RUNTIME_EXTRAS[path.suffix], f"'{saved.name}' ({path.name})")
            check_sha256(path, str(graph["sha256"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"'{saved.name}' cannot be used: {error}") from None


def runtime_of(saved: SavedModel) -> tuple[str, ...]:
    """The package that runs a model's published network; none if it has no network."""
    graph = saved.config.get("graph")
    if graph is None:
        return ()
    from kenya_birds.model.graph_kenya_birds import RUNTIMES

    return (RUNTIMES[Path(graph["file"]).suffix][1],)


def runtime_extras(saved: SavedModel) -> tuple[str, ...]:
    """The extra with the package that runs a model's published network; none if it has no network."""
    graph = saved.config.get("graph")
    return () if graph is None else (RUNTIME_EXTRAS[Path(graph["file"]).suffix],)


def check_trained(saved: SavedModel, what: str) -> None:
    """Raises `UserError` if a model has a network of others, whose weights this package cannot train or export.

    Args:
        saved: The model.
        what: What is refused, and what to do, as the end of a sentence.
    """
    network = saved.config.get("graph") or saved.config.get("audio_model")
    if network is not None:
        raise UserError(
            f"'{saved.name}' has a published network ({network.get('name')}), which was not trained here: {what}"
        )


def check_one_network(saved: SavedModel) -> None:
    """Raises `UserError` if a model combines several networks.

    Args:
        saved: The model.
    """
    members = saved.config.get("backbone_members", 1)
    if members > 1:
        raise UserError(f"'{saved.name}' combines {members} networks: give one of the models that it was made of")


def check_thresholds(saved: SavedModel, threshold: float | None) -> None:
    """Raises `UserError` if there are no decision thresholds, neither in the model nor from the user.

    Args:
        saved: The model.
        threshold: The user's threshold for all species; None: not given.
    """
    if threshold is None and not (saved.folder / THRESHOLDS_FILE).is_file():
        raise UserError(
            f"'{saved.name}' has no {THRESHOLDS_FILE} with a decision threshold for each species: give one threshold "
            "for all species with --threshold (threshold=)"
        )


def check_species_of_thresholds(path: Path, species: Iterable[str], classes: Iterable[str]) -> None:
    """Raises `UserError` if a file of thresholds has species that are not those of a model.

    Args:
        path: The file.
        species: Its eBird codes.
        classes: eBird codes of the model.
    """
    unknown = sorted(set(species) - set(classes))
    if unknown:
        raise UserError(
            f"{path} has a threshold of {unknown[0]}, which is no species of the model: it is of another one"
        )


def transport_error() -> type[Exception]:
    """Returns the base of the Hub's HTTP errors: httpx.HTTPError (huggingface_hub 1.x) or httpx2.HTTPError (2.x)."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast(type[Exception], HfHubHTTPError.__mro__[1])


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo_id, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=list(FETCHED)))
        _fetch_network(repo_id, folder)
        return folder
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
    except HFValidationError as error:
        raise UserError(f"there is no model '{name}': {error}") from None
    except (OSError, HfHubHTTPError, transport_error()) as error:
        raise UserError(
            f"there is no folder '{name}', and {repo_id} cannot be downloaded from the Hub ({type(error).__name__}): "
            "check the connection, or give a folder"
        ) from None


def _fetch_network(repo_id: str, folder: Path) -> None:
    """Downloads the file of a model's published network, if it has one and its repository has the file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    graph = config.get("graph") if config.get("model_type") == "kenya_birds" else None
    file = Path(str(graph.get("file"))) if isinstance(graph, dict) else None
    if file is not None and file.suffix in RUNTIME_EXTRAS:
        with suppress(RemoteEntryNotFoundError):  # it is not published: `find_graph` tells the user
            hf_hub_download(repo_id, file.name, revision=folder.name)


def _check_files(saved: SavedModel) -> None:
    if not (saved.folder / "config.json").is_file():
        raise UserError(f"'{saved.name}' is no model: expected a config.json in it, found none")
    if (saved.folder / WEIGHTS_FILE).is_file():
        return
    if not (saved.folder / WEIGHTS_INDEX).is_file():
        raise UserError(f"'{saved.name}' has no {WEIGHTS_FILE}: pickled weights (pytorch_model.bin) are not loaded")
    shards = read_json(saved.folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{WEIGHTS_INDEX} of '{saved.name}' has no weight_map")
    for shard in sorted(set(map(str, shards.values()))):
        if Path(shard).name != shard or not (saved.folder / shard).is_file():
            raise UserError(f"'{saved.name}' has no file {shard!r}, which its {WEIGHTS_INDEX} lists")
