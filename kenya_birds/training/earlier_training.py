"""What was learned before a run, by its starting model, its teacher and the tuning of its settings, and on what."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kenya_birds.data.archive import Archive
from kenya_birds.saved_models import find_model
from kenya_birds.training.arguments import ModelArguments
from kenya_birds.training.frozen_backbones import FrozenBackbone
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.training_recordings import (
    Overlap,
    TrainingRecordings,
    overlap_with_tuning,
    recordings_before,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EarlierTraining:
    """The recordings that a run's starting model and teacher were trained on.

    Attributes:
        recordings: These recordings; None if there is no such model, or they are unknown.
        start: Starting model, as the user gave it.
        teacher: Teacher, as the user gave it; None if there is none.
        archive: The archive of the run.
    """

    recordings: TrainingRecordings | None
    start: str
    teacher: str | None
    archive: Archive

    @classmethod
    def find(
        cls,
        model: ModelArguments,
        backbone: FrozenBackbone | None,
        teacher: str | None,
        archive: Archive,
        checkpoint: Path | None,
    ) -> "EarlierTraining":
        """Reads the record of the starting model and of the teacher.

        Args:
            model: Settings of the model.
            backbone: The published network or model that is the backbone, if it is one.
            teacher: The teacher, if there is one.
            archive: The archive of the run.
            checkpoint: The checkpoint from which the run resumes, if it does: it has the record of both.

        Raises:
            UserError: If a file of these models cannot be read.
        """
        start = model.init_from if backbone is None else backbone.name
        if checkpoint is not None:
            known = recordings_before(start, checkpoint)
        elif teacher is not None:
            taught = recordings_before(teacher, None) or TrainingRecordings.unknown(find_model(teacher).public_name)
            known = taught.and_those_of(recordings_before(model.init_from, None))
        elif backbone is not None and backbone.is_untrained:
            known = TrainingRecordings.unknown(backbone.public_name)
        else:
            known = recordings_before(start, None)
        return cls(known, start, teacher, archive)

    def check(self, tested: Iterable[str]) -> None:
        """Raises `UserError` if these models were trained on recordings, or chosen with them.

        Args:
            tested: The test recordings of the run.
        """
        advice = (
            f"The test would not show how well the new model works on other recordings: give the starting model's own "
            f"{SPLITS_FILE} as --splits_file, or test on recordings that it was not trained on"
        )
        models = self.start if self.teacher is None else f"{self.teacher}' or '{self.start}"
        self._overlap(tested).refuse(models, ["train", "validation"], advice)

    def warn_of_validation(self, recordings: Iterable[str]) -> None:
        """Warns if these models were trained on validation recordings.

        Args:
            recordings: The validation recordings of the run.
        """
        heard = self._overlap(recordings).names("train")
        if heard:
            logger.warning(
                "The %s was trained on %d of the validation recordings, on which epoch, calibration and "
                "thresholds are chosen: they will suit recordings that were trained on",
                "starting model" if self.teacher is None else "teacher or the starting model",
                len(heard),
            )

    def warn_of_tuning(self, params: Path | None, tested: Iterable[str]) -> None:
        """Warns if settings were tuned on recordings that will test the run.

        Args:
            params: The best.json of `kenya-birds tune` with the settings; None if there is none.
            tested: The test recordings of the run.
        """
        if params is None:
            return
        overlap = overlap_with_tuning(params, self.archive.fingerprints(tested))
        if overlap.used_for:
            logger.warning(
                "The settings of %s were tuned on %d of the %d test recordings: the figures will be too good. Train "
                "with the splits of the tuning",
                params,
                len(overlap.used_for),
                len(overlap.recordings),
            )

    def _overlap(self, recordings: Iterable[str]) -> Overlap:
        if self.recordings is None:
            return Overlap((), {}, [])
        return self.recordings.overlap(self.archive.fingerprints(recordings))
