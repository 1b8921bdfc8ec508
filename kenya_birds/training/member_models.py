"""Which models can be combined into one; this is checked without torch."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.saved_models import check_one_network, check_ours, check_trained, find_model
from kenya_birds.training.arguments import FeatureArguments
from kenya_birds.training.run_folder import SETTINGS_FILE, SPLITS_FILE, SUMMARY_FILE

# Of config.json. The classes are compared apart.
SAME = ("backbone", "backbone_variant", "problem_type", "no_call_class")
NO_MEMBER = "it cannot be combined with others"


def check_members(folders: Sequence[Path]) -> None:
    """Raises `UserError` if models cannot be combined.

    They need the same classes, front end, network, problem and splits. They may differ in everything that decides how
    they were trained.

    Args:
        folders: Output folders of training.
    """
    if len(folders) < 2:
        raise UserError(f"only one model is given ({folders[0]}): give two or more")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a model is given twice: give each once")
    about = [_about(folder) for folder in folders]
    for folder, one in zip(folders[1:], about[1:], strict=True):
        for name, value in one.items():
            if value != about[0][name]:
                shown = f" ({value!r} and {about[0][name]!r})" if isinstance(value, str | bool | int | None) else ""
                raise UserError(
                    f"{folder} and {folders[0]} differ in {name}{shown}: combine models that were trained with the "
                    "same features, network, species and splits"
                )


def _about(folder: Path) -> dict[str, Any]:
    """What models must have in common to be combined."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: expected the output folder of a training")
    for name in (SETTINGS_FILE, SPLITS_FILE, SUMMARY_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: expected the output folder of a finished training")
    saved = find_model(folder)
    check_ours(saved)
    check_one_network(saved)
    check_trained(saved, NO_MEMBER)
    if saved.config.get("head") is not None:
        raise UserError(f"{folder} is a head on a frozen backbone: {NO_MEMBER}")
    if "cross_validation" in read_json(folder / SUMMARY_FILE):
        raise UserError(
            f"{folder} was trained on all recordings, so nothing is left to choose decision thresholds on: {NO_MEMBER}"
        )
    settings = read_json(folder / SETTINGS_FILE)["settings"]
    if "train_on" not in settings:
        raise UserError(f"{folder} was trained by an older version of this package: {NO_MEMBER}")
    extractor = read_json(folder / "preprocessor_config.json")
    return {
        **{name: saved.config.get(name) for name in SAME},
        "species": [saved.config["id2label"][key] for key in sorted(saved.config["id2label"], key=int)],
        **{field.name: extractor.get(field.name, field.default) for field in fields(FeatureArguments)},
        **{
            name: settings.get(name) for name in ("train_on", "overlap_s", "min_annotations", "channel", "weak_labels")
        },
        "splits": sorted((folder / SPLITS_FILE).read_text(encoding="utf-8").splitlines()),
    }
