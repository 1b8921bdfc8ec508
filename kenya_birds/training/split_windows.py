"""The windows of the recordings of a run: what it trains, validates and tests on."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive
from kenya_birds.data.builders import KenyaBirds, NoCallConfig
from kenya_birds.data.planning import plan_no_call
from kenya_birds.data.splits import SPLITS, recordings_in
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid, plan_windows
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.archive_weights import weigh_recordings
from kenya_birds.training.arguments import DataArguments
from kenya_birds.training.settings import Settings
from kenya_birds.training.window_sampler import warn_of_short_stretches
from kenya_birds.training.window_training import WindowPlan


def check_no_call(
    settings: Settings, archive: Archive, splits: pd.DataFrame, extractor: KenyaBirdsFeatureExtractor
) -> None:
    """Checks, before anything is cut or trained, that the splits have the windows without a call that are needed.

    Args:
        settings: The settings of the run.
        archive: The archive.
        splits: `recording` and `split`.
        extractor: The feature extractor.

    Raises:
        UserError: If windows of recordings are learned, and a split has only recordings that are annotated in part;
            or if background is added, and no training recording has a window without a call.
    """
    if settings.data.train_on == "recordings":
        known = set(splits.loc[~splits["recording"].isin(archive.partial), "split"])
        for split in SPLITS:
            if split not in known:
                raise UserError(
                    f"all recordings of the {split} split have weak labels or checked detections, so no window of "
                    "them is known to be without a call: add an archive whose calls are annotated, or train on clips"
                )
    if settings.augmentation.background_probability:
        margin_s, recordings = NoCallConfig.no_call_margin_s, recordings_in(splits, "train")
        if plan_no_call(archive, recordings, extractor.sampling_rate, extractor.clip_s, margin_s).empty:
            raise UserError(
                f"--background_probability needs windows without a call, and none of the {len(recordings)} training "
                f"recordings has {extractor.clip_s:g} s that are {margin_s:g} s away from every annotation: leave "
                "--background_probability out"
            )


class SplitWindows:
    """The windows of the recordings of each split.

    Args:
        data: The settings.
        builder: The builder of the run's clips.
        splits: `recording` and `split`.
        extractor: The feature extractor.

    Raises:
        UserError: If the settings give a weight to a name that no archive has.
    """

    def __init__(
        self, data: DataArguments, builder: KenyaBirds, splits: pd.DataFrame, extractor: KenyaBirdsFeatureExtractor
    ) -> None:
        self._data, self._builder, self._splits, self._extractor = data, builder, splits, extractor
        self._planned: dict[str, tuple[RecordingWindowGrid, WindowTargets]] = {}
        self.weights(())  # checks the names, before anything is decoded or trained

    def recordings(self, split: str) -> list[str]:
        """Recordings of a split that windows are cut from: those that are annotated in part are for training alone."""
        names = recordings_in(self._splits, split)
        return names if split == "train" else [name for name in names if name not in self._builder.archive.partial]

    def of(self, split: str) -> tuple[RecordingWindowGrid, WindowTargets]:
        """The windows of the recordings of a split, side by side or overlapping as set, and the annotations.

        The recordings of the split are decoded into the cache when they are first needed.

        Args:
            split: Of the run's splits.

        Raises:
            UserError: If the disk has not enough space.
        """
        if split not in self._planned:
            self._planned[split] = plan_windows(
                self._builder,
                self.recordings(split),
                self._builder.classes,
                self._extractor,
                overlap_s=self._data.overlap_s,
                margin_s=self._data.edge_margin_s,
                min_overlap_s=self._data.min_overlap_s,
                threads=self._data.num_proc or 1,
            )
        return self._planned[split]

    def plan(self) -> WindowPlan:
        """What is drawn from the training recordings in each epoch."""
        data = self._data
        grid, targets = self.of("train")
        warn_of_short_stretches(grid.decoded, targets)
        return WindowPlan(
            grid.decoded,
            targets,
            data.call_windows,
            data.empty_windows,
            data.windows_per_epoch,
            data.hard_windows,
            data.rescore_epochs,
            data.scored_windows,
            self.weights(grid.decoded.names),
        )

    def weights(self, recordings: Sequence[str]) -> np.ndarray | None:
        """Weight in the loss of what is learned from each recording (see `weigh_recordings`).

        Args:
            recordings: Names, repeated as needed.
        """
        data, archive = self._data, self._builder.archive
        texts = data.archive_weights or ()
        return weigh_recordings(texts, archive.archive_of, recordings, archive.weak, data.weak_weight)
