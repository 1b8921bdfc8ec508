"""The first stage of a run with a teacher: its recordings, their checks, and the stage itself."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kenya_birds.console import user_errors
from kenya_birds.data.archive import Archive
from kenya_birds.data.audio import read_header
from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.decoded_recordings import decode_recordings
from kenya_birds.data.same_recording import sound_fingerprints
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.augmentation import Augmentation
from kenya_birds.training.distillation import Stage, TaughtWindows, stage_folder, taught_augmentation
from kenya_birds.training.settings import Settings
from kenya_birds.training.teacher import Teacher
from kenya_birds.training.teacher_arguments import unlabelled_recordings
from kenya_birds.training.training_recordings import COLUMNS, TrainingRecordings

logger = logging.getLogger(__name__)

# Copies of a recording may differ by encoder delay and padding.
SAME_DURATION_S = 0.1


@dataclasses.dataclass(frozen=True)
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
            UserError: If one of them is a recording of the validation or test split: with the same sound, or with the
                same name without its suffix and the same duration; or if nothing is left.
        """
        sounds = {sound: name for name, sound in archive.fingerprints(archive.headers).items() if sound}
        names = {Path(name).stem.casefold(): name for name in archive.headers}
        kept, is_tested = [], set(tested)
        for row, (path, sound) in enumerate(zip(self.paths, self.fingerprints, strict=True)):
            same = sounds.get(sound or "")
            if same is None and (alike := names.get(path.stem.casefold())) is not None:
                same = alike if _has_duration(path, archive.headers[alike].duration_s) else None
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

    def as_training(self) -> TrainingRecordings:
        """These recordings as recordings that a model was trained on."""
        rows = [[name, "train", sound or "", ""] for name, sound in zip(self.names, self.fingerprints, strict=True)]
        return TrainingRecordings(pd.DataFrame(rows, columns=list(COLUMNS)))


def _below(path: Path, folders: Sequence[str]) -> str:
    for folder in folders:
        if path.is_relative_to(folder):
            return f"{Path(folder).resolve().name}/{path.relative_to(folder).as_posix()}"
    return path.name


def _has_duration(path: Path, duration_s: float) -> bool:
    try:
        return abs(read_header(path).duration_s - duration_s) <= SAME_DURATION_S
    except UserError:
        return False


class FirstStage:
    """The first stage of a run.

    Args:
        settings: The settings of the run.
        builder: Plan of the clips: its archive, cache, channel and classes are used.
        splits: `recording` and `split`.

    Raises:
        UserError: If unlabelled recordings cannot be used.
    """

    def __init__(self, settings: Settings, builder: KenyaBirds, splits: pd.DataFrame) -> None:
        self._settings, self._builder = settings, builder
        self._train = splits.loc[splits["split"] == "train", "recording"].to_list()
        self.unlabelled = Unlabelled([], [], [])
        if settings.teacher.unlabelled:
            tested = splits.loc[splits["split"] != "train", "recording"].to_list()
            self.unlabelled = Unlabelled.find(settings.teacher.unlabelled).without_archive(builder.archive, tested)

    @cached_property
    def _paths(self) -> Mapping[str, Path]:
        """File of each recording by its name: file names in the archive, paths for unlabelled ones."""
        archive = self._builder.archive
        return {
            **{name: archive.recording_path(name) for name in self._train},
            **{str(path.resolve()): path for path in self.unlabelled.paths},
        }

    def run(self, model: KenyaBirdsForAudioClassification, team: Team) -> dict[str, Any]:
        """Trains the backbone, or takes it from the cache.

        Args:
            model: The model with its starting weights.
            team: The processes of the run.

        Returns:
            What the training summary says of the stage.

        Raises:
            UserError: If the teacher cannot be used, or a cache cannot be written.
        """
        settings, args = self._settings.teacher, self._settings.training
        assert settings.teacher is not None
        device, classes = args.device, self._builder.classes
        names = self._builder.archive.species_names(classes)
        clip_s = self._settings.features.clip_s
        with team.one_first():
            teacher = Teacher(
                settings.teacher, classes, names, targets=settings.teacher_targets, clip_s=clip_s, device=device
            )
            with user_errors(ValueError):
                extractor = KenyaBirdsFeatureExtractor(
                    **{**dataclasses.asdict(self._settings.features), "clip_s": teacher.clip_s}
                )
            grid = self._windows(extractor, teacher.clip_s)
            answers = teacher.windows(grid, self._paths, self._builder.cache_root, self._builder.config.channel)
        augmentation = Augmentation(
            taught_augmentation(self._settings.augmentation),
            extractor,
            torch.Generator().manual_seed(args.seed),
            device=device,
        )
        epochs = settings.teacher_epochs
        folder = stage_folder(self._builder.cache_root, model, args, augmentation, answers, epochs)
        windows = TaughtWindows(grid, answers, augmentation)
        logger.info(
            "First stage: %d windows of %g s from %d recordings, %d epochs",
            len(answers),
            teacher.clip_s,
            len(grid.decoded.recordings),
            epochs,
        )
        result = Stage(folder, windows, teacher.embedding_size, answers, args, epochs).run(model, team)
        lengths = grid.decoded.lengths
        hours = {name: samples / grid.decoded.sampling_rate / 3600 for name, samples in lengths.items()}
        own = set(self._train)
        return {
            "teacher": teacher.saved.public_name,
            "embedding_size": teacher.embedding_size,
            "known_species": len(teacher.known),
            "windows": len(answers),
            "hours": sum(hours.values()),
            "unlabelled_recordings": sum(name not in own for name in hours),
            "unlabelled_hours": sum(value for name, value in hours.items() if name not in own),
            "epochs": epochs,
            **result,
        }

    def _windows(self, extractor: KenyaBirdsFeatureExtractor, clip_s: float) -> RecordingWindowGrid:
        """Whole windows of all recordings of the stage, decoded at the student's rate."""
        data = self._settings.data
        decoded = decode_recordings(
            self._paths,
            self._builder.cache_root,
            extractor.sampling_rate,
            threads=data.num_proc or 1,
            channel=self._builder.config.channel,
        )
        hop_s = self._settings.teacher.teacher_hop_s or clip_s / 2
        if hop_s > clip_s:
            raise UserError(f"teacher_hop_s is {hop_s:g}: expected at most the teacher's window, {clip_s:g} s")
        grid = RecordingWindowGrid.of(decoded, extractor.clip_samples, clip_s - hop_s)
        is_whole = grid.end - grid.start == grid.window
        if not is_whole.any():
            raise UserError(f"no recording of the first stage has {clip_s:g} s of sound without a break")
        kept = {name: getattr(grid, name)[is_whole] for name in ("recording", "start", "end")}
        return dataclasses.replace(grid, **kept)
