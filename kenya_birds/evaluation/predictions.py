"""Predictions on clips: computing, writing and reading them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from kenya_birds.data.audio import decode_wav
from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import class_targets, predicted_classes
from kenya_birds.files import users_file
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import MASKED, KenyaBirdsForAudioClassification

CLIP_COLUMNS = ("recording", "start_s", "center_s")
LABEL_COLUMNS = ("label", "labels", "unknown")
# Key in the file's metadata that lists the columns that are classes.
CLASSES_KEY = b"kenya_birds.classes"


@dataclass(frozen=True)
class Predictions:
    """Probabilities of clips, and the true classes.

    Attributes:
        classes: eBird codes by class id.
        scores: Calibrated probabilities, shape `(clips, classes)`.
        references: Class ids `(clips,)`; or, if multi-label, ones, zeros and -100 (unknown) of shape
            `(clips, classes)`.
        recordings: File name of each clip's recording.
        start_s: Start of each clip in its recording.
        center_s: Centre of the annotation that each clip was cut for.
    """

    classes: list[str]
    scores: np.ndarray
    references: np.ndarray
    recordings: np.ndarray
    start_s: np.ndarray
    center_s: np.ndarray

    def __post_init__(self) -> None:
        """Checks the shapes."""
        clips = len(self.recordings)
        shapes = {
            "scores": (self.scores.shape, (clips, len(self.classes))),
            "references": (self.references.shape, (clips, len(self.classes))[: max(1, self.references.ndim)]),
            "start_s": (self.start_s.shape, (clips,)),
            "center_s": (self.center_s.shape, (clips,)),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise ValueError(f"{name} has the shape {found}: expected {expected}, as there are {clips} clips")

    @classmethod
    def pooled(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The predictions of several models with the same classes, one after the other."""
        names = ("scores", "references", "recordings", "start_s", "center_s")
        return cls(parts[0].classes, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def multi_label(self) -> bool:
        """Whether a clip may contain several classes."""
        return self.references.ndim == 2

    @property
    def targets(self) -> np.ndarray:
        """The references as a matrix (see `class_targets`)."""
        return class_targets(self.references, len(self.classes))

    def confusions(self, reported: np.ndarray | None = None) -> np.ndarray:
        """Confusion matrix: counts of true class (row) and predicted class (column).

        Single-label: the predicted class is the most probable one. Multi-label: each true class of a clip is counted
        separately. It is correct if it is reported; otherwise it counts as the most probable reported class that is
        absent from the clip. If no absent class is reported, it counts in one more column, the last. So a row's share
        on the diagonal is the class's recall.

        Args:
            reported: Multi-label: whether each class is reported in each clip, shape `(clips, classes)`. By default a
                class is reported if its probability is above 0.5.

        Returns:
            Shape `(classes, classes)`, or `(classes, classes + 1)` if multi-label.
        """
        classes = len(self.classes)
        counts = np.zeros((classes, classes + self.multi_label), dtype=np.int64)
        if not self.multi_label:
            np.add.at(counts, (self.references, self.scores.argmax(axis=1)), 1)
            return counts
        if reported is None:
            reported = predicted_classes(self.scores, multi_label=True) == 1
        wrong = reported & (self.references == 0)
        instead = np.where(wrong.any(axis=1), np.where(wrong, self.scores, -1).argmax(axis=1), classes)
        clips, labels = np.nonzero(self.references == 1)
        np.add.at(counts, (labels, np.where(reported[clips, labels], labels, instead[clips])), 1)
        return counts


def write_predictions(predictions: Predictions, path: str | Path) -> None:
    """Writes predictions as a Parquet file with one row per clip, which `pandas.read_parquet` reads.

    The file is written completely or not at all. Columns: `recording`, `start_s`, `center_s`; `label` (eBird code), or
    if multi-label `labels` (list of codes) and `unknown` (whether the clip may also contain other classes); then the
    probability of each class, in a column with its code as name.

    Args:
        predictions: The predictions.
        path: Parquet file to write; an existing file is replaced.

    Raises:
        UserError: If a code is the name of another column, or the file cannot be written.
        ValueError: If in one clip some classes are absent and others unknown.
    """
    taken = sorted({*CLIP_COLUMNS, *LABEL_COLUMNS} & set(predictions.classes))
    if taken:
        raise UserError(f"eBird codes {', '.join(taken)} are names of other columns of {path}: rename the species")
    columns: dict[str, pa.Array] = {
        "recording": pa.array(predictions.recordings.astype(str)),
        "start_s": pa.array(predictions.start_s),
        "center_s": pa.array(predictions.center_s),
    }
    if predictions.multi_label:
        targets = predictions.targets
        unknown = (targets == MASKED).any(axis=1)
        if (targets[unknown] == 0).any():
            raise ValueError("in each clip, the classes that are not present are expected to be all 0 or all -100")
        codes = [[predictions.classes[label] for label in np.flatnonzero(row == 1)] for row in targets]
        columns |= {"labels": pa.array(codes, pa.list_(pa.string())), "unknown": pa.array(unknown)}
    else:
        columns["label"] = pa.array([predictions.classes[label] for label in predictions.references], pa.string())
    columns |= {code: pa.array(predictions.scores[:, label]) for label, code in enumerate(predictions.classes)}
    table = pa.table(columns).replace_schema_metadata({CLASSES_KEY: json.dumps(predictions.classes).encode()})
    with users_file(Path(path)) as partial:
        pq.write_table(table, partial)


def read_predictions(path: str | Path) -> Predictions:
    """Reads a file of `write_predictions`.

    Raises:
        UserError: If the file cannot be read or is not such a file.
    """
    try:
        table = pq.read_table(path)
        classes: list[str] = json.loads((table.schema.metadata or {})[CLASSES_KEY])
        class_id = {code: label for label, code in enumerate(classes)}
        if "labels" in table.column_names:
            references = np.zeros((len(table), len(classes)), dtype=np.int64)
            rows = zip(references, table["labels"].to_pylist(), table["unknown"].to_pylist(), strict=True)
            for row, codes, unknown in rows:
                row[:] = MASKED if unknown else 0
                row[_ids(codes, class_id)] = 1
        else:
            references = np.array(_ids(table["label"].to_pylist(), class_id), dtype=np.int64)
        return Predictions(
            classes,
            np.stack([table[code].to_numpy() for code in classes], axis=1),
            references,
            *(np.array(table[name].to_pylist()) for name in CLIP_COLUMNS),
        )
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a predictions file of training or `kenya-birds evaluate` ({error}): give another file, or "
            "evaluate again"
        ) from None


