"""Export of a model as an ONNX graph from waveforms to probabilities, with a README."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.extras import check_extra
from kenya_birds.folders import check_new_folder, users_folder
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.onnx_graphs import write_graph
from kenya_birds.publishing.fourier_matrices import FourierMatrices
from kenya_birds.saved_models import THRESHOLDS_FILE, SavedModel, check_trained, find_model

logger = logging.getLogger(__name__)

# It needs only onnxruntime and numpy. The tests run it unchanged.
PROGRAM = '''\
"""Prints the most probable class of each clip of a mono 16-bit WAV file: python listen.py recording.wav"""

import json
import sys
import wave

import numpy as np
import onnxruntime

if len(sys.argv) != 2:
    sys.exit("usage: python listen.py recording.wav")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
labels = json.loads(about["labels"])
sampling_rate_hz, clip_samples = int(about["sampling_rate_hz"]), int(about["clip_samples"])

try:
    with wave.open(sys.argv[1]) as file:
        found = (file.getnchannels(), file.getsampwidth(), file.getframerate())
        samples = file.readframes(file.getnframes())
except OSError as error:
    sys.exit(f"{sys.argv[1]} cannot be read: {error.strerror}")
except (wave.Error, EOFError):  # floats, another format, or no sound at all
    found = None
if found != (1, 2, sampling_rate_hz):
    sys.exit(f"expected a mono 16-bit WAV file at {sampling_rate_hz} Hz: convert it first")
recording = np.frombuffer(samples, dtype="<i2").astype(np.float32) / 32768

missing = clip_samples - len(recording)
if missing > 0.75 * clip_samples:
    sys.exit(f"expected {clip_samples / 4 / sampling_rate_hz:g} s of sound or more")
if missing > 0:  # reflection at both ends changes probabilities less than zero padding
    recording = np.pad(recording, (missing // 2, missing - missing // 2), mode="symmetric")
last_start = len(recording) - clip_samples
starts = [*range(0, last_start, clip_samples), last_start]  # the last clip ends with the recording
for first in range(0, len(starts), 4):  # small batches stay in the processor's cache
    batch = np.stack([recording[start : start + clip_samples] for start in starts[first : first + 4]])
    (probabilities,) = session.run(["probabilities"], {"waveform": batch})  # (n, samples) -> (n, classes)
    for start, row in zip(starts[first:], probabilities):
        best = int(row.argmax())
        print(f"{start / sampling_rate_hz:.1f} s\\t{labels[best]}\\t{row[best]:.4f}")
'''


def _link(name: str) -> str:
    """The model's name; on the Hub, with a link to the commit."""
    repo_id, _, commit = name.partition("@")
    if not commit:
        return f"`{name}`"
    return f"[`{repo_id}`](https://huggingface.co/{repo_id}/tree/{commit}) (commit `{commit[:12]}`)"


def render_readme(name: str, metadata: dict[str, str], *, classes: int, has_thresholds: bool) -> str:
    """The text of the README.

    Args:
        name: Public name of the model: `owner/name@commit`, or its folder's name.
        metadata: Metadata of the graph.
        classes: Number of classes.
        has_thresholds: Whether the folder has decision thresholds.
    """
    rate_hz, samples = int(metadata["sampling_rate_hz"]), int(metadata["clip_samples"])
    if metadata["problem_type"] == "multi_label_classification":
        meaning = "A clip may contain several classes, or none: the probabilities need not sum to 1."
    else:
        meaning = "The probabilities of a clip sum to 1: the model assumes that a clip contains exactly one class."
    thresholds = (
        f"- `{THRESHOLDS_FILE}`: decision threshold of each species, chosen on validation; null: never report it\n"
        if has_thresholds
        else ""
    )
    return f"""\
# {name.partition("@")[0].rpartition("/")[2]}: a bird classifier as an ONNX graph

Exported by `kenya-birds export` from the model {_link(name)}: a `{metadata["backbone"]}` with {classes} classes.
A clip is {samples / rate_hz:g} s of mono sound at {rate_hz} Hz.

- `model.onnx`: from `waveform`, float32 `(n, {samples})` in [-1, 1], to `probabilities`, float32 `(n, {classes})`.
  It includes the feature extractor, the classifier and its calibration. Its metadata has labels, names, sampling rate,
  clip length and the SHA-256 of the weights.
- `labels.csv`: code and names of each class, in the order of the output
{thresholds}
{meaning}

If a sample is NaN or infinite, the clip's probabilities are NaN. A batch may have any number of clips; small batches
are fastest on a CPU.

```bash
pip install onnxruntime numpy
```

```python
{PROGRAM}```
"""


