"""All windows of whole recordings: where they are, what is known to be in them, and a model's scores of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.decoded_recordings import DecodedRecordings, decode_recordings
from kenya_birds.data.window_grid import WindowGrid
from kenya_birds.errors import UserError
from kenya_birds.evaluation.predictions import CLASSES_KEY
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.files import users_file
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import MASKED, KenyaBirdsForAudioClassification


@dataclass(frozen=True)
class RecordingWindowGrid:
    """All windows of some recordings, as detection cuts them.

    Attributes:
        decoded: The recordings.
        window: Length of a window in samples.
        recording: Index of each window's recording, shape `(windows,)`.
        start: First sample of each window.
        end: The sample after its last one. A stretch shorter than a window is one window, filled up with mirrored
            sound.
        overlap_s: Overlap of neighbouring windows in seconds.
    """

    decoded: DecodedRecordings
    window: int
    recording: np.ndarray
    start: np.ndarray
    end: np.ndarray
    overlap_s: float = 0.0

    @classmethod
    def of(cls, decoded: DecodedRecordings, window: int, overlap_s: float = 0.0) -> "RecordingWindowGrid":
        """Plans the windows.

        Args:
            decoded: The recordings.
            window: Length of a window in samples.
            overlap_s: Overlap of neighbouring windows in seconds.

        Raises:
            UserError: If the overlap is negative, or as long as a window.
        """
        grid = WindowGrid.with_overlap(window, overlap_s, decoded.sampling_rate)
        parts: list[np.ndarray] = [np.zeros((3, 0), dtype=np.int64)]
        for index, recording in enumerate(decoded.recordings):
            for begin, end in recording.runs.tolist():
                starts = grid.starts(begin, end)
                parts.append(np.stack([np.full(len(starts), index), starts, np.minimum(starts + window, end)]))
        recording, start, end = np.concatenate(parts, axis=1)
        return cls(decoded, window, recording, start, end, overlap_s)

    @cached_property
    def names(self) -> np.ndarray:
        """Name of each window's recording."""
        return np.array(self.decoded.names, dtype=str)[self.recording]

    def targets(self, targets: WindowTargets) -> np.ndarray:
        """Targets of the windows (see `WindowTargets`); unknown in a window that is filled up with mirrored sound."""
        found = targets(self.recording, self.start)
        found[self.end - self.start < self.window] = MASKED
        return found

    def logits(
        self,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        *,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Logits of all windows, as the model's `forward` gives them: float32, shape `(windows, classes)`.

        Args:
            model: The classifier; it is set to evaluation mode, and works on the device that it is on.
            extractor: Its front end.
            batch_size: Windows at a time.
        """
        rows = np.arange(len(self.start))
        none = np.zeros((0, model.config.num_labels), dtype=np.float32)
        return self._computed(model, extractor, lambda features: model(features).logits, rows, none, batch_size)

    def embeddings(
        self,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        rows: np.ndarray,
        *,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Embeddings of some windows: float32, shape `(rows, embedding_size)`.

        Args:
            model: See `logits`.
            extractor: Its front end.
            rows: Indices of windows.
            batch_size: Windows at a time.
        """
        none = np.zeros((0, model.embedding_size), dtype=np.float32)
        return self._computed(model, extractor, model.embed, rows, none, batch_size)

    @torch.inference_mode()
    def _computed(
        self,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        compute: Callable[[torch.Tensor], torch.Tensor],
        rows: np.ndarray,
        none: np.ndarray,
        batch_size: int,
    ) -> np.ndarray:
        """What `compute` returns for the features of windows; `none` is the result without a window."""
        model.eval()
        found = [none]
        for first in range(0, len(rows), batch_size):
            sounds = np.stack([self.sound(row) for row in rows[first : first + batch_size].tolist()])
            waveform = torch.from_numpy(sounds).to(model.device)
            found.append(compute(extractor.extract(waveform).to(model.dtype)).float().cpu().numpy())
        return np.concatenate(found)

    def sound(self, row: int) -> np.ndarray:
        """One window: float32 of shape `(samples,)`."""
        index = int(self.recording[row])
        sound = self.decoded.read(index, int(self.start[row]), self.window)
        return sound * np.float32(self.decoded.recordings[index].scale)


def plan_windows(
    builder: KenyaBirds,
    names: Sequence[str],
    classes: list[str],
    extractor: KenyaBirdsFeatureExtractor,
    *,
    overlap_s: float,
    margin_s: float,
    min_overlap_s: float = 0.0,
    threads: int = 1,
) -> tuple[RecordingWindowGrid, WindowTargets]:
    """Decodes recordings of an archive, and plans their windows.

    Args:
        builder: Plan of the clips: its archive, cache and channel are used.
        names: The recordings.
        classes: eBird codes by class id.
        extractor: Gives the sampling rate and the length of a window.
        overlap_s: Overlap of neighbouring windows in seconds.
        margin_s: See `WindowTargets`. If it is half of a window or more, a quarter of the window is used.
        min_overlap_s: See `WindowTargets`.
        threads: Number of recordings that are decoded at the same time.

    Returns:
        All windows, and the annotations of the same recordings.

    Raises:
        UserError: If the disk has too little space, or the overlap is not shorter than a window.
    """
    archive = builder.archive
    paths = {name: archive.recording_path(name) for name in names}
    decoded = decode_recordings(
        paths, builder.cache_root, extractor.sampling_rate, threads=threads, channel=builder.config.channel
    )
    targets = WindowTargets.of(
        archive.annotations,
        archive.unknown,
        decoded.lengths,
        classes,
        sampling_rate=extractor.sampling_rate,
        window=extractor.clip_samples,
        margin_s=margin_s if 2 * margin_s < extractor.clip_s else extractor.clip_s / 4,
        min_overlap_s=min_overlap_s,
        weak=archive.weak,
        verified=archive.verified,
        absent=archive.absent,
    )
    return RecordingWindowGrid.of(decoded, extractor.clip_samples, overlap_s), targets


# Key in the file's metadata of what its columns do not say.
GRID_KEY = b"kenya_birds.windows"


@dataclass(frozen=True)
class WindowPredictions:
    """Probabilities of all windows of some recordings, and what is annotated in them.

    Attributes:
        classes: eBird codes by class id.
        recordings: Names of the recordings.
        recording: Index of each window's recording, shape `(windows,)`.
        start: First sample of each window.
        end: The sample after its last one.
        scores: Calibrated probabilities, shape `(windows, classes)`.
        targets: 1 present, 0 absent, -100 unknown, same shape.
        sampling_rate: In hertz.
        window: Length of a window in samples.
        overlap_s: Overlap of neighbouring windows in seconds.
    """

    classes: list[str]
    recordings: list[str]
    recording: np.ndarray
    start: np.ndarray
    end: np.ndarray
    scores: np.ndarray
    targets: np.ndarray
    sampling_rate: int
    window: int
    overlap_s: float

    @classmethod
    def of(
        cls, grid: RecordingWindowGrid, classes: list[str], scores: np.ndarray, targets: np.ndarray
    ) -> "WindowPredictions":
        """Those of a grid.

        Args:
            grid: The windows.
            classes: eBird codes by class id.
            scores: Calibrated probabilities, shape `(windows, classes)`.
            targets: 1 present, 0 absent, -100 unknown, same shape.
        """
        names, rate = list(grid.decoded.names), grid.decoded.sampling_rate
        places = grid.recording, grid.start, grid.end
        return cls(classes, names, *places, scores, targets, rate, grid.window, grid.overlap_s)

    @property
    def overlaps(self) -> bool:
        """Whether neighbouring windows overlap."""
        return self.overlap_s > 0

    def write(self, path: str | Path) -> None:
        """Writes a Parquet file with one row per window, which `pandas.read_parquet` reads.

        The file is written completely or not at all. Columns: `recording`, `start_s`, `end_s`, `present` and `unknown`
        (lists of eBird codes), and the probability of each class in a column with its code as name.

        Args:
            path: Parquet file to write; an existing file is replaced.

        Raises:
            UserError: If a code is the name of another column, or the file cannot be written.
        """
        codes = np.array(self.classes, dtype=object)
        columns = {
            "recording": pa.array(np.array(self.recordings, dtype=object)[self.recording], pa.string()),
            "start_s": pa.array(self.start / self.sampling_rate),
            "end_s": pa.array(self.end / self.sampling_rate),
            "present": pa.array([codes[row == 1].tolist() for row in self.targets], pa.list_(pa.string())),
            "unknown": pa.array([codes[row == MASKED].tolist() for row in self.targets], pa.list_(pa.string())),
        }
        if taken := sorted(set(columns) & set(self.classes)):
            raise UserError(f"eBird codes {', '.join(taken)} are names of other columns of {path}: rename the species")
        columns |= {code: pa.array(self.scores[:, label]) for label, code in enumerate(self.classes)}
        grid = {name: getattr(self, name) for name in ("recordings", "sampling_rate", "window", "overlap_s")}
        metadata = {CLASSES_KEY: json.dumps(self.classes).encode(), GRID_KEY: json.dumps(grid).encode()}
        with users_file(Path(path)) as partial:
            pq.write_table(pa.table(columns).replace_schema_metadata(metadata), partial)

    @classmethod
    def read(cls, path: str | Path) -> "WindowPredictions":
        """Reads a file of `write`.

        Raises:
            UserError: If the file cannot be read or is not such a file.
        """
        try:
            table = pq.read_table(path)
            classes = json.loads(table.schema.metadata[CLASSES_KEY])
            grid = json.loads(table.schema.metadata[GRID_KEY])
            names = {name: index for index, name in enumerate(grid["recordings"])}
            labels = {code: label for label, code in enumerate(classes)}
            targets = np.zeros((len(table), len(classes)), dtype=np.int64)
            for column, value in (("present", 1), ("unknown", MASKED)):
                for row, codes in enumerate(table[column].to_pylist()):
                    targets[row, [labels[code] for code in codes]] = value
            starts, ends = (
                np.rint(table[name].to_numpy() * grid["sampling_rate"]).astype(np.int64)
                for name in ("start_s", "end_s")
            )
            recording = np.array([names[name] for name in table["recording"].to_pylist()], dtype=np.int64)
            scores = np.stack([table[code].to_numpy() for code in classes], axis=1)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a table of windows of an evaluation: {error}") from None
        return cls(classes, recording=recording, start=starts, end=ends, scores=scores, targets=targets, **grid)
