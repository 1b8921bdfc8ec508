"""The recordings that a model was trained on: their record, and the check before a model is evaluated."""

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
# Key in the best.json of tuning: the recordings on which trials were scored.
RECORDINGS_KEY = "recordings"


@dataclass(frozen=True)
class TrainingRecordings:
    """The recordings for training a model, and for choosing its epoch, calibration and thresholds.

    Attributes:
        table: `recording`, `split` (`train`, `validation` or `test`), `sound` (see `sound_fingerprint`; empty if there
            is none), and `model`: empty for the model's own recordings, else the name of a model that it was started
            from. A row without a recording means that the recordings of this model are unknown.
    """

    table: pd.DataFrame

    @classmethod
    def of_splits(cls, splits: pd.DataFrame, fingerprints: Mapping[str, str | None]) -> "TrainingRecordings":
        """The recordings of a run.

        Args:
            splits: `recording` and `split`.
            fingerprints: By recording (see `Archive.fingerprints`).
        """
        sound = [fingerprints.get(name) or "" for name in splits["recording"]]
        return cls(splits[["recording", "split"]].assign(sound=sound, model="").reset_index(drop=True))

    @classmethod
    def read(cls, folder: Path) -> "TrainingRecordings | None":
        """Reads the recordings from a model's folder.

        Returns:
            The recordings; None if neither `training_recordings.csv` nor `splits.csv` exists.

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
        """The recordings of a starting model of this package, under its name."""
        # Local paths are private, so only the folder's name is recorded.
        name = donor.starting_point if "@" in donor.starting_point else donor.folder.resolve().name
        known = cls.read(donor.folder)
        return cls.unknown(name) if known is None else known.under(name)

    @classmethod
    def of_starting_file(cls, weights: Path) -> "TrainingRecordings | None":
        """The recordings of the model in whose folder, or a folder of it, a file of weights lies; None if in none."""
        for folder in weights.resolve().parents[:2]:
            # A splits.csv alone may be that of a user beside other weights.
            is_of_model = (folder / RECORDINGS_FILE).is_file() or (folder / "config.json").is_file()
            if is_of_model and (known := cls.read(folder)) is not None:
                return known.under(folder.name)
        return None

    def under(self, name: str) -> "TrainingRecordings":
        """These recordings as those of a starting model.

        Args:
            name: The model.
        """
        model = [f"{name}, from {earlier}" if earlier else name for earlier in self.table["model"]]
        return TrainingRecordings(self.table.assign(model=model))

    @classmethod
    def unknown(cls, name: str) -> "TrainingRecordings":
        """The recordings of a model of which they are unknown.

        Args:
            name: The model.
        """
        return cls(pd.DataFrame([["", "", "", name]], columns=list(COLUMNS)))

    def and_those_of(self, other: "TrainingRecordings | None") -> "TrainingRecordings":
        """These and other recordings."""
        if other is None:
            return self
        return TrainingRecordings(pd.concat([self.table, other.table], ignore_index=True))

    def write(self, folder: Path) -> None:
        """Writes `training_recordings.csv`; an existing file is replaced."""
        write_table(self.table, folder / RECORDINGS_FILE)

    @property
    def of_starting_models(self) -> "TrainingRecordings":
        """Without the model's own recordings."""
        return TrainingRecordings(self.table[self.table["model"] != ""])

    @property
    def unknown_models(self) -> list[str]:
        """Names of the starting models with unknown recordings."""
        return sorted(set(self.table.loc[self.table["recording"] == "", "model"]))

    def overlap(self, fingerprints: Mapping[str, str | None]) -> "Overlap":
        """Finds the recordings that the model was trained on or chosen with, by name or sound.

        Args:
            fingerprints: `sound_fingerprint` by recording.
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
    """Overlap of a model's training recordings with the recordings of an evaluation.

    Attributes:
        recordings: The recordings of the evaluation.
        used_for: `train` or `validation`, by recording, for those that the model was trained on or chosen with;
            `train` if both.
        unknown_models: Starting models with unknown recordings; `the model itself` if its own are unknown.
    """

    recordings: tuple[str, ...]
    used_for: dict[str, str]
    unknown_models: list[str]

    def names(self, *splits: str) -> list[str]:
        """The recordings that were used for one of these splits."""
        return [name for name, split in self.used_for.items() if split in splits]

    def refuse(self, model: str, splits: Iterable[str], advice: str) -> None:
        """Raises `UserError` if recordings were used for any of these splits.

        Args:
            model: The model, as the user gave it.
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
            f"'{model}' was {' and '.join(counts)} of the {len(self.recordings)} recordings of this evaluation: "
            f"{', '.join(found[:SHOWN_NAMES])}{more}. {advice}"
        )

    def describe(self) -> dict[str, Any]:
        """For `metrics.json`: how many of the recordings the model was trained on, and a note on the consequence."""
        return {
            "is_known": not self.unknown_models,
            "trained_on": len(self.names("train")),
            "chosen_with": len(self.names("validation")),
            "recordings": len(self.recordings),
            "note": self.note(),
        }

    def note(self) -> str:
        """A note for readers of the metrics; empty if there is no overlap."""
        notes = []
        if found := self.names("train"):
            notes.append(
                f"The model was trained on {len(found)} of these {len(self.recordings)} recordings: the metrics "
                "do not show how well it works on other recordings."
            )
        if found := self.names("validation"):
            notes.append(
                f"The epoch, calibration or thresholds of the model were chosen on {len(found)} of these "
                f"{len(self.recordings)} recordings: the metrics are too optimistic."
            )
        if self.unknown_models:
            notes.append(
                f"The training recordings of {' and '.join(self.unknown_models)} are unknown: the model may have been "
                "trained on these recordings."
            )
        return " ".join(notes)


