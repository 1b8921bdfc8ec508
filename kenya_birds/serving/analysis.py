"""From a recording that somebody gave to what is heard in it, under any threshold, without hearing it again."""

import queue
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from kenya_birds.data.audio import read_header
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.inference.audio_stream import read_source
from kenya_birds.inference.detections import Detection, RecordingInfo
from kenya_birds.inference.pipeline import Job, SoundscapePipeline, find_device
from kenya_birds.inference.postprocessing import DetectionFinder, FindingSettings
from kenya_birds.inference.sources import Source
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.windows import UnscoredSound, WindowGrid
from kenya_birds.saved_models import THRESHOLDS_FILE, find_model
from kenya_birds.values import Count, Device, Positive, checked

# Lower scores are not kept: no threshold of a page goes below.
FLOOR = 0.05
WINDOWS_AT_A_TIME = 4096
OVERLAP_SHARES = (0.0, 0.5, 0.75)  # of a window; a visitor cannot ask for more work than that
# A visitor's clip has few windows, and a batch is always filled up.
CPU_BATCH_SIZE = 4
SPECIES_LIST = "species.txt"
T = TypeVar("T")
_SCORE = np.dtype([("start", np.int64), ("end", np.int64), ("label", np.int32), ("score", np.float64)])


class Stopped(Exception):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class Findings:
    """What was heard in a recording: every score from the floor on, so that its size goes with what is heard.

    Attributes:
        info: The recording.
        overlap_s: Overlap of neighbouring windows in seconds.
        losses: What of it was not scored, digital silence included, in order.
        classes: eBird codes by class id.
        thresholds: The model's own, shape `(classes,)`; infinite: abstain. None where it brings none.
        sample_rate_hz: Rate at which samples are counted.
        starts: First samples, int64 of shape `(scores,)`, ascending.
        ends: The samples after the last, int64 of shape `(scores,)`.
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
        """The codes that have a score from the floor on, by the highest of them."""
        best = np.zeros(len(self.classes))
        np.maximum.at(best, self.labels, self.scores)
        return [self.classes[label] for label in np.argsort(-best, kind="stable") if best[label] > 0]

    def detections(self, settings: FindingSettings) -> list[Detection]:
        """The same as a `SoundscapePipeline` with these settings gives, for thresholds from the floor on.

        Args:
            settings: What counts as a detection; no smoothing, which needs scores below the floor.

        Raises:
            UserError: If there is no threshold, or a species is unknown.
        """
        if settings.smoothing != 1:
            raise ValueError("smoothing needs the scores that were not kept")
        if settings.threshold is None and self.thresholds is None:
            raise UserError("the model has no thresholds of its own: choose one for all species")
        thresholds = np.ones(len(self.classes)) if self.thresholds is None else self.thresholds
        finder = DetectionFinder(self.info.recording, self.classes, thresholds, settings, self.sample_rate_hz)
        found: list[Detection] = []
        starts, first, window = np.unique(self.starts, return_index=True, return_inverse=True)
        ends = self.ends[first]
        for begin in range(0, len(starts), WINDOWS_AT_A_TIME):
            end = min(begin + WINDOWS_AT_A_TIME, len(starts))
            rows = slice(*np.searchsorted(window, (begin, end)))
            scores = np.zeros((end - begin, len(self.classes)))
            scores[window[rows] - begin, self.labels[rows]] = self.scores[rows]
            found += finder.add(starts[begin:end], ends[begin:end], scores)
        return found + finder.finish()


class Analyser:
    """Hears recordings with one model, several at a time; more callers wait.

    Args:
        model: A model's folder, or a name on the Hub.
        concurrency: How many recordings are heard at a time. Each needs a copy of the model.
        max_hours: Longer recordings are refused.
        device: Such as `cpu` or `cuda:1`; by default a GPU where there is one.
        batch_size: Windows that are scored together; by default 4 on a CPU, and 128 on a GPU.

    Attributes:
        model: The model as visitors may know it: a folder's name, or its name on the Hub with the revision.
        title: The same without a revision.
        classes: eBird codes by class id.
        names: Names of the species by code.
        thresholds: The model's own, shape `(classes,)`; None where it brings none.
        frequencies_hz: Lowest and highest frequency that the model hears.
        floor: The least score that is kept.
        window_s: Length of a window in seconds.
        overlaps_s: The overlaps of neighbouring windows that can be chosen, in seconds; the second is the default.
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
        max_hours: Positive = 2.0,
        device: Device | None = None,
        batch_size: Count | None = None,
    ) -> None:
        self.max_hours = max_hours
        saved = find_model(str(model))
        # A folder's path is not for visitors.
        self.model = saved.folder.resolve().name if Path(saved.name).is_dir() else saved.name
        self.title = self.model.partition("@")[0]
        own = Thresholds.read(saved.folder / THRESHOLDS_FILE) if (saved.folder / THRESHOLDS_FILE).is_file() else None
        chosen = [value for value in own.species.values() if value is not None] if own is not None else []
        self.floor = min([FLOOR, *chosen])
        if batch_size is None and find_device(device).type == "cpu":
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
        """One of `overlaps_s`: the default where it is another number, which would be work without bounds."""
        return overlap_s if overlap_s in self.overlaps_s else self.overlaps_s[1]

    def hear(
        self,
        path: Path,
        *,
        overlap_s: float | None = None,
        progress: Callable[[float], None] = lambda share: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Findings:
        """Hears one recording; waits for its turn.

        Args:
            path: The recording; its file name is what tables call it.
            overlap_s: See `allowed_overlap_s`.
            progress: Is told the share that was heard, 0 to 1.
            is_stopped: Is asked now and then whether to give up.

        Raises:
            UserError: If it is no recording, too long, or changes while it is read.
            Stopped: If it was told to give up.
        """
        # A message must not tell where the server keeps files.
        duration_s = _without_folder(path, lambda: read_header(path).duration_s)
        if duration_s > self.max_hours * 3600:
            raise UserError(
                f"{path.name} is {duration_s / 3600:.2f} hours long: expected at most {self.max_hours:g}. "
                "Cut it, or use `kenya-birds detect`, which has no limit"
            )
        overlap_s = self.allowed_overlap_s(overlap_s)
        pipeline = self._idle.get()
        try:
            return _without_folder(
                path, lambda: self._hear(pipeline, path, overlap_s, duration_s, progress, is_stopped)
            )
        finally:
            self._idle.put(pipeline)

    def _hear(
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
        heard_s = 0.0
        source = Source(str(path))
        grid = WindowGrid.with_overlap(pipeline.grid.window_samples, overlap_s, pipeline.sampling_rate)
        job = Job(path.name, lambda: read_source(source, grid, pipeline.sampling_rate, pipeline.stopwatch))
        for step in pipeline.analyse([job]):
            if is_stopped():
                raise Stopped
            rows = [(one.start_sample, one.end_sample, label_of[one.species], one.score) for one in step.detections]
            parts.append(np.array(rows, dtype=_SCORE))
            heard_s += step.advance_s
            progress(min(1.0, heard_s / duration_s))
            reading = step.reading
        if reading is None or not reading.is_final:
            raise UserError(f"{path.name}: {reading.losses[0].reason if reading else 'it was not read to its end'}")
        found = np.concatenate(parts)
        return Findings(
            RecordingInfo(path.name, reading.frames, reading.sample_rate_hz, is_here=False),
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
    """The command that gives the same rows as these settings; a list of species is in a file beside it.

    Args:
        model: The model's folder, or its name on the Hub.
        recording: The recording's file name.
        overlap_s: Overlap of neighbouring windows in seconds.
        settings: What counts as a detection; of them `threshold`, `min_confidence`, `species` and `merge`.
    """
    words = ["kenya-birds", "detect", model, recording if recording[:1] != "-" else f"./{recording}"]
    words += ["--output", "found"]
    if overlap_s:
        words += ["--overlap_s", str(overlap_s)]
    if settings.threshold is not None:
        words += ["--threshold", str(settings.threshold)]
    if settings.min_confidence:
        words += ["--min_confidence", str(settings.min_confidence)]
    if settings.merge:
        words.append("--merge")
    comment = ""
    if settings.species is not None:
        words += ["--species", SPECIES_LIST]
        comment = f"# {SPECIES_LIST}, one code a line: {' '.join(settings.species)}\n"
    return comment + shlex.join(words)


def time_rows(
    detections: Sequence[Detection], names: Mapping[str, SpeciesNames], duration_s: float
) -> list[tuple[str, str, str, str, str]]:
    """Begin, end, score, common and scientific name of detections in a recording so long."""
    return [
        (clock(one.start_s, duration_s), clock(one.end_s, duration_s), f"{one.score:.2f}", *names[one.species])
        for one in detections
    ]


def species_rows(
    detections: Sequence[Detection], names: Mapping[str, SpeciesNames], duration_s: float
) -> list[tuple[str, str, int, float, str, str]]:
    """Names, detections, their seconds, begin and score of the best, by species; the one heard longest first."""
    by_species: dict[str, list[Detection]] = {}
    for one in detections:
        by_species.setdefault(one.species, []).append(one)
    rows = []
    for code, found in by_species.items():
        best = max(found, key=lambda one: one.score)
        seconds = round(sum(one.end_s - one.start_s for one in found), 1)
        rows.append((*names[code], len(found), seconds, clock(best.start_s, duration_s), f"{best.score:.2f}"))
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def clock(time_s: float, duration_s: float) -> str:
    """A time in a recording so long: `02:05.3`, with hours in front from one hour on; as texts they sort by time."""
    tenths = round(time_s * 10)
    minutes, tenths = divmod(tenths, 600)
    seconds = f"{tenths // 10:02d}.{tenths % 10}"
    if duration_s < 3600:
        return f"{minutes:02d}:{seconds}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds}"


def seconds_of(text: str) -> float:
    """The time that `clock` wrote.

    Raises:
        ValueError: If it did not write this.
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
