"""Runs of `kenya-birds detect`: from recordings to tables, with resume and several processes."""

import contextlib
import heapq
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any

from kenya_birds import __version__
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import log_headers
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.files import as_utf8
from kenya_birds.fingerprints import DECODERS, MODEL, code_fingerprint, library_versions
from kenya_birds.inference.audio_stream import Reading
from kenya_birds.inference.backbone_runtimes import BackboneCheck
from kenya_birds.inference.backends import RUNTIME_PACKAGES
from kenya_birds.inference.detections import RecordingInfo, name_in
from kenya_birds.inference.journal import Journal, JournalWriter, hash_files
from kenya_birds.inference.output_tables import check_formats
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.inference.progress_bar import RecordingsBar
from kenya_birds.inference.reading_log import log_channels, log_losses, log_missing_band
from kenya_birds.inference.run_report import RunCost, RunFiles, RunReport
from kenya_birds.inference.sources import FileState, FoundSources, Source, find_sources
from kenya_birds.locks import locked
from kenya_birds.saved_models import (
    NOVELTY_FILE,
    PROCESSOR_FILE,
    THRESHOLDS_FILE,
    WEIGHTS_FILE,
    SavedModel,
    runtime_of,
)

logger = logging.getLogger(__name__)


def shares(sizes: Sequence[int | None], members: int) -> list[int]:
    """Distributes files over processes so that each has about the same number of bytes.

    Args:
        sizes: Bytes of each file; None if unknown, which counts as the mean.
        members: Number of processes.

    Returns:
        The process of each file. The largest files are assigned first, each to the process with the fewest bytes.
    """
    known = [size for size in sizes if size is not None]
    usual = sum(known) / len(known) if known else 1.0
    weights = [usual if size is None else float(size) for size in sizes]
    loads = [(0.0, member) for member in range(members)]
    chosen = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -weights[i]):
        load, member = heapq.heappop(loads)
        chosen[index] = member
        heapq.heappush(loads, (load + weights[index], member))
    return chosen


@dataclass(frozen=True)
class _Plan:
    """Plan of a run, sent by the first process to the others: owners of recordings, and reused records."""

    recordings: list[str]
    reused: list[str]
    owners: dict[str, int]
    sizes: dict[str, int | None]


def run_detection(
    pipeline: SoundscapePipeline,
    paths: str | Path | Iterable[str | Path] | FoundSources,
    output: str | Path,
    *,
    formats: Sequence[str],
    resume: bool = True,
    name_pattern: NamePattern | None = None,
    time_zone: tzinfo | None = None,
    team: Team | None = None,
) -> RunReport | None:
    """Analyses recordings and writes tables; interrupted runs resume.

    Each finished recording has a record in `OUTPUT/.kenya_birds/journal`; the tables are made from these records at
    the end. A recording is analysed again if the model, a setting, this package's code, the version of a library, or
    the size or time of its file has changed. Existing tables remain until the new ones are complete.

    Args:
        pipeline: The model and its settings.
        paths: See `find_sources`.
        output: A new or empty folder, or the folder of an earlier run; several machines must share it.
        formats: See `write_tables`.
        resume: Whether to reuse existing records.
        name_pattern: Pattern that reads site and time from the names of recordings (see `parse_recording_name`).
        time_zone: Time zone of recorders on local clocks (see `find_time_and_place`).
        team: The processes of the run.

    Returns:
        The report of the run; None in all processes except the first.

    Raises:
        UserError: If there is no recording at a path, the output cannot be used or is in use, or another process
            ended.
    """
    team = team or Team()
    files = RunFiles(Path(output))
    with contextlib.ExitStack() as stack:
        if team.is_first:
            with _stop_all_on_error(team):
                check_formats(formats)
                sources = _find(paths, name_pattern)
                stack.enter_context(_locked(files))
                model_hash = hash_model(pipeline.saved)
                _check_verification(pipeline, model_hash)
        else:
            sources, model_hash = find_sources(paths), ""
        _stop_with_first(team)
        model_hash = team.broadcast(model_hash)
        journal = _open_journal(pipeline, files, model_hash, team)
        plan = _share_plan(sources, journal, files, team, resume=resume)
        begin_s = time.perf_counter()
        found = {source.recording: source for source in sources}
        mine = [found.get(name, Source(name)) for name, owner in plan.owners.items() if owner == team.rank]
        _analyse(pipeline, mine, journal, files, plan, show_progress=team.is_first)
        spent = team.gather(pipeline.stopwatch.spent_s)
        checks = team.gather(pipeline.scorer.check)
        if not team.is_first:
            return None
        readings = {name: _reading(journal, name) for name in plan.recordings}
        log_missing_band(readings, pipeline.frequencies_hz[1])
        report = RunReport.of(
            readings,
            new=set(plan.owners),
            cost=RunCost(
                wall_s=time.perf_counter() - begin_s,
                spent_s={part: sum(one[part] for one in spent) for part in spent[0]},
                processes=team.size,
                threads=pipeline.scorer.threads,
                backend_check=BackboneCheck.describe_all(checks),
            ),
            # The clocks of other time zones are never set forward or back: recordings.csv has both their times.
            about={**_about(pipeline, model_hash), "time_zone": getattr(time_zone, "key", None)},
            skipped=sources.skipped,
            packages=RUNTIME_PACKAGES[pipeline.scorer.backend],
        )
        analysed = [
            RecordingInfo(
                name,
                reading.frames,
                reading.sample_rate_hz,
                name_pattern=name_pattern,
                header=reading.header,
                time_zone=time_zone,
                channel=reading.channel,
            )
            for name, reading in readings.items()
            if reading.windows
        ]
        log_channels(readings, pipeline.channel)
        log_headers((info.recording, info.header, info.known) for info in analysed)
        detections = (found for info in analysed for found in journal.detections(info.recording))
        names, novelty = pipeline.names, pipeline.settings.novelty
        files.write(report, analysed, detections, formats, names, pipeline.frequencies_hz, novelty=novelty)
        return report