def recordings_before(init_from: str, checkpoint: Path | None) -> TrainingRecordings | None:
    """The recordings of the models of this package from which a run is started.

    Args:
        init_from: See `starting_points.initialize`; or the model that is the backbone.
        checkpoint: The checkpoint from which the run resumes, if it does.

    Returns:
        The recordings; None if there is no such model, or a file of weights lies in no model's folder.

    Raises:
        UserError: If a file of the starting model cannot be read.
    """
    if checkpoint is not None:
        known = TrainingRecordings.read(checkpoint)
        return known and known.of_starting_models
    kind = kind_of_starting_point(init_from)
    if kind == "file":
        return TrainingRecordings.of_starting_file(Path(init_from))
    if kind != "model":
        return None
    donor = find_model(init_from)
    return TrainingRecordings.of_starting_model(donor) if donor.config.get("model_type") == "kenya_birds" else None


def overlap_with_tuning(params: Path, fingerprints: Mapping[str, str | None]) -> Overlap:
    """Overlap of the recordings with which tuned settings were chosen and of other recordings.

    Args:
        params: The best.json of `kenya-birds tune`; files of older versions do not contain recordings.
        fingerprints: `sound_fingerprint` by recording.

    Raises:
        UserError: If the file cannot be read.
    """
    recordings = read_json(params).get(RECORDINGS_KEY)
    if not isinstance(recordings, dict):
        return Overlap(tuple(fingerprints), {}, [str(params)])
    splits = pd.DataFrame({"recording": list(recordings), "split": "validation"})
    return TrainingRecordings.of_splits(splits, recordings).overlap(fingerprints)


def overlap_of(saved: SavedModel, fingerprints: Mapping[str, str | None]) -> Overlap:
    """Overlap of a saved model's training recordings with other recordings (see `TrainingRecordings.overlap`).

    Args:
        saved: A model of any kind.
        fingerprints: `sound_fingerprint` by recording.
    """
    known = TrainingRecordings.read(saved.folder)
    return Overlap(tuple(fingerprints), {}, ["the model"]) if known is None else known.overlap(fingerprints)
