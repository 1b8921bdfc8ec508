"""Pipeline from recordings to detections."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kenya_birds.errors import UserError
from kenya_birds.evaluation.novelty import NoveltyReference
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.inference.audio_stream import Reading, Stopwatch, read_array, read_source
from kenya_birds.inference.backends import Backend, Precision, choose_backend
from kenya_birds.inference.batching import ComputedWindows, Job, computed
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.devices import count_readers, device_for
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.postprocessing import DetectionFinder
from kenya_birds.inference.reading_log import log_losses, log_missing_band
from kenya_birds.inference.sources import Source, find_sources
from kenya_birds.inference.species import species_names
from kenya_birds.inference.window_scorer import WindowScorer
from kenya_birds.inference.windows import WindowGrid
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import (
    NOVELTY_FILE,
    THRESHOLDS_FILE,
    SavedModel,
    check_species_of_thresholds,
    check_thresholds,
    find_model,
)
from kenya_birds.values import Channel, Count, Device, Seconds, checked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """New detections of a recording since the previous `Progress`.

    Attributes:
        recording: Name of the recording.
        detections: Detections in the order of their starts.
        advance_s: Seconds of sound that were analysed since then.
        reading: Result of the reading; None before the end of the recording.
    """

    recording: str
    detections: list[Detection]
    advance_s: float
    reading: Reading | None


class SoundscapePipeline:
    """Pipeline that detects birds in recordings of any length, in bounded memory.

    ```python
    pipeline = SoundscapePipeline("birds")
    for detection in pipeline("KEN_001_20211207_153852.flac"):
        print(detection.start_s, detection.species, detection.score)
    ```

    Args:
        model: A model's folder, `owner/name` or `owner/name@revision` on the Hub, or a `SavedModel`. Code in the
            model's folder is not run.
        overlap_s: Overlap of neighbouring windows in seconds; by default that for which the decision thresholds were
            chosen, and 0 if that is not known or `settings` has one threshold for all species.
        settings: Settings of detections; by default the model's own decision thresholds are used.
        device: Device such as `cpu` or `cuda:1`; by default a GPU if there is one.
        batch_size: Windows per batch; by default 16 on a CPU and 128 on a GPU.
        num_workers: Number of threads that read recordings; by default 1 on a CPU and up to 8 on a GPU.
        channel: See `RecordingReader`.
        thresholds: File with decision thresholds, such as that of `kenya-birds verify read`, instead of the model's
            own. Species that are not in it are never reported.
        backend: What computes the backbone on a CPU: `torch`, `onnx`, `openvino`, or `auto` (see `choose_backend`).
        precision: Precision of the backbone: `float32`, or `bfloat16`, which changes scores.

    Attributes:
        saved: The model's files.
        classes: eBird codes by class id.
        names: Names of the species by code.
        frequencies_hz: Lowest and highest frequency of the model's input.
        sampling_rate: Sampling rate of the model in Hz.
        grid: Positions of the windows.
        verification: The checked detections that the thresholds come from (see `Thresholds`); None: others.
        thresholds: Decision threshold of each class, shape `(classes,)`; infinite: never reported.
        scorer: Thread pool that scores batches.
        stopwatch: Time spent in each part of the work.

    Raises:
        UserError: If the model or a setting cannot be used, or the model has no thresholds and none is set.
    """

    @checked
    def __init__(
        self,
        model: str | Path | SavedModel,
        *,
        overlap_s: Seconds | None = None,
        settings: FindingSettings | None = None,
        device: Device | None = None,
        batch_size: Count | None = None,
        num_workers: Count | None = None,
        channel: Channel | None = None,
        thresholds: str | Path | None = None,
        backend: Backend = "torch",
        precision: Precision = "float32",
    ) -> None:
        self.settings, self.channel = settings or FindingSettings(), channel
        self.saved = model if isinstance(model, SavedModel) else find_model(model)
        chosen = device_for(self.saved, device)
        is_auto = backend == "auto"
        backend = choose_backend(backend, precision, self.saved, chosen.type)
        classifier, extractor = load_classifier(self.saved)
        self.classes = [classifier.config.id2label[label] for label in range(classifier.config.num_labels)]
        self.names = species_names(self.classes, classifier.config.species)
        self.sampling_rate: int = extractor.sampling_rate
        self.frequencies_hz = (float(extractor.f_min_hz), float(extractor.f_max_hz))
        chosen_thresholds = self._find_thresholds(None if thresholds is None else Path(thresholds))
        self.verification = chosen_thresholds.verification
        self.thresholds = chosen_thresholds.values(self.classes)
        self._follow_evaluation(chosen_thresholds, overlap_s)
        self.grid = WindowGrid.with_overlap(extractor.clip_samples, self.overlap_s, self.sampling_rate)
        self._warn_of_silent_species()
        self._finder("")  # raises an error for unknown species before long work
        self.stopwatch = Stopwatch()
        make_scorer = partial(
            WindowScorer,
            classifier,
            extractor,
            chosen,
            batch_size,
            self.stopwatch,
            precision=precision,
            thresholds=np.maximum(self.thresholds, self.settings.min_confidence),
            reference=self._find_reference(classifier.embedding_size) if self.settings.novelty else None,
        )
        try:
            self.scorer = make_scorer(backend=backend)
        except UserError as error:
            if not is_auto or backend == "torch":
                raise
            logger.warning("The backend is torch: %s", error)
            self.scorer = make_scorer(backend="torch")
        self.num_workers = count_readers(chosen, num_workers)

    def __call__(
        self, recording: str | Path | np.ndarray, sampling_rate: int | None = None, *, name: str = ""
    ) -> list[Detection]:
        """Finds the detections of one recording; sections that cannot be read are logged.

        Args:
            recording: A file or URL, or a mono waveform of shape `(samples,)`: floats with full scale at -1 and 1, or
                int16.
            sampling_rate: Sampling rate of the waveform in Hz.
            name: Name of the waveform in its detections.

        Returns:
            The detections in the order of their starts, then from high to low score.

        Raises:
            UserError: If the recording cannot be opened, changes while it is read, is not a single recording, or a
                waveform is invalid or has no sampling rate.
        """
        if isinstance(recording, np.ndarray):
            if sampling_rate is None or sampling_rate <= 0:
                raise UserError(f"the waveform's sampling_rate is {sampling_rate}: expected its rate in Hz")
            waveform, rate = recording, sampling_rate
            jobs = [Job(name, lambda: read_array(waveform, rate, self.grid, self.sampling_rate))]
        else:
            sources = find_sources([recording])
            if len(sources) != 1:
                raise UserError(f"{recording} has {len(sources)} recordings: give one, or use detect()")
            sources.log()
            jobs = self.jobs(sources)
        found: list[Detection] = []
        for progress in self.analyse(jobs):
            found += progress.detections
            if progress.reading is not None:
                log_missing_band({progress.recording: progress.reading}, self.frequencies_hz[1])
            if progress.reading is not None and not progress.reading.is_final:
                raise UserError(f"{progress.recording}: {progress.reading.losses[0].reason}")
            log_losses(progress.recording, progress.reading)
        return found

    def detect(self, paths: str | Path | Iterable[str | Path]) -> Iterator[Detection]:
        """Finds the detections of many recordings; recordings that cannot be read are logged and skipped.

        Args:
            paths: See `find_sources`.

        Yields:
            Detections as they are found, in order within each recording. Several recordings may be interleaved.

        Raises:
            UserError: If there is no recording at a path.
        """
        sources = find_sources(paths)
        sources.log()
        readings: dict[str, Reading] = {}
        for progress in self.analyse(self.jobs(sources)):
            yield from progress.detections
            log_losses(progress.recording, progress.reading)
            if progress.reading is not None:
                readings[progress.recording] = progress.reading
        log_missing_band(readings, self.frequencies_hz[1])

    def jobs(self, sources: Iterable[Source]) -> list[Job]:
        """Returns the jobs for `analyse`."""

        def job(source: Source) -> Job:
            return Job(
                source.recording,
                lambda: read_source(source, self.grid, self.sampling_rate, self.stopwatch, self.channel),
            )

        return [job(source) for source in sources]

    def analyse(self, jobs: Sequence[Job]) -> Iterator[Progress]:
        """Analyses recordings; reading, scoring and the caller's work run in parallel.

        Args:
            jobs: See `jobs`.

        Yields:
            Progress in order within each recording; the last one has the `Reading`.
        """
        finders: dict[int, DetectionFinder] = {}
        reached: dict[int, int] = {}
        for item in computed(jobs, self.num_workers, self.scorer, self.grid.window_samples):
            index, recording = item.job, jobs[item.job].recording
            finder = finders.get(index) or finders.setdefault(index, self._finder(recording))
            before = reached.get(index, 0)
            if isinstance(item, ComputedWindows):
                windows = item.windows
                reached[index] = int(windows.ends[-1])
                advance_s = (reached[index] - before) / self.sampling_rate
                scores = item.results[:, : len(self.classes)]
                novelty = item.results[:, -1] if self.settings.novelty else None
                found = finder.add(windows.starts, windows.ends, scores, novelty)
                yield Progress(recording, found, advance_s, None)
            else:
                del finders[index]
                reached.pop(index, None)
                advance_s = item.reading.duration_s - before / self.sampling_rate
                yield Progress(recording, finder.finish(), advance_s, item.reading)

    def _finder(self, recording: str) -> DetectionFinder:
        return DetectionFinder(recording, self.classes, self.thresholds, self.settings, self.sampling_rate)

    def _find_reference(self, embedding_size: int) -> NoveltyReference:
        reference = NoveltyReference.of_model(self.saved)
        if reference.size != embedding_size:
            raise UserError(
                f"{self.saved.folder / NOVELTY_FILE} has embeddings of {reference.size} numbers, and those of the "
                f"model have {embedding_size}: it belongs to another model; train again, or leave out --novelty"
            )
        return reference

    def _find_thresholds(self, path: Path | None) -> Thresholds:
        if self.settings.threshold is not None:
            if path is not None:
                raise UserError(f"threshold is {self.settings.threshold} and thresholds is {path}: give one of both")
            return Thresholds(None, None, dict.fromkeys(self.classes, self.settings.threshold), by_hand=True)
        if path is None:
            check_thresholds(self.saved, self.settings.threshold)
            thresholds = Thresholds.read(self.saved.folder / THRESHOLDS_FILE)
            missing = sorted(set(self.classes) - set(thresholds.species))
            if missing:
                raise UserError(
                    f"{self.saved.folder / THRESHOLDS_FILE} has no threshold of {', '.join(missing)}: it belongs to "
                    "another model; give one threshold for all species with --threshold (threshold=)"
                )
            return thresholds
        thresholds = Thresholds.read(path)
        check_species_of_thresholds(path, thresholds.species, self.classes)
        return thresholds

    def _follow_evaluation(self, thresholds: Thresholds, overlap_s: float | None) -> None:
        """Sets overlap and merging: as given, otherwise as in the evaluation on whole recordings with the thresholds.

        With another overlap than in that evaluation, detections are not merged unless this is set. If overlap or
        merging differ from it, a warning is logged.
        """
        merge, evaluated, now = self.settings.merge, [], []
        self.overlap_s: float = (thresholds.overlap_s or 0.0) if overlap_s is None else overlap_s
        if merge is None:
            merge = bool(thresholds.merge) and self.overlap_s == thresholds.overlap_s
        by_default = overlap_s is None or self.settings.merge is None
        self.settings = replace(self.settings, merge=merge)
        if thresholds.overlap_s is not None and thresholds.overlap_s != self.overlap_s:
            evaluated.append(f"windows that overlap by {thresholds.overlap_s:g} s")
            now.append(f"{self.overlap_s:g} s")
        if thresholds.merge is not None and thresholds.merge != self.settings.merge:
            evaluated.append(f"{'merged' if thresholds.merge else 'unmerged'} detections")
            now.append("merged" if self.settings.merge else "not merged")
        if evaluated:
            logger.warning(
                "The thresholds were chosen for %s (now %s): expect other numbers of false and missed detections than "
                "in the model's evaluation",
                " and ".join(evaluated),
                ", ".join(now),
            )
        elif by_default and thresholds.overlap_s is not None and (self.overlap_s or merge):
            logger.info(
                "Windows overlap by %g s and detections are %s, as in the evaluation with these thresholds",
                self.overlap_s,
                "merged" if self.settings.merge else "not merged",
            )

    def _warn_of_silent_species(self) -> None:
        values = self.thresholds
        if silent := [code for code, value in zip(self.classes, values, strict=True) if value == np.inf]:
            logger.warning(
                "%d of the model's %d species have no decision threshold and are never reported: %s%s",
                len(silent),
                len(values),
                ", ".join(silent[:10]),
                " ..." if len(silent) > 10 else "",
            )


def detect(
    model: str | Path,
    paths: str | Path | Iterable[str | Path],
    *,
    threshold: float | None = None,
    settings: FindingSettings | None = None,
    **options: Any,
) -> Iterator[Detection]:
    """Detects birds in recordings.

    Args:
        model: A model's folder, or a name on the Hub.
        paths: Files, folders, patterns, lists and URLs (see `find_sources`).
        threshold: One decision threshold for all species, instead of the model's own.
        settings: Other settings of detections.
        **options: See `SoundscapePipeline`.

    Yields:
        Detections as they are found.

    Raises:
        UserError: If the model, a path or an option cannot be used.
    """
    if threshold is not None:
        settings = replace(settings or FindingSettings(), threshold=threshold)
    return SoundscapePipeline(model, settings=settings, **options).detect(paths)
