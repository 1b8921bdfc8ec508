"""The windows of the recordings of a run: what it trains, validates and tests on."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.splits import recordings_in
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid, plan_windows
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.archive_weights import weigh_recordings
from kenya_birds.training.arguments import DataArguments
from kenya_birds.training.window_sampler import warn_of_short_stretches
from kenya_birds.training.window_training import WindowPlan


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