def _check_verification(pipeline: SoundscapePipeline, model_hash: str) -> None:
    """Raises `UserError` if the thresholds come from checked detections of another model."""
    about = pipeline.verification
    if about is not None and about.get("model_sha256") != model_hash:
        raise UserError(
            f"the thresholds come from checked detections of another model, {about.get('model')}, whose scores mean "
            f"something else: check a sample of detections of '{pipeline.saved.name}'"
        )


def _find(paths: str | Path | Iterable[str | Path] | FoundSources, name_pattern: NamePattern | None) -> FoundSources:
    """Finds the recordings, logs which files are skipped, and checks the pattern of names."""
    sources = find_sources(paths)
    sources.log()
    if name_pattern is not None:
        name_pattern.check(name_in(source.recording) for source in sources)
    return sources


@contextlib.contextmanager
def _locked(files: RunFiles) -> Iterator[None]:
    """Creates the output folder, and refuses another run in it during the `with` block."""
    files.prepare()
    with locked(files.folder, files.state_folder / "lock"):
        files.check_unchanged()
        yield


def _open_journal(pipeline: SoundscapePipeline, files: RunFiles, model_hash: str, team: Team) -> Journal:
    made_with = {"model_sha256": model_hash, **_same_for_all(team, _made_with(pipeline))}
    with files.writing():
        journal = Journal(files.state_folder, made_with)
        if team.is_first:
            journal.clean()
    return journal


def _share_plan(sources: Sequence[Source], journal: Journal, files: RunFiles, team: Team, *, resume: bool) -> _Plan:
    """Makes the plan in the first process and sends it to the others."""
    plan: _Plan = team.broadcast(_plan(sources, journal, team.size, resume=resume) if team.is_first else None)
    if team.is_first:
        _log_plan(plan, journal.changes() if resume else [])
        _warn_of_lost_rows(plan.recordings, files)
        with files.writing():
            journal.sign()
    return plan


def hash_model(saved: SavedModel) -> str:
    """Returns a hash of all files of a model that affect its detections."""
    return _hash_with_weights(saved, "config.json", "preprocessor_config.json", THRESHOLDS_FILE)


def hash_embedder(saved: SavedModel) -> str:
    """Returns a hash of all files of a model, also one of transformers, that affect its embeddings."""
    return _hash_with_weights(saved, "config.json", "preprocessor_config.json", PROCESSOR_FILE)


def _hash_with_weights(saved: SavedModel, *names: str) -> str:
    weights = sorted({saved.folder / WEIGHTS_FILE, *saved.folder.glob("model-*-of-*.safetensors")})
    return hash_files([*(saved.folder / name for name in names), *weights])


def settings_of(pipeline: SoundscapePipeline) -> dict[str, Any]:
    """Returns the settings that affect detections, without batch size and numbers of threads and processes."""
    return {
        "overlap_s": pipeline.overlap_s,
        "channel": pipeline.channel,
        **asdict(pipeline.settings),
        "thresholds": [value if value < float("inf") else None for value in pipeline.thresholds.tolist()],
        "backend": pipeline.scorer.backend,
        "precision": pipeline.scorer.precision,
    }


def _made_with(pipeline: SoundscapePipeline) -> dict[str, Any]:
    """Returns everything except the model's files that affects detections."""
    code = code_fingerprint(SoundscapePipeline.__module__)
    versions = library_versions(
        (*MODEL, *DECODERS, *runtime_of(pipeline.saved), *RUNTIME_PACKAGES[pipeline.scorer.backend])
    )
    reference = hash_files([pipeline.saved.folder / NOVELTY_FILE]) if pipeline.settings.novelty else None
    about = {"training calls": reference, "kenya_birds": __version__, "code": code[:12]}
    return {**settings_of(pipeline), **about, **versions}


