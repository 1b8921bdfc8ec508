"""Settings of a probe. They import nothing heavy, so that the command line is checked at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kenya_birds.defaults import MIN_ANNOTATIONS, SPLIT_SEED
from kenya_birds.training.arguments import ProblemType, WeakLabels
from kenya_birds.values import Channel, Count, Duration, Folds, NotNegative, Seconds, Seed, SignedSeconds, check_fields


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe.

    The value of a setting that is None comes from the run to compare with, else from the probed model, else from the
    default of training.

    Attributes:
        method: `linear` or `knn` (see `fit_head`).
        splits_file: A table of splits, or of folds: each fold is then tested once.
        folds: Number of folds to make if there is no table.
        split_seed: Seed of new splits or folds.
        problem_type: As in training.
        min_annotations: Species with fewer annotations are dropped.
        edge_tolerance_s: See `ClipsConfig`.
        min_overlap_s: See `ClipsConfig`.
        weak_labels: See `ClipsConfig`. The classifier learns from clips with weak labels as from others.
        channel: See `RecordingReader`.
        loss_weight_power: Logistic regression weights each class by n^-power, with n its number of clips.
        clip_s: Length of a clip in seconds, for a transformers model; models of this package have their own length.
        seed: Seed of the bootstrap.
    """

    method: Literal["linear", "knn"] = "linear"
    splits_file: str | Path | None = None
    folds: Folds | None = None
    split_seed: Seed = SPLIT_SEED
    problem_type: ProblemType | None = None
    min_annotations: Count | None = None
    edge_tolerance_s: SignedSeconds | None = None
    min_overlap_s: Seconds | None = None
    weak_labels: WeakLabels | None = None
    channel: Channel | None = None
    loss_weight_power: NotNegative = 0.5
    clip_s: Duration | None = None
    seed: Seed = 42

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        check_fields(self)

    def completed(self, recorded: Mapping[str, Any]) -> "ProbeSettings":
        """These settings with values in place of None.

        Args:
            recorded: Settings of a run (see `read_settings`); others have the default of training.
        """
        usual = {
            "problem_type": "single_label_classification",
            "min_annotations": MIN_ANNOTATIONS,
            "edge_tolerance_s": 0.0,
            "min_overlap_s": 0.0,
            "weak_labels": "train",
            "channel": None,
        }
        missing = {name: recorded.get(name, value) for name, value in usual.items() if getattr(self, name) is None}
        return replace(self, **missing)
