"""What the trainer needs to train on windows of whole recordings: the plan, windows to evaluate on, and the loss."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from kenya_birds.data.decoded_recordings import DecodedRecordings
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import MASKED, KenyaBirdsForAudioClassification

logger = logging.getLogger(__name__)

FEATURE_BATCH = 64
# Probability of each class with which a new classifier starts.
PRIOR = 0.02
# Smallest number of windows in an epoch, if the user gives no number (docs/training.md, "Small archives").
LEAST_WINDOWS = 1800


@dataclass(frozen=True)
class WindowPlan:
    """Training on windows of whole recordings.

    Attributes:
        decoded: The training recordings.
        targets: Their annotations.
        call_share: Share of the windows round calls.
        empty_share: Share of the windows without a call.
        windows_per_epoch: Number of windows in an epoch; None: as many windows round calls as there are calls, and at
            least `LEAST_WINDOWS` windows.
        hard_share: Share of the windows without a call that are hard (see `HardWindows`).
        rescore_epochs: Epochs after which the model scores windows without a call again.
        scored_windows: Windows that are scored each time, at most.
        weights: Weight of the windows of each recording in the loss, shape `(recordings,)`; None: all are 1.
    """

    decoded: DecodedRecordings
    targets: WindowTargets
    call_share: float = 0.5
    empty_share: float = 0.25
    windows_per_epoch: int | None = None
    hard_share: float = 0.0
    rescore_epochs: int = 3
    scored_windows: int = 2000
    weights: np.ndarray | None = None

    @cached_property
    def labels(self) -> list[list[int]]:
        """Class id of each call, each in a list of its own."""
        return [[int(label)] for label in self.targets.label if label >= 0]

    @property
    def length(self) -> int:
        """Windows of an epoch."""
        return self.windows_per_epoch or max(LEAST_WINDOWS, round(len(self.labels) / (self.call_share or 1.0)))


class EvaluationWindows(torch.utils.data.Dataset):
    """Windows to evaluate on, by the batch. Their features are computed once and kept in memory.

    Args:
        grid: The windows.
        rows: Which of them.
        targets: Of all windows: 1, 0 or -100, shape `(windows, classes)`.
        extractor: The front end.
        device: Where features are computed.
    """

    def __init__(
        self,
        grid: RecordingWindowGrid,
        rows: np.ndarray,
        targets: np.ndarray,
        extractor: KenyaBirdsFeatureExtractor,
        device: torch.device,
    ) -> None:
        self.targets = torch.from_numpy(targets[rows]).float()
        features = []
        for first in range(0, len(rows), FEATURE_BATCH):
            sound = [grid.sound(row) for row in rows[first : first + FEATURE_BATCH]]
            with torch.no_grad():
                features.append(extractor.extract(torch.from_numpy(np.stack(sound)).to(device)).cpu())
        self.features = torch.cat(features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_features` of shape `(batch, bands, frames)`, and `labels`."""
        rows = list(indices)
        return {"input_features": self.features[rows], "labels": self.targets[rows]}


def choose_windows(targets: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows of the windows that choose the epoch: all of them, or a sample that keeps every window with a call.

    Args:
        targets: Of all windows of the validation recordings, shape `(windows, classes)`.
        most: How many windows are taken at most. Of more windows with a call, a sample is taken too.
        seed: Of the sample.

    Returns:
        Ascending.

    Raises:
        UserError: If no window is known to hold a call.
    """
    holding = np.flatnonzero((targets == 1).any(axis=1))
    if not len(holding):
        raise UserError(
            "no window of the validation recordings is known to hold a call, so no epoch can be chosen: give the "
            "validation split recordings with calls that are not shorter than a window (clip_s), or train on clips"
        )
    if len(targets) <= most:
        return np.arange(len(targets))
    generator = np.random.default_rng(seed)
    kept = generator.permutation(holding)[: max(most // 2, most - (len(targets) - len(holding)))]
    others = generator.permutation(np.flatnonzero(~(targets == 1).any(axis=1)))[: most - len(kept)]
    logger.info("The epoch is chosen by %d of the %d windows of the validation recordings", most, len(targets))
    return np.sort(np.concatenate([kept, others]))


def start_at_prior(model: KenyaBirdsForAudioClassification) -> None:
    """Lets new classes start with a probability of 2%, as most windows hold no call (Lin et al. 2017).

    A class that has a learned bias already, from another model, keeps it. Classes that a published network scores
    start at 0.

    Args:
        model: The model.
    """
    bias = model.classifier.bias
    is_new = bias == 0
    if model.needs_scores:
        is_new &= model.output_of_class < 0
    with torch.no_grad():
        bias[is_new] = math.log(PRIOR / (1 - PRIOR))


def focal_weights(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights `(1 - p) ** gamma` of binary losses, `p` being the probability of what is true (Lin et al. 2017).

    Args:
        logits: Shape `(batch, classes)`.
        labels: 1, 0 or -100, same shape.
        gamma: 0: every weight is 1.
    """
    known = (labels != MASKED) * labels
    probability = torch.sigmoid(logits.float().detach())
    return (known * (1 - probability) + (1 - known) * probability) ** gamma


def log_softmax_of_log_odds(log_odds: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of no call and of each class, from the log-odds of the classes (see `softmax_log_odds`).

    Args:
        log_odds: Shape `(batch, classes)`.

    Returns:
        float32, shape `(batch, 1 + classes)`; no call comes first. Its probability, 1 less the sum of the others, is
        exact to 1e-7 only, and at least that.
    """
    wide = log_odds.float()
    no_call = (1 - wide.sigmoid().sum(dim=1, keepdim=True)).clamp(min=1e-7)
    return torch.cat([no_call.log(), torch.nn.functional.logsigmoid(wide)], dim=1)
