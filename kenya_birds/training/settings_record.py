"""The record of a run's settings: one JSON file beside the model, which every later command uses."""

import logging
from pathlib import Path
from typing import Any

from kenya_birds.data.builders import DEFAULT_MIN_ANNOTATIONS
from kenya_birds.errors import UserError
from kenya_birds.json_files import read_json
from kenya_birds.training.run_folder import SETTINGS_FILE, SUMMARY_FILE

logger = logging.getLogger(__name__)

FRONT_END_FILE = "preprocessor_config.json"
# What training uses where no flag says otherwise. Models without a record are taken to be trained so.
USUAL_CLIPS = {"context_s": 0.0, "edge_tolerance_s": 0.0, "min_annotations": DEFAULT_MIN_ANNOTATIONS}


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that the model in a folder was trained with, by the names of the flags of `train_hf.py`.

    Args:
        folder: What training wrote: a model, a checkpoint, a cross-validation or one of its folds.

    Returns:
        The settings (see `Settings.record`). Empty where there is no record: other packages write none, and neither
        did older versions of this one.

    Raises:
        UserError: If the record cannot be read.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return {}
    settings = read_json(path).get("settings")
    if not isinstance(settings, dict):
        raise UserError(f"{path} has no object 'settings': expected the file that training wrote")
    return settings


def clip_settings(folder: Path, **given: float | None) -> dict[str, Any]:
    """How the clips were cut that a model was trained on: all settings that decide which sound and labels a clip has.

    Args:
        folder: The folder of a model of this package.
        **given: Settings that the user gave, which replace those of the model; None where the user gave none.

    Returns:
        Arguments of `clips_builder`: `sampling_rate` and `clip_s` of the front end, and `context_s`,
        `edge_tolerance_s` and `min_annotations` of the record. For a model without a record, `min_annotations` is that
        of the training summary, and what is still unknown has the default of training, which is logged.

    Raises:
        UserError: If a file of the folder cannot be read, or a setting in it is not a number.
    """
    front_end, known = read_json(folder / FRONT_END_FILE), read_settings(folder)
    if not known:
        if (folder / SUMMARY_FILE).is_file():
            known = {**read_json(folder / SUMMARY_FILE).get("archive", {})}
        assumed = [name for name in USUAL_CLIPS if name not in known and given.get(name) is None]
        if assumed:
            logger.warning(
                "%s has no %s, since an older version trained it: %s",
                folder,
                SETTINGS_FILE,
                ", ".join(f"{name} is taken to be {USUAL_CLIPS[name]:g}" for name in assumed),
            )
    found = {
        **{name: front_end.get(name) for name in ("sampling_rate", "clip_s")},
        **{name: known.get(name, usual) for name, usual in USUAL_CLIPS.items()},
        **{name: value for name, value in given.items() if value is not None},
    }
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{folder} says that {name} is {value!r}: expected a number")
    return found