def _same_for_all(team: Team, made_with: dict[str, Any]) -> dict[str, Any]:
    """Checks that all processes, possibly on different machines, have the same settings, code and libraries."""
    for rank, other in enumerate(team.gather(made_with)):
        differ = [name for name in {**made_with, **other} if made_with.get(name) != other.get(name)]
        if differ:
            raise UserError(
                f"the processes of this run differ in {', '.join(differ)}: {differ[0]} is {other.get(differ[0])} in "
                f"process {rank} and {made_with.get(differ[0])} in process {team.rank}; use the same for all"
            )
    return made_with


def _log_plan(plan: _Plan, changes: Sequence[str]) -> None:
    if plan.reused:
        logger.info("Resuming: %d of %d recordings are finished already", len(plan.reused), len(plan.recordings))
    if changes:
        logger.warning(
            "Analysing the recordings of an earlier run again, because these have changed: %s", ", ".join(changes)
        )


def _warn_of_lost_rows(recordings: Sequence[str], files: RunFiles) -> None:
    """Logs which recordings in the tables of an earlier run are not analysed by this run."""
    given = {os.path.abspath(as_utf8(recording)) for recording in recordings}
    earlier = files.recordings()
    lost = [recording for recording in earlier if os.path.abspath(recording) not in given]
    if lost:
        logger.warning(
            "%d of the %d recordings in the tables of %s are not at the given paths (%s): this run removes their rows "
            "and their own tables. To keep them, stop and give the paths of all recordings in one command, or "
            "give another --output",
            len(lost),
            len(earlier),
            files.folder,
            ", ".join(lost[:3]),
        )


def _about(pipeline: SoundscapePipeline, model_hash: str) -> dict[str, Any]:
    settings = {name: value for name, value in settings_of(pipeline).items() if name != "thresholds"}
    saved = pipeline.saved
    name = saved.name if saved.starting_point == "model" else saved.starting_point
    wanted = set(pipeline.settings.species or pipeline.classes)
    thresholds = zip(pipeline.classes, pipeline.thresholds, strict=True)
    detectable = {
        code: list(pipeline.names[code]) for code, threshold in thresholds if code in wanted and threshold <= 1
    }
    return {"model": name, "model_sha256": model_hash, "settings": settings, "undetected": detectable}


@contextlib.contextmanager
def _stop_all_on_error(team: Team) -> Iterator[None]:
    """Stops the other processes if the first process raises a `UserError`."""
    try:
        yield
    except UserError:
        team.broadcast(False)
        raise


def _stop_with_first(team: Team) -> None:
    if not team.broadcast(True):
        raise UserError("the first process of this run stopped: see its error message")


def _plan(sources: Sequence[Source], journal: Journal, members: int, *, resume: bool) -> _Plan:
    reused, sizes = [], {}
    for source in sources:
        state: FileState | None = None
        with contextlib.suppress(UserError):  # reported as failed when it is read
            state = source.state()
        if resume and state is not None and journal.find(source.recording, state) is not None:
            reused.append(source.recording)
        else:
            sizes[source.recording] = state.size_bytes if state is not None else 0
    owners = dict(zip(sizes, shares(list(sizes.values()), members), strict=True))
    return _Plan([source.recording for source in sources], reused, owners, sizes)


def _analyse(
    pipeline: SoundscapePipeline,
    sources: Sequence[Source],
    journal: Journal,
    files: RunFiles,
    plan: _Plan,
    *,
    show_progress: bool,
) -> None:
    """Analyses recordings and writes a record of each."""
    writers: dict[str, JournalWriter] = {}
    stopwatch = pipeline.stopwatch
    with files.writing(), RecordingsBar(sources, plan.sizes, is_shown=show_progress) as bar:
        try:
            for progress in pipeline.analyse(pipeline.jobs(sources)):
                name, reading = progress.recording, progress.reading
                with stopwatch.time("write"):
                    if name not in writers:
                        writers[name] = journal.begin(name, pipeline.sampling_rate)
                    writers[name].add(progress.detections)
                    if reading is not None:
                        writers[name].finish(reading)
                bar.advance(progress.advance_s)
                if reading is not None:
                    del writers[name]
                    bar.finish(name, reading.duration_s)
                    log_losses(name, reading)
        finally:
            for writer in writers.values():
                writer.close()


def _reading(journal: Journal, recording: str) -> Reading:
    reading = journal.read(recording)
    if reading is None:
        raise UserError(f"the record of {recording} is not in the journal: all processes must share the output folder")
    return reading
