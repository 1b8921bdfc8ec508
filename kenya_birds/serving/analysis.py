"""Analysis of uploaded recordings; detections with any threshold come from the stored scores."""

import math
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from kenya_birds.data.audio import read_header
from kenya_birds.data.decoders import TooLongError
from kenya_birds.defaults import MAX_HOURS
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.inference.audio_stream import read_source
from kenya_birds.inference.batching import Job
from kenya_birds.inference.detections import Detection, RecordingInfo
from kenya_birds.inference.devices import device_for
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.inference.postprocessing import DetectionFinder
from kenya_birds.inference.sources import Source
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.windows import UnscoredSound, WindowGrid
from kenya_birds.saved_models import THRESHOLDS_FILE, find_model
from kenya_birds.serving.command_line import command_line
from kenya_birds.values import Count, Device, Positive, checked

# Lower scores are not stored; thresholds on the page are never lower.
FLOOR = 0.05
SCORES_AT_A_TIME = 1_000_000  # of all windows and classes; limits memory
OVERLAP_SHARES = (0.0, 0.5, 0.75)  # of a window; limits the work for one visitor
# Uploaded clips have few windows, and batches are always padded.
CPU_BATCH_SIZE = 4
SPECIES_LIST = "species.txt"
T = TypeVar("T")
_SCORE = np.dtype([("start", np.int64), ("end", np.int64), ("label", np.int32), ("score", np.float64)])


class Stopped(Exception):
    """Raised if the result is no longer needed."""