def _ids(codes: Sequence[str], class_id: dict[str, int]) -> list[int]:
    return [class_id[code] for code in codes]


def score_clips(
    model: KenyaBirdsForAudioClassification,
    extractor: KenyaBirdsFeatureExtractor,
    clips: Dataset,
    *,
    batch_size: int = 64,
    time_shifts: int = 1,
) -> np.ndarray:
    """Logits of clips, from the model's `forward`: calibrated if its config has a calibration.

    Args:
        model: The classifier. It is set to evaluation mode and stays on its device.
        extractor: Its feature extractor.
        clips: Rows of `load_clips`, all cut with the same context.
        batch_size: Clips per batch.
        time_shifts: Number of crops of each clip; the logits are their mean. The crops are spaced evenly over the
            stored sound: with 3, the clip itself and the clip shifted by its context in both directions. 1 is the clip
            itself.

    Returns:
        float32, shape `(clips, classes)`.

    Raises:
        UserError: If `time_shifts` or `batch_size` is below 1, or `time_shifts` is above 1 and clips have no context.
    """
    for name, number in (("time_shifts", time_shifts), ("batch_size", batch_size)):
        if number < 1:
            raise UserError(f"{name} is {number}: expected 1 or more")
    model.eval()
    scores = [np.zeros((0, model.config.num_labels), dtype=np.float32)]
    for first in range(0, len(clips), batch_size):
        audio = clips[first : first + batch_size]["audio"]
        waveform = torch.from_numpy(np.stack([decode_wav(clip["bytes"]) for clip in audio]))
        waveform = waveform.to(model.device)
        crops = _crops(waveform, extractor.clip_samples, time_shifts)
        total = torch.zeros(len(audio), model.config.num_labels)
        with torch.no_grad():
            for crop in crops:
                features = extractor(crop, sampling_rate=extractor.sampling_rate, return_tensors="pt")
                total += model(features["input_features"].to(model.dtype)).logits.float().cpu()
        scores.append((total / len(crops)).numpy())
    return np.concatenate(scores)


def embed_clips(
    model: KenyaBirdsForAudioClassification,
    extractor: KenyaBirdsFeatureExtractor,
    clips: Dataset,
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """Embeddings of clips: float32, shape `(clips, embedding_size)`.

    Args:
        model: The classifier. It is set to evaluation mode and stays on its device.
        extractor: Its feature extractor; it crops clips with context to their centre.
        clips: Rows of `load_clips`, all cut with the same context.
        batch_size: Clips per batch.
    """
    model.eval()
    found = [np.zeros((0, model.embedding_size), dtype=np.float32)]
    for first in range(0, len(clips), batch_size):
        audio = clips[first : first + batch_size]["audio"]
        waveform = torch.from_numpy(np.stack([decode_wav(clip["bytes"]) for clip in audio])).to(model.device)
        with torch.inference_mode():
            features = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            found.append(model.embed(features["input_features"].to(model.dtype)).float().cpu().numpy())
    return np.concatenate(found)


def clip_references(clips: Dataset, class_ids: Mapping[str, int], *, multi_label: bool) -> np.ndarray:
    """References of clips, in the classes of a model.

    Args:
        clips: Rows of `load_clips`. Species that are not in `class_ids` are ignored.
        class_ids: By eBird code, from 0.
        multi_label: Whether to use all species in the clip, instead of the annotated one.

    Returns:
        Class ids of shape `(clips,)`, -1 for another species; or ones and zeros of shape `(clips, classes)`, with -100
        instead of zeros in clips with an unidentified bird.
    """
    ids = np.array([class_ids.get(code, -1) for code in clips.features["label"].names])
    if not multi_label:
        return ids[np.asarray(clips["label"][:])]
    references = np.zeros((len(clips), len(class_ids)), dtype=np.int64)
    for row, labels, unknown in zip(references, clips["labels"][:], clips["unknown"][:], strict=True):
        row[:] = MASKED if unknown else 0
        present = ids[labels]
        row[present[present >= 0]] = 1
    return references


def _crops(waveform: torch.Tensor, samples: int, number: int) -> list[torch.Tensor]:
    if number == 1:
        return [waveform]  # the extractor centre-crops
    spare = waveform.shape[1] - samples
    if spare < 2:
        raise UserError(
            "the clips have no context on either side, so crops cannot be shifted: cut them with context_s above 0"
        )
    return [waveform[:, start : start + samples] for start in np.linspace(0, spare, number).round().astype(int)]
