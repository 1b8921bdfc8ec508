"""Scores of windows: features and model in one go, on the device, several batches at a time on a CPU."""

import time
from typing import Any

import numpy as np
import torch

from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.inference.flow import BatchPool
from kenya_birds.inference.stopwatch import Stopwatch
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

SCORE_DIGITS = 6


class WindowScorer(BatchPool):
    """Scores batches of windows with a model. A window's scores do not depend on what else is in its batch.

    For that, all batches have one size, and scores are rounded to 6 digits. On a GPU the backbone computes in
    bfloat16, the features in float32. What `submit` gives is float64 probabilities of shape `(batch_size, classes)`.

    Args:
        model: The classifier; it is set to evaluation mode and moved to the device.
        extractor: Its front end.
        device: Where to compute.
        batch_size: Windows of a batch; by default 16 on a CPU and 128 on a GPU.
        stopwatch: Counts the time of features and model.

    Attributes:
        precision: `float32` or `bfloat16`: the backbone's.
    """

    def __init__(
        self,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        device: torch.device,
        batch_size: int | None,
        stopwatch: Stopwatch,
    ) -> None:
        to_device: Any = model.eval().to
        self._model = to_device(device, memory_format=torch.channels_last)
        self._extractor = extractor
        self._device = device
        self._stopwatch = stopwatch
        self._multi_label = model.config.problem_type == "multi_label_classification"
        self.precision = "float32" if device.type == "cpu" else "bfloat16"
        super().__init__(self._score, device, batch_size)

    @torch.inference_mode()
    def _score(self, sound: np.ndarray) -> np.ndarray:
        waveform = torch.from_numpy(sound)
        if self._device.type == "cuda":
            waveform = waveform.pin_memory()
        begin_s = time.perf_counter()
        waveform = waveform.to(self._device, non_blocking=True)
        features = self._extractor.extract(waveform)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        middle_s = time.perf_counter()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self._model(features).logits
        scores = probabilities(logits.float().cpu().numpy(), multi_label=self._multi_label)
        self._stopwatch.add("features", middle_s - begin_s)
        self._stopwatch.add("model", time.perf_counter() - middle_s)
        return scores.round(SCORE_DIGITS)