@dataclass(frozen=True)
class Findings:
    """Scores of a recording, without scores below the floor.

    Attributes:
        info: The recording.
        overlap_s: Overlap of neighbouring windows in seconds.
        losses: Sound that was not scored, digital silence included, in order.
        classes: eBird codes by class id.
        thresholds: The model's own decision thresholds, shape `(classes,)`; infinite: never reported. None if it has
            none.
        sample_rate_hz: Sampling rate in which samples are counted.
        starts: First samples, int64 of shape `(scores,)`, ascending.
        ends: The samples after the last ones, int64 of shape `(scores,)`.
        labels: Class ids, int32 of shape `(scores,)`.
        scores: Calibrated probabilities, float64 of shape `(scores,)`.
    """

    info: RecordingInfo
    overlap_s: float
    losses: tuple[UnscoredSound, ...]
    classes: list[str]
    thresholds: np.ndarray | None
    sample_rate_hz: int
    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return float(self.info.duration)

    @property
    def species(self) -> list[str]:
        """Codes with at least one stored score, by descending highest score."""
        best = np.zeros(len(self.classes))
        np.maximum.at(best, self.labels, self.scores)
        return [self.classes[label] for label in np.argsort(-best, kind="stable") if best[label] > 0]

    def detections(self, settings: FindingSettings) -> list[Detection]:
        """Returns the detections of a `SoundscapePipeline` with these settings, for thresholds not below the floor.

        Args:
            settings: Settings of detections, without smoothing, which needs scores below the floor.

        Raises:
            UserError: If there is no threshold, or a species is unknown.
        """
        if settings.smoothing != 1:
            raise ValueError("smoothing needs scores that are not stored")
        if settings.threshold is None and self.thresholds is None:
            raise UserError("the model has no decision thresholds: choose one threshold for all species")
        thresholds = np.ones(len(self.classes)) if self.thresholds is None else self.thresholds
        finder = DetectionFinder(self.info.recording, self.classes, thresholds, settings, self.sample_rate_hz)
        found: list[Detection] = []
        starts, first, window = np.unique(self.starts, return_index=True, return_inverse=True)
        ends = self.ends[first]
        length = max(1, SCORES_AT_A_TIME // len(self.classes))
        for begin in range(0, len(starts), length):
            end = min(begin + length, len(starts))
            rows = slice(*np.searchsorted(window, (begin, end)))
            scores = np.zeros((end - begin, len(self.classes)))
            scores[window[rows] - begin, self.labels[rows]] = self.scores[rows]
            found += finder.add(starts[begin:end], ends[begin:end], scores)
        return found + finder.finish()


class Analyser:
    """Analyser of recordings with one model, several in parallel; further callers wait.

    Args:
        model: A model's folder, or a name on the Hub.
        concurrency: Number of recordings that are analysed in parallel. Each needs a copy of the model.
        max_hours: Longer recordings are refused.
        device: Device such as `cpu` or `cuda:1`; by default a GPU if there is one.
        batch_size: Windows per batch; by default 4 on a CPU, and 128 on a GPU.

    Attributes:
        model: Public name of the model: a folder's name, or its name on the Hub with the revision.
        title: The same without the revision.
        classes: eBird codes by class id.
        names: Names of the species by code.
        thresholds: The model's own decision thresholds, shape `(classes,)`; None if it has none.
        frequencies_hz: Lowest and highest frequency of the model's input.
        floor: The lowest stored score.
        window_s: Length of a window in seconds.
        overlaps_s: Available overlaps of neighbouring windows in seconds; the second is the default.
        max_hours: Longer recordings are refused.

    Raises:
        UserError: If the model or a setting cannot be used.
    """

    @checked
    def __init__(
        self,
        model: str | Path,
        *,
        concurrency: Count = 1,
        max_hours: Positive = MAX_HOURS,
        device: Device | None = None,
        batch_size: Count | None = None,
    ) -> None:
        self.max_hours = max_hours
        saved = find_model(str(model))
        # Visitors must not see the path of a folder.
        self.model = saved.folder.resolve().name if Path(saved.name).is_dir() else saved.name
        self.title = self.model.partition("@")[0]
        own = Thresholds.read(saved.folder / THRESHOLDS_FILE) if (saved.folder / THRESHOLDS_FILE).is_file() else None
        chosen = [value for value in own.species.values() if value is not None] if own is not None else []
        self.floor = min([FLOOR, *chosen])
        if batch_size is None and device_for(saved, device).type == "cpu":
            batch_size = CPU_BATCH_SIZE
        self._idle: queue.LifoQueue[SoundscapePipeline] = queue.LifoQueue()
        for _ in range(concurrency):
            pipeline = SoundscapePipeline(
                saved, settings=FindingSettings(threshold=self.floor), device=device, batch_size=batch_size
            )
            self._idle.put(pipeline)
        self.classes = pipeline.classes
        self.names: Mapping[str, SpeciesNames] = pipeline.names
        self.frequencies_hz = pipeline.frequencies_hz
        self.window_s = pipeline.grid.window_samples / pipeline.sampling_rate
        self.overlaps_s = tuple(share * self.window_s for share in OVERLAP_SHARES)
        self.thresholds = None if own is None else own.values(pipeline.classes)

    def allowed_overlap_s(self, overlap_s: float | None) -> float:
        """Returns the overlap if it is one of `overlaps_s`, else the default; other overlaps may take too long."""
        return overlap_s if overlap_s in self.overlaps_s else self.overlaps_s[1]

    def analyse(
        self,
        path: Path,
        *,
        overlap_s: float | None = None,
        progress: Callable[[float], None] = lambda share: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Findings:
        """Analyses one recording; waits until a copy of the model is free.

        Args:
            path: The recording; tables contain its file name.
            overlap_s: See `allowed_overlap_s`.
            progress: Called with the analysed share, 0 to 1.
            is_stopped: Called repeatedly; returns whether to stop.

        Raises:
            UserError: If it is no recording, too long, or changes while it is read.
            Stopped: If `is_stopped` returned True.
        """
        # Messages must not contain paths of the server.
        duration_s = self._duration_s(path)
        overlap_s = self.allowed_overlap_s(overlap_s)
        pipeline = self._idle.get()
        try:
            return _without_folder(
                path, lambda: self._analyse(pipeline, path, overlap_s, duration_s, progress, is_stopped)
            )
        finally:
            self._idle.put(pipeline)

    def _duration_s(self, path: Path) -> float:
        """Returns a recording's length, after checking it."""
        try:
            duration_s = _without_folder(path, lambda: read_header(path, self.max_hours * 3600).duration_s)
        except TooLongError:  # it was not decoded to its end
            duration_s = math.inf
        if duration_s > self.max_hours * 3600:
            found = f"{duration_s / 3600:.2f} hours long" if math.isfinite(duration_s) else "too long"
            raise UserError(
                f"{path.name} is {found}: expected at most {self.max_hours:g} hours. "
                "Cut it, or use `kenya-birds detect`, which has no limit"
            )
        return duration_s

    def _analyse(
        self,
        pipeline: SoundscapePipeline,
        path: Path,
        overlap_s: float,
        duration_s: float,
        progress: Callable[[float], None],
        is_stopped: Callable[[], bool],
    ) -> Findings:
        label_of = {code: label for label, code in enumerate(pipeline.classes)}
        parts: list[np.ndarray] = []
        analysed_s = 0.0
        source = Source(str(path))
        grid = WindowGrid.with_overlap(pipeline.grid.window_samples, overlap_s, pipeline.sampling_rate)
        job = Job(path.name, lambda: read_source(source, grid, pipeline.sampling_rate, pipeline.stopwatch))
        for step in pipeline.analyse([job]):
            if is_stopped():
                raise Stopped
            rows = [(one.start_sample, one.end_sample, label_of[one.species], one.score) for one in step.detections]
            parts.append(np.array(rows, dtype=_SCORE))
            analysed_s += step.advance_s
            progress(min(1.0, analysed_s / duration_s))
            reading = step.reading
        if reading is None or not reading.is_final:
            raise UserError(f"{path.name}: {reading.losses[0].reason if reading else 'it was not read to its end'}")
        found = np.concatenate(parts)
        return Findings(
            RecordingInfo(path.name, reading.frames, reading.sample_rate_hz, is_here=False, header=reading.header),
            overlap_s,
            tuple(sorted((*reading.losses, *reading.silences), key=lambda loss: loss.start_s)),
            pipeline.classes,
            self.thresholds,
            pipeline.sampling_rate,
            found["start"],
            found["end"],
            found["label"],
            found["score"],
        )


def detect_command(model: str, recording: str, overlap_s: float, settings: FindingSettings) -> str:
    """Returns the command that gives the same rows; selected species are in a separate file.

    Args:
        model: The model's folder, or its name on the Hub.
        recording: The recording's file name.
        overlap_s: Overlap of neighbouring windows in seconds.
        settings: Settings of detections; `threshold`, `min_confidence`, `species` and `merge` are used.
    """
    words = ["kenya-birds", "detect", model, recording if recording[:1] != "-" else f"./{recording}"]
    words += ["--output", "found"]
    words += ["--overlap_s", str(overlap_s)]
    if settings.threshold is not None:
        words += ["--threshold", str(settings.threshold)]
    if settings.min_confidence:
        words += ["--min_confidence", str(settings.min_confidence)]
    words.append("--merge" if settings.merge else "--no_merge")
    comment = ""
    if settings.species is not None:
        words += ["--species", SPECIES_LIST]
        comment = f"# {SPECIES_LIST}, one code per line: {' '.join(settings.species)}\n"
    return comment + command_line(words)


def time_rows(
    detections: Sequence[Detection], names: Mapping[str, SpeciesNames], duration_s: float
) -> list[tuple[str, str, str, str, str]]:
    """Returns start, end, score, common and scientific name of each detection.

    Args:
        detections: Detections of one recording.
        names: Names by code.
        duration_s: Length of the recording.
    """
    return [
        (clock(one.start_s, duration_s), clock(one.end_s, duration_s), f"{one.score:.2f}", *names[one.species])
        for one in detections
    ]


def species_rows(
    detections: Sequence[Detection], names: Mapping[str, SpeciesNames], duration_s: float
) -> list[tuple[str, str, int, float, str, str]]:
    """Returns a row for each species, by descending time with a detection.

    Args:
        detections: Detections of one recording.
        names: Names by code.
        duration_s: Length of the recording.

    Returns:
        Both names, number of detections, seconds with at least one of them, start and score of the best one.
    """
    by_species: dict[str, list[Detection]] = {}
    for one in detections:
        by_species.setdefault(one.species, []).append(one)
    rows = []
    for code, found in by_species.items():
        best = max(found, key=lambda one: one.score)
        seconds = round(_covered_s(found), 1)
        rows.append((*names[code], len(found), seconds, clock(best.start_s, duration_s), f"{best.score:.2f}"))
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def _covered_s(detections: Sequence[Detection]) -> float:
    covered_s, reached_s = 0.0, 0.0
    for one in sorted(detections, key=lambda one: one.start_s):
        covered_s += max(0.0, one.end_s - max(one.start_s, reached_s))
        reached_s = max(reached_s, one.end_s)
    return covered_s


def clock(time_s: float, duration_s: float) -> str:
    """Formats a time as `02:05.3`, or with hours; the texts sort by time.

    Args:
        time_s: Time in the recording.
        duration_s: Length of the recording; from one hour on, hours are shown.
    """
    tenths = round(time_s * 10)
    minutes, tenths = divmod(tenths, 600)
    seconds = f"{tenths // 10:02d}.{tenths % 10}"
    if duration_s < 3600:
        return f"{minutes:02d}:{seconds}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds}"


def seconds_of(text: str) -> float:
    """Parses a time that `clock` formatted.

    Raises:
        ValueError: If the text has another format.
    """
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _without_folder(path: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name).replace(f"{path.parent}/", "")) from None
