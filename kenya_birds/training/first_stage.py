"""The first stage of a run with a teacher: its recordings, their checks, and the stage itself."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kenya_birds.console import user_errors
from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.decoded_recordings import decode_recordings
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.augmentation import Augmentation
from kenya_birds.training.distillation import Stage, TaughtWindows, stage_folder, taught_augmentation
from kenya_birds.training.settings import Settings
from kenya_birds.training.teacher import Teacher
from kenya_birds.training.unlabelled import Unlabelled

logger = logging.getLogger(__name__)


class FirstStage:
    """The first stage of a run.

    Args:
        settings: The settings of the run.
        builder: Plan of the clips: its archive, cache, channel and classes are used.
        train: Names of the training recordings.
        unlabelled: Recordings without annotations.
    """

    def __init__(self, settings: Settings, builder: KenyaBirds, train: Sequence[str], unlabelled: Unlabelled) -> None:
        self._settings, self._builder = settings, builder
        self._train, self._unlabelled = train, unlabelled

    @cached_property
    def _paths(self) -> Mapping[str, Path]:
        """File of each recording by its name: file names in the archive, paths for unlabelled ones."""
        archive = self._builder.archive
        return {
            **{name: archive.recording_path(name) for name in self._train},
            **self._unlabelled.by_name,
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
