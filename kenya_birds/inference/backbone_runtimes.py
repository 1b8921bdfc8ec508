"""Runtimes of the backbone: torch, onnxruntime and OpenVINO, and the check of their scores."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from kenya_birds.errors import UserError
from kenya_birds.inference.backends import Backend, Precision
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.graph_kenya_birds import OnnxGraph
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.onnx_graphs import INPUT, OUTPUT, backbone_graph

# Clips that a graph computes at a time: their activations stay in the processor's cache.
CLIPS_AT_ONCE = 4
# Windows with sound that are compared with torch in float32.
CHECKED_WINDOWS = 64
# Largest allowed difference of a score. Rounding to 8 bits of mantissa changes scores more.
LARGEST_DIFFERENCE = {"float32": 0.001, "bfloat16": 0.25}
# The same of the classifier's input, relative to its standard deviation: scores near 0 and 1 hide differences.
LARGEST_INPUT_DIFFERENCE = {"float32": 0.02, "bfloat16": 1.0}


class Backbone(Protocol):
    """From the input of a model to the input of its classifier; several threads may call it at the same time."""

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Computes the input of the classifier.

        Args:
            features: Shape `(windows, bands, frames)`, or `(windows, samples)` if the model takes the waveform.

        Returns:
            float32 (see `KenyaBirdsForAudioClassification.head_input`).
        """


class TorchBackbone:
    """The backbone in torch.

    Args:
        model: In evaluation mode, on its device.
        precision: Precision of most operations.
    """

    def __init__(self, model: KenyaBirdsForAudioClassification, precision: Precision) -> None:
        self._model = model
        self._is_bfloat16 = precision == "bfloat16"

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Computes the input of the classifier (see `Backbone`)."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self._is_bfloat16):
            return self._model.head_input(features).float()


class _GraphBackbone(ABC):
    """A graph that takes `CLIPS_AT_ONCE` clips; the last ones are filled up with zeros."""

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Computes the input of the classifier (see `Backbone`)."""
        values = features.float().numpy()
        values = np.pad(values, ((0, -len(values) % CLIPS_AT_ONCE), (0, 0), (0, 0)))
        parts = [self._run(values[first : first + CLIPS_AT_ONCE]) for first in range(0, len(values), CLIPS_AT_ONCE)]
        return torch.from_numpy(np.concatenate(parts)[: len(features)])

    @abstractmethod
    def _run(self, values: np.ndarray) -> np.ndarray:
        """Embeddings of `CLIPS_AT_ONCE` clips."""


class OnnxBackbone(_GraphBackbone):
    """The backbone in onnxruntime; each call uses the thread of the caller.

    Args:
        model: The model on the CPU.
        features: Input of some clips, shape `(clips, bands, frames)`.
    """

    def __init__(self, model: KenyaBirdsForAudioClassification, features: torch.Tensor) -> None:
        self._graph = OnnxGraph(backbone_graph(model, features))

    def _run(self, values: np.ndarray) -> np.ndarray:
        return self._graph.run(values, INPUT, [OUTPUT])[0]


class OpenVinoBackbone(_GraphBackbone):
    """The backbone in OpenVINO.

    Args:
        model: The model on the CPU.
        features: Input of some clips, shape `(clips, bands, frames)`.
        precision: Precision of most operations.
        threads: Number of calls at the same time, each of which gets a thread.
    """

    def __init__(
        self, model: KenyaBirdsForAudioClassification, features: torch.Tensor, precision: Precision, threads: int
    ) -> None:
        import openvino

        core = openvino.Core()
        graph = core.read_model(backbone_graph(model, features))
        graph.reshape([CLIPS_AT_ONCE, *features.shape[1:]])
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            # Other threads and processes need the cores too.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = core.compile_model(graph, "CPU", settings)
        self._of_thread = threading.local()

    def _run(self, values: np.ndarray) -> np.ndarray:
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        return request.infer({INPUT: values})[OUTPUT].copy()


def open_backbone(
    backend: Backend,
    precision: Precision,
    model: KenyaBirdsForAudioClassification,
    extractor: KenyaBirdsFeatureExtractor,
    threads: int,
) -> Backbone:
    """Opens a backend.

    Args:
        backend: `torch`, `onnx` or `openvino`.
        precision: Precision of most operations.
        model: In evaluation mode, on its device.
        extractor: Its feature extractor.
        threads: Number of calls at the same time.

    Raises:
        UserError: If the processor, the network or the installed runtime does not allow it.
    """
    if precision == "bfloat16" and model.device.type == "cpu":
        check_bfloat16()
    if backend == "torch":
        return TorchBackbone(model, precision)
    noise = torch.randn(2, extractor.clip_samples, generator=torch.Generator().manual_seed(0))
    features = extractor.extract(noise)
    try:
        backbone: Backbone
        if backend == "onnx":
            backbone = OnnxBackbone(model, features)
        else:
            backbone = OpenVinoBackbone(model, features, precision, threads)
        backbone(features)  # onnxruntime opens a graph when it is first used
    except UserError as error:
        raise UserError(f"{error}; or give --backend torch") from None
    except Exception as error:  # those of the runtimes have no base of their own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--backend {backend} cannot be used here ({type(error).__name__}: {reason}): install it again, or give "
            "--backend torch"
        ) from None
    return backbone


def check_bfloat16() -> None:
    """Raises `UserError` if this processor computes bfloat16 no faster than float32."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has no such function
    if not any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        raise UserError(
            "this processor has no instructions for bfloat16 (AVX512-BF16, AMX or those of ARM), or torch is too old "
            "to tell: leave out --precision, or give --precision float32"
        )


