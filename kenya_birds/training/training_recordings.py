"""Which recordings a model was trained on: its record, and the check of every command that judges a model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kenya_birds.data.csv_table import read_table
from kenya_birds.data.same_recording import recording_key
from kenya_birds.data.splits import read_splits
from kenya_birds.errors import UserError
from kenya_birds.files import read_json, write_table
from kenya_birds.saved_models import SavedModel, find_model
from kenya_birds.training.run_folder import RECORDINGS_FILE, SPLITS_FILE
from kenya_birds.training.starting_points import kind_of_starting_point

COLUMNS = ("recording", "split", "sound", "model")
SHOWN_NAMES = 5
# In the best.json of tuning: the recordings that trials were scored on.
RECORDINGS_KEY = "recordings"


@dataclass(frozen=True)
class TrainingRecordings:
    """The recordings that a model was trained on, and those on which epoch, calibration and thresholds were chosen.

    Attributes:
        table: `recording`, `split` (`train`, `validation` or `test`), `sound` (see `sound_fingerprint`; empty where
            there is none), and `model`: the name of a model that this one was started from, empty for its own. A row
            without a recording stands for a model of which they are not known.
    """

    table: pd.DataFrame

    @classmethod
    def of_splits(cls, splits: pd.DataFrame, fingerprints: Mapping[str, str | None]) -> "TrainingRecordings":
        """Those of a run.

        Args:
            splits: `recording` and `split`.
            fingerprints: By recording (see `Archive.fingerprints`).
        """
        sound = [fingerprints.get(name) or "" for name in splits["recording"]]
        return cls(splits[["recording", "split"]].assign(sound=sound, model="").reset_index(drop=True))

    @classmethod
    def read(cls, folder: Path) -> "TrainingRecordings | None":
        """Reads what training left in a model's folder.

        Returns:
            The recordings; None if neither `training_recordings.csv` nor `splits.csv` is there.

        Raises:
            UserError: If the file cannot be read.
        """
        if (folder / RECORDINGS_FILE).is_file():
            table = read_table(folder / RECORDINGS_FILE, {name: name for name in COLUMNS})
            return cls(table.drop(columns="row"))
        if (folder / SPLITS_FILE).is_file():
            return cls.of_splits(read_splits(folder / SPLITS_FILE), {})
        return None

    @classmethod
    def of_starting_model(cls, donor: SavedModel) -> "TrainingRecordings":
        """Those of a model of this package that another is started from, under its name."""
        # A folder's path is nobody's business.
        name = donor.starting_point if "@" in donor.starting_point else donor.folder.resolve().name
        known = cls.read(donor.folder)
        if known is None:
            return cls(pd.DataFrame([["", "", "", name]], columns=list(COLUMNS)))
        model = [f"{name}, from {earlier}" if earlier else name for earlier in known.table["model"]]
        return cls(known.table.assign(model=model))

    def and_those_of(self, other: "TrainingRecordings | None") -> "TrainingRecordings":
        """These and others."""
        if other is None:
            return self
        return TrainingRecordings(pd.concat([self.table, other.table], ignore_index=True))

    def write(self, folder: Path) -> None:
        """Writes `training_recordings.csv`; one that is there is replaced."""
        write_table(self.table, folder / RECORDINGS_FILE)

    @property
    def of_starting_models(self) -> "TrainingRecordings":
        """Without the model's own."""
        return TrainingRecordings(self.table[self.table["model"] != ""])

    @property
    def unknown_models(self) -> list[str]:
        """Names of the starting models whose recordings are not known."""
        return sorted(set(self.table.loc[self.table["recording"] == "", "model"]))

    def overlap(self, fingerprints: Mapping[str, str | None]) -> "Overlap":
        """Which of some recordings the model was trained on or chosen with, by their names or their sound.

        Args:
            fingerprints: By the recordings' names.
        """
        used = self.table[self.table["split"].isin(["train", "validation"])]
        found = {}
        for split in ("validation", "train"):
            rows = used[used["split"] == split]
            keys, sounds = set(map(recording_key, rows["recording"])), set(rows["sound"]) - {""}
            for name, sound in fingerprints.items():
                if recording_key(name) in keys or sound in sounds:
                    found[name] = split
        return Overlap(tuple(fingerprints), found, self.unknown_models)


