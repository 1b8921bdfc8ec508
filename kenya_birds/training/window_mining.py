"""Hard empty windows: those in which a model hears species although nothing is annotated (hard negative mining)."""

import logging
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.recording_windows import RecordingWindows
from kenya_birds.training.window_sampler import WindowSampler

logger = logging.getLogger(__name__)

# Windows that are scored for each one that is kept.
CANDIDATES = 4
SCORE_BATCH = 64


class HardWindows(TrainerCallback, ExportableState):
    """Keeps the hard empty windows of a run; they are saved in its checkpoints.

    In the first epochs there are none. Then, at the start of every `rescore_epochs`-th epoch, empty windows are drawn
    and scored by the model as it is, without augmentation. A window's score is its highest score of a species. The
    quarter with the highest scores is kept until the next time. Which windows are scored depends on seed and epoch
    alone. All processes share the scoring, and each gets all scores, so that they keep the same windows.

    Args:
        rescore_epochs: Epochs between two times.
        scored_windows: Windows that are scored each time, at most; also at most four for each hard window of an epoch.

    Attributes:
        epoch: The epoch at whose start the windows were found; 0: never.
        places: The windows, as `WindowSampler.empty_places` gives them.
    """

    def __init__(self, rescore_epochs: int, scored_windows: int) -> None:
        self.rescore_epochs, self.scored_windows = rescore_epochs, scored_windows
        self.epoch = 0
        self.places: list[int] = []

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "args": {"rescore_epochs": self.rescore_epochs, "scored_windows": self.scored_windows},
            "attributes": {"epoch": self.epoch, "places": self.places},
        }

    def find(
        self,
        sampler: WindowSampler,
        windows: RecordingWindows,
        model: KenyaBirdsForAudioClassification,
        accelerator: Accelerator,
    ) -> np.ndarray:
        """The hard windows of the sampler's epoch; scores windows if it is time. Called by every process.

        Args:
            sampler: Draws the windows.
            windows: Their sound.
            model: The model in training.
            accelerator: The processes.

        Returns:
            Places, as `WindowSampler.empty_places` gives them; none in the first epochs.
        """
        due = sampler.epoch - sampler.epoch % self.rescore_epochs
        if due != self.epoch:
            started_s = time.monotonic()
            places = sampler.empty_places(min(CANDIDATES * sampler.hard_number, self.scored_windows))
            scores = _scores(*sampler.split(places), windows, model, accelerator)
            kept = np.argsort(-scores, kind="stable")[: max(1, len(places) // CANDIDATES)]
            self.epoch, self.places = due, places[kept].tolist()
            logger.info(
                "Epoch %d: %d empty windows were scored in %.1f s; the %d hardest have scores of %.3f to %.3f",
                due + 1,
                len(places),
                time.monotonic() - started_s,
                len(kept),
                scores[kept].min(),
                scores[kept].max(),
            )
        return np.array(self.places, dtype=np.int64)


def _scores(
    recording: list[int],
    start: list[int],
    windows: RecordingWindows,
    model: KenyaBirdsForAudioClassification,
    accelerator: Accelerator,
) -> np.ndarray:
    """Highest score of a species in each window, shape `(windows,)`; each process scores a part of the windows."""
    scores = torch.zeros(len(start), device=accelerator.device)
    rows = np.arange(accelerator.process_index, len(start), accelerator.num_processes)
    is_training = model.training
    model.eval()
    with torch.no_grad():
        for first in range(0, len(rows), SCORE_BATCH):
            batch = rows[first : first + SCORE_BATCH]
            waveform = windows.raw([recording[row] for row in batch], [start[row] for row in batch])
            # Not in mixed precision, in which the power of bands loses precision, or becomes infinite (float16).
            features = windows.augmentation.extractor.extract(waveform.to(accelerator.device))
            with accelerator.autocast():
                logits = model(features).logits
            scores[torch.from_numpy(batch)] = logits.float().sigmoid().amax(dim=1)
    model.train(is_training)
    return accelerator.reduce(scores, "sum").cpu().numpy()