class BackboneCheck:
    """Comparison of a backend with torch in float32, on the first windows of a run.

    Args:
        backend: The backend.
        precision: Its precision.
        thresholds: Score from which each class is reported, shape `(classes,)`.

    Attributes:
        precision: The precision.
        windows: Windows that were compared.
        largest_difference: Largest difference of a score.
        changed: Number of scores of a window and class that are on the other side of the threshold.
        reported: Number of scores that reach the threshold with torch.
    """

    def __init__(self, backend: Backend, precision: Precision, thresholds: np.ndarray) -> None:
        self.precision = precision
        self._backend, self._thresholds = backend, thresholds
        self._lock = threading.Lock()
        self._started = 0
        self.windows = self.changed = self.reported = 0
        self.largest_difference = 0.0

    def start(self, windows: int) -> bool:
        """Returns whether a batch must be compared.

        Args:
            windows: Windows of the batch.
        """
        with self._lock:
            is_due = self._started < CHECKED_WINDOWS
            self._started += windows
            return is_due

    def add_inputs(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Compares the input of the classifier.

        Args:
            expected: That of torch in float32, shape `(windows, size)`.
            found: That of the backend.

        Raises:
            UserError: If they differ too much.
        """
        deviation = float(expected.std()) if expected.size else 0.0
        self._compare("embeddings", expected, found, LARGEST_INPUT_DIFFERENCE[self.precision] * deviation)

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Compares scores.

        Args:
            expected: Scores of torch in float32, shape `(windows, classes)`.
            found: Scores of the backend.

        Raises:
            UserError: If they differ too much.
        """
        difference = self._compare("scores", expected, found, LARGEST_DIFFERENCE[self.precision])
        reported = expected >= self._thresholds
        with self._lock:
            self.windows += len(expected)
            self.reported += int(reported.sum())
            self.changed += int((reported != (found >= self._thresholds)).sum())
            self.largest_difference = max(self.largest_difference, difference)

    def _compare(self, what: str, expected: np.ndarray, found: np.ndarray, bound: float) -> float:
        """The largest difference; raises `UserError` if it is above the bound."""
        differences = np.abs(found - expected)
        difference = float(differences.max(initial=0.0)) if np.isfinite(differences).all() else float("inf")
        if not difference <= bound:
            raise UserError(
                f"{what} of --backend {self._backend} in {self.precision} differ from torch in float32 by up to "
                f"{difference:.2g} on the first windows: expected at most {bound:.2g}; give --backend torch and "
                "--precision float32"
            )
        return difference

    @classmethod
    def describe_all(cls, checks: Sequence["BackboneCheck | None"]) -> dict[str, Any] | None:
        """The part of `run.json` about the comparisons of all processes; None if no window was compared.

        Args:
            checks: The comparison of each process; None: it had none.
        """
        made = [check for check in checks if check is not None and check.windows]
        if not made:
            return None
        return {
            "windows": sum(check.windows for check in made),
            "largest_score_difference": max(check.largest_difference for check in made),
            "allowed_score_difference": LARGEST_DIFFERENCE[made[0].precision],
            "detections": sum(check.reported for check in made),
            "changed_detections": sum(check.changed for check in made),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Its state without the lock, to send it to another process."""
        return {**self.__dict__, "_lock": None}