GRAPH_FILE = "model.onnx"
LABELS_FILE = "labels.csv"
README_FILE = "README.md"
INPUT, OUTPUT = "waveform", "probabilities"
# The graph is not written if its probabilities differ more than this from the model's. Rounding alone may change them
# by up to 0.003, if a bin crosses the noise gate's threshold.
TOLERANCE = 0.01


class WaveformClassifier(torch.nn.Module):
    """The feature extractor and the model as one module, from waveforms to calibrated probabilities.

    Args:
        model: The classifier, in evaluation mode.
        extractor: Its feature extractor.
    """

    def __init__(self, model: KenyaBirdsForAudioClassification, extractor: KenyaBirdsFeatureExtractor) -> None:
        super().__init__()
        self.model = model
        self.extractor = extractor
        self.is_multi_label = model.config.problem_type == "multi_label_classification"

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Probabilities `(batch, classes)` of waveforms `(batch, clip_samples)`."""
        logits = self.model(self.features(waveform), return_dict=False)[0]
        return logits.sigmoid() if self.is_multi_label else logits.softmax(dim=-1)

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        """The stages of the extractor's `extract`, without its loop over small batches."""
        return self.extractor.to_level(self.extractor.band_power(self.extractor.clean(waveform)))


class _TracedClassifier(WaveformClassifier):
    """The classifier with the Fourier transforms of the graph."""

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        # Not around all of the export: torch would call the context for each of its own functions.
        with FourierMatrices():
            return super().features(waveform)


def export_onnx(model_name: str, output_dir: str | Path) -> Path:
    """Exports a model as an ONNX graph, with labels, thresholds and an example program.

    The graph is traced from the model and its feature extractor, and then compared with them in onnxruntime. Its input
    is float32 waveforms `(n, samples)` of one clip's length at the model's sampling rate; its output is calibrated
    probabilities `(n, classes)`. Its metadata has `labels`, `species`, `sampling_rate_hz`, `clip_samples`,
    `problem_type`, `backbone`, `model_id` and `weights_sha256`. The folder is written completely or not at all.

    Args:
        model_name: The model's folder, or `owner/name` or `owner/name@revision` on the Hub; its code is not run.
        output_dir: Output folder, new or empty. It gets `model.onnx`, `labels.csv`, `README.md`, and `thresholds.json`
            if the model has one.

    Returns:
        The folder.

    Raises:
        UserError: If the model cannot be loaded or exported, the `onnx` extra is not installed, or the folder is not
            empty or cannot be written.
    """
    check_extra("onnx", "export")
    output_dir = Path(output_dir).resolve()
    check_new_folder(output_dir)
    saved = find_model(model_name)
    check_trained(saved, "only models of this package are exported")
    model, extractor = load_classifier(saved)
    if extractor.feature_type == "reassigned":
        raise UserError(
            f"'{model_name}' has reassigned features, which cannot be exported, because their values depend on "
            "rounding; train with --feature_type mel or stft"
        )
    thresholds = saved.folder / THRESHOLDS_FILE
    if thresholds.is_file():
        Thresholds.read(thresholds)
    classifier = WaveformClassifier(model, extractor).eval()
    with users_folder(output_dir, f"the export {output_dir}") as partial:
        metadata = graph_metadata(saved, classifier)
        logger.info("Step 1 of 3: tracing the model (takes up to a few minutes) ...")
        write_classifier(classifier, partial / GRAPH_FILE, metadata)
        logger.info("Step 2 of 3: comparing the graph with the model on three clips ...")
        difference = compare_graph(classifier, partial / GRAPH_FILE)
        logger.info(
            "Step 3 of 3: writing (the probabilities of graph and model differ by at most %.1e) ...", difference
        )
        _species(model.config).to_csv(partial / LABELS_FILE, index=False, lineterminator="\n")
        if thresholds.is_file():
            shutil.copyfile(thresholds, partial / THRESHOLDS_FILE)
        text = render_readme(
            saved.public_name, metadata, classes=model.config.num_labels, has_thresholds=thresholds.is_file()
        )
        (partial / README_FILE).write_text(text, encoding="utf-8")
    return output_dir