@dataclass(frozen=True)
class Overlap:
    """What a model has to do with the recordings that shall judge it.

    Attributes:
        recordings: Those that shall judge it.
        used_for: `train` or `validation`, by recording, for those that the model was trained on or chosen with;
            `train` if both.
        unknown_models: Models that it was started from and whose recordings are not known; `the model itself` where
            its own are not known.
    """

    recordings: tuple[str, ...]
    used_for: dict[str, str]
    unknown_models: list[str]

    def names(self, *splits: str) -> list[str]:
        """The recordings that were used for these."""
        return [name for name, split in self.used_for.items() if split in splits]

    def refuse(self, model: str, splits: Iterable[str], advice: str) -> None:
        """Raises `UserError` if recordings were used for any of these splits.

        Args:
            model: What the user called the model.
            splits: `train` or `validation`.
            advice: What to do instead.
        """
        splits = list(splits)
        found = self.names(*splits)
        if not found:
            return
        how = {"train": "trained on", "validation": "chosen with (its epoch, calibration or thresholds)"}
        counts = [f"{how[split]} {len(self.names(split))}" for split in splits if self.names(split)]
        more = f" and {len(found) - SHOWN_NAMES} more" if len(found) > SHOWN_NAMES else ""
        raise UserError(
            f"'{model}' was {' and '.join(counts)} of the {len(self.recordings)} recordings that would judge it: "
            f"{', '.join(found[:SHOWN_NAMES])}{more}. {advice}"
        )

    def describe(self) -> dict[str, Any]:
        """For `metrics.json`: how many of the recordings the model was trained on, and what this means."""
        return {
            "is_known": not self.unknown_models,
            "trained_on": len(self.names("train")),
            "chosen_with": len(self.names("validation")),
            "recordings": len(self.recordings),
            "note": self.note(),
        }

    def note(self) -> str:
        """What a reader of the figures has to know; empty where the model has not met any of the recordings."""
        notes = []
        if found := self.names("train"):
            notes.append(
                f"The model was trained on {len(found)} of these {len(self.recordings)} recordings: the figures do "
                "not say how well it works on other recordings."
            )
        if found := self.names("validation"):
            notes.append(
                f"The epoch, calibration or thresholds of the model were chosen on {len(found)} of these "
                f"{len(self.recordings)} recordings: the figures are too good."
            )
        if self.unknown_models:
            notes.append(
                f"It is not known which recordings {' and '.join(self.unknown_models)} was trained on: the model may "
                "have been trained on these."
            )
        return " ".join(notes)


def recordings_before(init_from: str, checkpoint: Path | None) -> TrainingRecordings | None:
    """The recordings of the models of this package that a run is started from.

    Args:
        init_from: See `starting_points.initialize`.
        checkpoint: The checkpoint from which the run is resumed, if it is.

    Returns:
        None if it is started from none, or none is known.

    Raises:
        UserError: If a file of the starting model cannot be read.
    """
    if checkpoint is not None:
        known = TrainingRecordings.read(checkpoint)
        return known and known.of_starting_models
    if kind_of_starting_point(init_from) != "model":
        return None
    donor = find_model(init_from)
    return TrainingRecordings.of_starting_model(donor) if donor.config.get("model_type") == "kenya_birds" else None


def overlap_with_tuning(params: Path, fingerprints: Mapping[str, str | None]) -> Overlap:
    """What tuned settings have to do with recordings: which of them the settings were chosen with.

    Args:
        params: The best.json that `kenya-birds tune` wrote; those of older versions do not say which recordings.
        fingerprints: By the recordings' names.

    Raises:
        UserError: If the file cannot be read.
    """
    recordings = read_json(params).get(RECORDINGS_KEY)
    if not isinstance(recordings, dict):
        return Overlap(tuple(fingerprints), {}, [str(params)])
    splits = pd.DataFrame({"recording": list(recordings), "split": "validation"})
    return TrainingRecordings.of_splits(splits, recordings).overlap(fingerprints)


def overlap_of(saved: SavedModel, fingerprints: Mapping[str, str | None]) -> Overlap:
    """What a saved model has to do with recordings (see `TrainingRecordings.overlap`).

    Args:
        saved: A model of any kind.
        fingerprints: By the recordings' names.
    """
    known = TrainingRecordings.read(saved.folder)
    return Overlap(tuple(fingerprints), {}, ["the model"]) if known is None else known.overlap(fingerprints)
