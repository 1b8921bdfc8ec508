"""Scores of windows: features, backbone and classifier in batches."""

import time
from typing import Any

import numpy as np
import torch

from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.novelty import NoveltyReference
from kenya_birds.inference.audio_stream import Stopwatch
from kenya_birds.inference.backbone_runtimes import BackboneCheck, TorchBackbone, open_backbone
from kenya_birds.inference.backends import Backend, Precision
from kenya_birds.inference.batching import BatchPool
from kenya_birds.inference.detections import SCORE_DIGITS
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification


class WindowScorer(BatchPool):
    """Thread pool that scores batches of windows with a model; scores do not depend on other windows of the batch.

    For this, all batches have the same size, and scores are rounded to 6 digits. The feature extractor and the
    classifier compute in float32. `submit` returns float64 probabilities of shape `(batch_size, classes)`; with a
    reference, the novelty of each window is a further column.

    Args:
        model: The classifier; it is set to evaluation mode and moved to the device.
        extractor: Its feature extractor.
        device: Device for the computation.
        batch_size: Windows per batch; by default 16 on a CPU and 128 on a GPU.
        stopwatch: Measures the time of features and model.
        backend: What computes the backbone: `torch`, `onnx` or `openvino`.
        precision: Precision of the backbone.
        thresholds: Score from which each class is reported, shape `(classes,)`; for `check`.
        reference: Training calls, from which the novelty of each window is measured; None: it is not measured.

    Attributes:
        backend: The backend.
        precision: Precision of the backbone, `float32` or `bfloat16`.
        check: Comparison with torch in float32; None for torch in float32 itself.

    Raises:
        UserError: If the backend cannot compute this network on this processor.
    """

    def __init__(
        self,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        device: torch.device,
        batch_size: int | None,
        stopwatch: Stopwatch,
        *,
        backend: Backend,
        precision: Precision,
        thresholds: np.ndarray,
        reference: NoveltyReference | None = None,
    ) -> None:
        super().__init__(self._score, device, batch_size)
        to_device: Any = model.eval().to
        self._model = model = to_device(device, memory_format=torch.channels_last)
        self._extractor = extractor
        self._device = device
        self._stopwatch = stopwatch
        self._novelty = None if reference is None else reference.measure(device)
        self._multi_label = model.config.problem_type == "multi_label_classification"
        self.backend: Backend = backend
        self.precision: Precision = precision
        self._backbone = open_backbone(backend, precision, model, extractor, self.threads)
        self._reference = TorchBackbone(model, "float32")
        is_reference = (backend, precision) == ("torch", "float32")
        self.check = None if is_reference else BackboneCheck(backend, precision, thresholds)

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
        head_input = self._backbone(features)
        results = self._scores(head_input)
        if self._novelty is not None:
            novelty = self._novelty(head_input[:, : self._model.embedding_size])
            results = np.column_stack([results, novelty])
        self._stopwatch.add("features", middle_s - begin_s)
        self._stopwatch.add("model", time.perf_counter() - middle_s)
        is_sound = sound.any(axis=1)  # the last batch of a run is filled up with zeros
        if self.check is not None and self.check.start(int(is_sound.sum())):
            reference = self._reference(features)
            expected = self._scores(reference)
            _check_finite(expected[is_sound], "torch")
            self.check.add_inputs(reference.cpu().numpy()[is_sound], head_input.cpu().numpy()[is_sound])
            self.check.add(expected[is_sound], results[is_sound, : expected.shape[1]])
        _check_finite(results[is_sound], self.backend)
        return results

    def _scores(self, head_input: torch.Tensor) -> np.ndarray:
        logits = self._model(head_input=head_input).logits.float().cpu().numpy()
        return probabilities(logits, multi_label=self._multi_label).round(SCORE_DIGITS)


def _check_finite(scores: np.ndarray, backend: Backend) -> None:
    # Comparisons with NaN are false, so it would never be reported.
    if not np.isfinite(scores).all():
        other = "" if backend == "torch" else f", or --backend {backend} cannot compute it: give --backend torch"
        raise UserError(f"the model gives scores that are not finite: its weights are damaged{other}")