def write_classifier(classifier: WaveformClassifier, path: Path, metadata: dict[str, str]) -> None:
    """Traces a classifier and writes the graph.

    Args:
        classifier: In evaluation mode, on the CPU.
        path: File to write.
        metadata: Metadata of the graph.

    Raises:
        UserError: If the backbone has an operator that ONNX does not support.
    """
    write_graph(
        _TracedClassifier(classifier.model, classifier.extractor).eval(),
        _trial(classifier.extractor),
        path,
        tensors=(INPUT, (OUTPUT,)),
        metadata=metadata,
        name=classifier.model.config.backbone,
    )


def compare_graph(classifier: WaveformClassifier, path: Path) -> float:
    """The largest difference between the probabilities of a classifier and its graph, for noise with calls.

    Args:
        classifier: In evaluation mode, on the CPU.
        path: The graph. It is run with one clip and with three clips.

    Raises:
        UserError: If the difference is too large for rounding errors.
    """
    waveform = _trial(classifier.extractor)
    with torch.no_grad():
        expected = classifier(waveform).numpy()
    found = [run_graph(path, waveform[:batch].numpy()) for batch in (len(waveform), 1)]
    difference = max(float(np.abs(part - expected[: len(part)]).max()) for part in found)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the exported graph differs from the model: probabilities differ by {difference:.2g}, expected at most "
            f"{TOLERANCE} (onnxruntime, backbone '{classifier.model.config.backbone}')"
        )
    return difference


def run_graph(path: Path, waveform: np.ndarray, threads: int = 0) -> np.ndarray:
    """Probabilities `(n, classes)` of float32 waveforms `(n, samples)`, by onnxruntime on the CPU.

    Args:
        path: The graph.
        waveform: Clips.
        threads: Number of threads; 0: one per core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: waveform})[0]


def graph_metadata(saved: SavedModel, classifier: WaveformClassifier) -> dict[str, str]:
    """Metadata of the graph; lists and objects are JSON.

    Args:
        saved: The model's files.
        classifier: The model.
    """
    config, extractor = classifier.model.config, classifier.extractor
    digest = hashlib.sha256()
    for path in sorted(saved.folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return {
        "labels": json.dumps(_labels(config)),
        "species": json.dumps(config.species or {}, ensure_ascii=False),
        "sampling_rate_hz": str(extractor.sampling_rate),
        "clip_samples": str(extractor.clip_samples),
        "problem_type": config.problem_type or "single_label_classification",
        "backbone": config.backbone,
        "model_id": saved.starting_point,
        "weights_sha256": digest.hexdigest(),
    }


def _labels(config: Any) -> list[str]:
    return [config.id2label[index] for index in range(config.num_labels)]


def _species(config: Any) -> pd.DataFrame:
    """`class_id`, `code`, `scientific_name` and `common_name`, in the order of the graph's output."""
    labels = _labels(config)
    names = [(config.species or {}).get(code, {}) for code in labels]
    return pd.DataFrame(
        {
            "class_id": range(len(labels)),
            "code": labels,
            "scientific_name": [name.get("scientific_name", "") for name in names],
            "common_name": [name.get("common_name", "") for name in names],
        }
    )


def _trial(extractor: KenyaBirdsFeatureExtractor) -> torch.Tensor:
    """Three clips of noise, each with a sweep through the features' range; the same at every call."""
    time_s = torch.arange(extractor.clip_samples) / extractor.sampling_rate
    span_hz = extractor.f_max_hz - extractor.f_min_hz
    waveform = 0.01 * torch.randn(3, len(time_s), generator=torch.Generator().manual_seed(0))
    for clip, rate_hz in zip(waveform, (0.5, 1.0, 4.0), strict=True):
        sweep = extractor.f_min_hz * time_s + span_hz / (2 * time_s[-1]) * time_s.square()
        clip += 0.3 * torch.sin(2 * torch.pi * sweep) * (torch.sin(2 * torch.pi * rate_hz * time_s) > 0)
    return waveform
