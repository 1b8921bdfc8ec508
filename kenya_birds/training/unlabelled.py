"""Recordings without annotations, from which training learns besides the archive."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import correlate

from kenya_birds.data.archive import Archive
from kenya_birds.data.audio import RecordingReader, read_header
from kenya_birds.data.same_recording import sound_fingerprints
from kenya_birds.errors import UserError
from kenya_birds.training.teacher_arguments import unlabelled_recordings
from kenya_birds.training.training_recordings import COLUMNS, TrainingRecordings

logger = logging.getLogger(__name__)

# Copies of a recording may differ by encoder delay and padding.
SAME_DURATION_S = 0.1
# A stretch of two recordings is compared at this rate. Different sound has a correlation of a few hundredths.
COMPARED_S, COMPARED_HZ, ALIKE = 8.0, 8000, 0.5


@dataclass(frozen=True)
class Unlabelled:
    """Recordings without annotations.

    Attributes:
        paths: The files.
        fingerprints: `sound_fingerprint` of each.
        names: Path of each below the folder that was given, with `/`.
    """

    paths: list[Path]
    fingerprints: list[str | None]
    names: list[str]

    @property
    def by_name(self) -> dict[str, Path]:
        """The files by the names that they have among decoded recordings: their absolute paths."""
        return {str(path.resolve()): path for path in self.paths}

    @classmethod
    def find(cls, folders: Sequence[str]) -> "Unlabelled":
        """Finds the recordings in folders.

        Args:
            folders: The folders.

        Raises:
            UserError: If one of them has no recording.
        """
        paths = unlabelled_recordings(list(folders))
        return cls(paths, sound_fingerprints(paths), [_below(path, folders) for path in paths])

    def without_archive(self, archive: Archive, tested: Sequence[str]) -> "Unlabelled":
        """Leaves out recordings of the archive, which are learned anyway.

        Args:
            archive: The archive.
            tested: Its recordings of the validation and test splits.

        Raises:
            UserError: If one of them is a recording of the validation or test split, or nothing is left. A recording
                with the same name, without its suffix, and the same duration is compared by sound: recorders at
                several sites give the same names, and a copy may be encoded again.
        """
        sounds = {sound: name for name, sound in archive.fingerprints(archive.headers).items() if sound}
        alike: dict[str, list[str]] = defaultdict(list)
        for name in archive.headers:
            alike[Path(name).stem.casefold()].append(name)
        kept, is_tested = [], set(tested)
        for row, (path, sound) in enumerate(zip(self.paths, self.fingerprints, strict=True)):
            same = sounds.get(sound or "")
            if same is None:
                candidates = alike[path.stem.casefold()]
                same = next((name for name in candidates if is_copy(path, archive.recording_path(name))), None)
            if same in is_tested:
                raise UserError(
                    f"{path} is the recording {same} of the validation or test split, on which nothing is learned: "
                    "leave it out of --unlabelled, or put it into the train split with --splits_file"
                )
            if same is None:
                kept.append(row)
        if len(kept) < len(self.paths):
            logger.info("%d unlabelled recordings are training recordings already", len(self.paths) - len(kept))
        if not kept:
            raise UserError("all recordings of --unlabelled are training recordings of the archive: leave it out")
        return Unlabelled(
            [self.paths[row] for row in kept],
            [self.fingerprints[row] for row in kept],
            [self.names[row] for row in kept],
        )

    def check_recorded(self, known: TrainingRecordings | None) -> None:
        """Refuses recordings that are learned from now on, and are not in the record of a run that resumes.

        Args:
            known: The record.

        Raises:
            UserError: If there are such recordings.
        """
        table = pd.DataFrame(columns=list(COLUMNS)) if known is None else known.table
        names, sounds = set(table["recording"]), set(table["sound"]) - {""}
        pairs = zip(self.names, self.fingerprints, strict=True)
        new = [name for name, sound in pairs if name not in names and sound not in sounds]
        if new:
            raise UserError(
                f"--unlabelled has recordings that were not there when this run was started ({len(new)}, such as "
                f"{new[0]}): take them out of the folder, or start a new run"
            )

    def as_training(self) -> TrainingRecordings:
        """These recordings as recordings that a model was trained on."""
        rows = [[name, "train", sound or "", ""] for name, sound in zip(self.names, self.fingerprints, strict=True)]
        return TrainingRecordings(pd.DataFrame(rows, columns=list(COLUMNS)))


def _below(path: Path, folders: Sequence[str]) -> str:
    for folder in folders:
        if path.is_relative_to(folder):
            return f"{Path(folder).resolve().name}/{path.relative_to(folder).as_posix()}"
    return path.name


def is_copy(first: Path, second: Path) -> bool:
    """Whether two recordings have the same sound, whatever their format: by correlation of a stretch in the middle.

    Args:
        first: A recording.
        second: Another one.

    Returns:
        Also False if one of them cannot be read, or the stretch is silent.
    """
    try:
        durations_s = [read_header(path).duration_s for path in (first, second)]
        if abs(durations_s[0] - durations_s[1]) > SAME_DURATION_S:
            return False
        start_s = max(0.0, (min(durations_s) - COMPARED_S) / 2)
        sounds = []
        for path in (first, second):
            with RecordingReader(path, COMPARED_HZ) as reader:
                sounds.append(reader.read(round(start_s * COMPARED_HZ), round(COMPARED_S * COMPARED_HZ)))
    except UserError:
        return False
    # Low hum is alike in many recordings, so differences of neighbouring samples are compared.
    one, other = (np.diff(sound.astype(np.float64)) for sound in sounds)
    energy = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return energy > 0 and float(correlate(one, other, method="fft").max()) > ALIKE * energy
