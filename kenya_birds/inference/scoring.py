"""Scores of windows: features and model in one go, on the device, several batches at a time on a CPU."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch

from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.inference.stopwatch import Stopwatch
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

# On a CPU a batch's spectra and activations stay in its cache.
BATCH_SIZES = {"cpu": 16, "cuda": 128}
SCORE_DIGITS = 6


class WindowScorer:
    """Scores batches of windows with a model. A window's scores do not depend on what else is in its batch.

    For that, all batches have one size, and scores are rounded to 6 digits. On a CPU as many batches as there are
    threads are scored at a time, each by one thread: operations on small tensors gain little from more. On a GPU the
    backbone computes in bfloat16, the features in float32.

    Args:
        model: The classifier; it is set to evaluation mode and moved to the device.
        extractor: Its front end.
        device: Where to compute.
        batch_size: Windows of a batch; by default 16 on a CPU and 128 on a GPU.
        stopwatch: Counts the time of features and model.

    Attributes:
        batch_size: Windows of a batch.
        precision: `float32` or `bfloat16`: the backbone's.
        threads: Number of batches that are worked on at a time.
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
        is_cpu = device.type == "cpu"
        self.batch_size = batch_size or BATCH_SIZES.get(device.type, 128)
        self.precision = "float32" if is_cpu else "bfloat16"
        # Two on a GPU, so that it has work while scores travel.
        self._torch_threads = torch.get_num_threads()
        self.threads = self._torch_threads if is_cpu else 2
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "WindowScorer":
        """Starts its threads; they end with the `with` block."""
        self._pool = ThreadPoolExecutor(self.threads, "score", initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for its threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)  # new threads take over what the pool's have set

    def submit(self, sound: np.ndarray) -> "Future[np.ndarray]":
        """Begins to score a batch.

        Args:
            sound: int16 of shape `(batch_size, window_samples)`, not to be written to.

        Returns:
            To be: float64 probabilities of shape `(batch_size, classes)`.
        """
        assert self._pool is not None, "submit within the `with` block"
        return self._pool.submit(self._score, sound)

    @torch.inference_mode()
    def _score(self, sound: np.ndarray) -> np.ndarray:
        waveform = torch.from_numpy(sound)
        if self._device.type == "cuda":
            waveform = waveform.pin_memory()
        begin_s = time.perf_counter()
        waveform = waveform.to(self._device, non_blocking=True).to(torch.float32) / 32768
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
