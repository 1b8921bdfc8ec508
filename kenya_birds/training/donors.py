"""What a model to start from was trained with, and how a run differs from it."""

from dataclasses import fields
from typing import Any

from kenya_birds.json_files import read_json
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.saved_models import SavedModel
from kenya_birds.training.arguments import FeatureArguments


def front_end_of(donor: SavedModel) -> dict[str, Any] | None:
    """What the donor's preprocessor_config.json says of our feature flags, by the flag's name; None if nothing."""
    if not (donor.folder / "preprocessor_config.json").is_file():
        return None
    told = read_json(donor.folder / "preprocessor_config.json")
    # An image processor has none of the audio arguments.
    if "sampling_rate" not in told:
        return None
    return {field.name: told[field.name] for field in fields(FeatureArguments) if field.name in told}


def front_end_warnings(donor: SavedModel, extractor: KenyaBirdsFeatureExtractor) -> list[str]:
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
