"""Embeddings of recordings as a table, and the search for similar windows in it."""

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kenya_birds import __version__
from kenya_birds.defaults import SEARCH_TOP_K
from kenya_birds.errors import UserError
from kenya_birds.evaluation.novelty import unit
from kenya_birds.files import as_utf8, check_output, check_suffix
from kenya_birds.fingerprints import DECODERS, MODEL, code_fingerprint, library_versions
from kenya_birds.inference.audio_stream import Reading, Stopwatch, read_source
from kenya_birds.inference.batching import BatchPool, ComputedWindows, FinishedJob, Job, computed
from kenya_birds.inference.detect import hash_embedder, hash_model
from kenya_birds.inference.devices import count_readers
from kenya_birds.inference.embedding_models import Embedder, load_embedder
from kenya_birds.inference.progress_bar import RecordingsBar
from kenya_birds.inference.reading_log import log_channels, log_losses, log_missing_band
from kenya_birds.inference.run_report import RunCost, RunReport, write_failures
from kenya_birds.inference.sources import FoundSources, Source, find_sources
from kenya_birds.inference.table_formats import Outputs
from kenya_birds.inference.windows import WindowGrid, Windows
from kenya_birds.saved_models import SavedModel, find_model, runtime_of
from kenya_birds.values import Channel, Count, Device, Seconds, checked, counted

logger = logging.getLogger(__name__)

# Key of the file's metadata for model and settings, as JSON.
ABOUT_KEY = b"kenya_birds.embeddings"
ROWS_PER_GROUP = 1024


@checked
def embed_recordings(
    embedder: Embedder,
    paths: str | Path | Iterable[str | Path] | FoundSources,
    output: str | Path,
    *,
    overlap_s: Seconds = 0.0,
    batch_size: Count | None = None,
    num_workers: Count | None = None,
    channel: Channel | None = None,
    overwrite: bool = False,
) -> RunReport:
    """Writes the embedding of every window of recordings to a Parquet file; after an error no file is left.

    As in detection, windows with digital silence or missing sound and recordings that cannot be read are skipped.
    `NAME_failed.csv`, next to the file, lists all skipped sound; it has no rows if nothing was skipped. Memory is
    bounded: embeddings of unfinished recordings are in temporary files.

    Columns: `recording` (path or URL), `start_s`, `end_s`, and `embedding`, a list of float32 of one length. Rows are
    in the order of the paths and of time. The schema's metadata has the model's name, hash and sizes.

    Args:
        embedder: The model.
        paths: See `find_sources`.
        output: The file; its name ends in `.parquet`.
        overlap_s: Overlap of neighbouring windows in seconds.
        batch_size: Windows per batch; by default 16 on a CPU and 128 on a GPU.
        num_workers: Number of threads that read recordings; by default 1 on a CPU and up to 8 on a GPU.
        channel: See `RecordingReader`.
        overwrite: Replaces an existing file.

    Returns:
        The report of the run: see `RunReport.of`, and `windows`.

    Raises:
        UserError: If there is no recording at a path, a setting is out of range, or the file cannot be written.
    """
    output = Path(output)
    failed = _check_output(output, overwrite)
    grid = WindowGrid.with_overlap(embedder.clip_samples, overlap_s, embedder.sampling_rate)
    sources = find_sources(paths)
    sources.log()
    stopwatch = Stopwatch()
    readers = count_readers(embedder.device, num_workers)

    def embed(sound: np.ndarray) -> np.ndarray:
        with stopwatch.time("model"):
            return embedder(sound)

    pool = BatchPool(embed, embedder.device, batch_size)
    jobs = [_job(source, grid, embedder.sampling_rate, stopwatch, channel) for source in sources]
    about = {**_describe(embedder), "overlap_s": overlap_s, "channel": channel}
    versions = {"kenya_birds": __version__, **embedding_versions(embedder.saved)}
    begin_s = time.perf_counter()
    try:
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(output.parent))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{output.name}_", dir=output.parent))
            file = outputs.open_parquet(output.name, _schema(embedder.size, {**about, "versions": versions}))
            writer = _Writer(file, Path(folder), sources, embedder)
            bar = stack.enter_context(RecordingsBar(sources, {source.recording: _size(source) for source in sources}))
            _write_all(computed(jobs, readers, pool, grid.window_samples), writer, bar, stopwatch)
            log_missing_band(writer.readings, embedder.highest_hz)
            log_channels(writer.readings, channel)
            report = RunReport.of(
                {source.recording: writer.readings[source.recording] for source in sources},
                new=set(writer.readings),
                cost=RunCost(time.perf_counter() - begin_s, stopwatch.spent_s, processes=1, threads=pool.threads),
                about={**about, "windows": writer.rows},
                skipped=sources.skipped,
            )
            write_failures(outputs.open(failed), report.failures)
            outputs.commit()
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}): nothing was written") from None
    return report


def _describe(embedder: Embedder) -> dict[str, Any]:
    return {
        "model": embedder.saved.name,
        "model_sha256": hash_embedder(embedder.saved),
        "embedding": embedder.how,
        "embedding_size": embedder.size,
        "sampling_rate": embedder.sampling_rate,
        "clip_s": embedder.clip_s,
    }


def _write_all(
    items: Iterable[ComputedWindows | FinishedJob], writer: "_Writer", bar: RecordingsBar, stopwatch: Stopwatch
) -> None:
    """Writes embeddings as they are computed, and shows the progress."""
    for item in items:
        with stopwatch.time("write"):
            if isinstance(item, ComputedWindows):
                bar.advance(writer.add(item.job, item.windows, item.results))
                continue
            advance_s = writer.finish(item.job, item.reading)
        recording = writer.recording(item.job)
        log_losses(recording, item.reading)
        bar.advance(advance_s)
        bar.finish(recording, item.reading.duration_s)
    writer.close()


def format_embedding(report: RunReport) -> str:
    """Returns a summary for the terminal."""
    content, now = report.content, report.content["this_run"]
    lines = [
        f"{report.analysed}: {counted(content['windows'], 'window')}, "
        f"{content['embedding_size']} numbers each ({content['embedding']})",
        f"{now['wall_s']:.1f} s, {now['times_real_time']:.0f} times real time",
    ]
    if report.failures:
        lines.append(report.faults)
    return "\n".join(lines)


def embedding_versions(saved: SavedModel) -> dict[str, str]:
    """Returns the versions of code and libraries that affect a model's embeddings."""
    return {
        "code": code_fingerprint(Embedder.__module__)[:12],
        **library_versions((*MODEL, *DECODERS, *runtime_of(saved))),
    }


def failures_file(output: Path) -> Path:
    """Returns the path of the table of skipped sound."""
    return output.with_name(f"{output.stem}_failed.csv")


def read_about(path: str | Path) -> dict[str, Any]:
    """Reads the metadata of a file of embeddings: model, sizes, settings, versions.

    Raises:
        UserError: If the file cannot be read or is not a file of embeddings.
    """
    try:
        return json.loads((pq.read_schema(path).metadata or {})[ABOUT_KEY])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as embeddings ({type(error).__name__}): give a file that kenya-birds embed wrote"
        ) from None


def _check_output(output: Path, overwrite: bool) -> str:
    """Checks the output path, and returns the name of the table of failures."""
    check_suffix(output, (".parquet",), "a file of embeddings")
    failed = failures_file(output)
    for path in (output, failed):
        check_output(path, overwrite)
    return failed.name


def _size(source: Source) -> int | None:
    try:
        return source.state().size_bytes
    except UserError:  # reported as failed when it is read
        return None


def _job(source: Source, grid: WindowGrid, sampling_rate: int, stopwatch: Stopwatch, channel: str | None) -> Job:
    return Job(source.recording, lambda: read_source(source, grid, sampling_rate, stopwatch, channel))


def _schema(size: int, about: dict[str, Any]) -> pa.Schema:
    columns = [
        ("recording", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("embedding", pa.list_(pa.float32(), size)),
    ]
    return pa.schema(columns).with_metadata({ABOUT_KEY: json.dumps(about)})


@dataclass
class _Spool:
    """Temporary file of a recording that is not written yet."""

    path: Path
    starts: list[np.ndarray] = field(default_factory=list)
    ends: list[np.ndarray] = field(default_factory=list)
    reading: Reading | None = None


class _Writer:
    """Writer that keeps the order of recordings; failed recordings are skipped.

    Attributes:
        rows: Number of embeddings in the file.
        readings: Result of the reading of each finished recording.
    """

    def __init__(self, file: pq.ParquetWriter, folder: Path, sources: Sequence[Source], embedder: Embedder) -> None:
        self.rows = 0
        self.readings: dict[str, Reading] = {}
        self._file, self._folder, self._sources, self._embedder = file, folder, sources, embedder
        self._spools: dict[int, _Spool] = {}
        self._reached_s = dict.fromkeys(range(len(sources)), 0.0)
        self._next = 0
        self._tables: list[pa.Table] = []

    def recording(self, index: int) -> str:
        """Name of a recording."""
        return self._sources[index].recording

    def add(self, index: int, windows: Windows, embeddings: np.ndarray) -> float:
        """Stores windows of a recording.

        Args:
            index: Index of the recording.
            windows: The windows.
            embeddings: Their embeddings, shape `(windows, size)`.

        Returns:
            Seconds from the end of the recording's previous windows to the end of these.
        """
        spool = self._spool(index)
        with spool.path.open("ab") as file:
            file.write(np.ascontiguousarray(embeddings, dtype=np.float32).tobytes())
        spool.starts.append(windows.starts)
        spool.ends.append(windows.ends)
        before_s, self._reached_s[index] = (
            self._reached_s[index],
            float(windows.ends[-1]) / self._embedder.sampling_rate,
        )
        return self._reached_s[index] - before_s

    def finish(self, index: int, reading: Reading) -> float:
        """Marks a recording as read, and writes all recordings whose predecessors are written.

        Args:
            index: Index of the recording.
            reading: Result of its reading.

        Returns:
            Seconds from the end of its last windows to its end.
        """
        self.readings[self.recording(index)] = self._spool(index).reading = reading
        while self._next in self._spools and self._spools[self._next].reading is not None:
            spool = self._spools.pop(self._next)
            for table in self._rows(spool, self.recording(self._next)):
                self._tables.append(table)
                if sum(map(len, self._tables)) >= ROWS_PER_GROUP:
                    self._flush()
            spool.path.unlink(missing_ok=True)
            self._next += 1
        return max(reading.duration_s - self._reached_s[index], 0.0)

    def close(self) -> None:
        """Writes the remaining rows."""
        self._flush()

    def _spool(self, index: int) -> _Spool:
        return self._spools.setdefault(index, _Spool(self._folder / str(index)))

    def _rows(self, spool: _Spool, recording: str) -> Iterator[pa.Table]:
        reading, size, rate = spool.reading, self._embedder.size, self._embedder.sampling_rate
        assert reading is not None
        if not reading.windows:  # it failed, or is silent
            return
        starts, ends = np.concatenate(spool.starts), np.concatenate(spool.ends)
        with spool.path.open("rb") as file:
            for first in range(0, len(starts), ROWS_PER_GROUP):
                start, end = (samples[first : first + ROWS_PER_GROUP] for samples in (starts, ends))
                embeddings = np.frombuffer(file.read(len(start) * size * 4), dtype=np.float32)
                columns = [
                    pa.array([as_utf8(recording)] * len(start)),
                    pa.array(start / rate),
                    # The recording's end may be between two samples at the model's rate.
                    pa.array(np.minimum(end / rate, reading.duration_s)),
                    pa.FixedSizeListArray.from_arrays(pa.array(embeddings), size),
                ]
                yield pa.Table.from_arrays(columns, schema=self._file.schema)

    def _flush(self) -> None:
        if self._tables:
            table = pa.concat_tables(self._tables)
            self._file.write_table(table, row_group_size=2 * ROWS_PER_GROUP)
            self.rows += len(table)
            self._tables = []


WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class Hit:
    """A window that is similar to an example.

    Attributes:
        recording: Recording, as in the file of embeddings.
        start_s: Start in the recording.
        end_s: End in the recording.
        similarity: Cosine similarity of its embedding and the example's, at most 1.
    """

    recording: str
    start_s: float
    end_s: float
    similarity: float


@checked
def search_embeddings(
    path: str | Path,
    examples: str | Path | Iterable[str | Path] | FoundSources,
    *,
    top_k: Count = SEARCH_TOP_K,
    model: str | Path | None = None,
    device: Device | None = None,
    channel: Channel | None = None,
) -> list[Hit]:
    """Finds the windows that are most similar to an example call.

    Every window is compared, one row group at a time. With several examples, or an example longer than a window, the
    highest similarity counts.

    Args:
        path: File of `kenya-birds embed`.
        examples: Recordings of calls, preferably cut to the length of a window (see `find_sources`).
        top_k: Number of windows.
        model: The model that made the file; by default its location at that time.
        device: Device that embeds the examples.
        channel: Channel of the examples (see `RecordingReader`).

    Returns:
        The windows by descending similarity.

    Raises:
        UserError: If a file cannot be read, an example is silent, or another model made the file.
    """
    about = read_about(path)
    saved = find_model(model or about["model"])
    # Files of older versions have the hash of `hash_model`. Each hash reads all weights.
    if all(about["model_sha256"] != made(saved) for made in (hash_embedder, hash_model)):
        raise UserError(
            f"'{saved.name}' is not the model that made {path}: give that model with --model, or embed again with "
            "this one"
        )
    made_with, now = about.get("versions", {}), embedding_versions(saved)
    if changed := [name for name in now if made_with.get(name) != now[name]]:
        logger.warning(
            "%s was made with other versions of %s: similarities may be inexact; embed again for exact ones",
            path,
            ", ".join(changed),
        )
    is_own = saved.config.get("model_type") == "kenya_birds"
    embedder = load_embedder(saved, clip_s=None if is_own else about["clip_s"], device=device)
    wanted = unit(_embed_examples(embedder, examples, channel))
    best = pa.table({"recording": [], "start_s": [], "end_s": [], "similarity": []})
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                embeddings = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, embedder.size)
                similarity = (unit(embeddings) @ wanted.T).max(axis=1)
                found = rows.drop_columns("embedding").append_column("similarity", pa.array(similarity, pa.float64()))
                best = pa.concat_tables([best, found], promote_options="permissive")
                best = best.take(np.argsort(-best["similarity"].to_numpy(), kind="stable")[:top_k])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): embed again") from None
    return [Hit(**row) for row in best.to_pylist()]


def _embed_examples(
    embedder: Embedder, examples: str | Path | Iterable[str | Path] | FoundSources, channel: str | None
) -> np.ndarray:
    grid = WindowGrid(embedder.clip_samples, embedder.clip_samples)
    found: list[np.ndarray] = []
    for source in find_sources(examples):
        for item in read_source(source, grid, embedder.sampling_rate, Stopwatch(), channel):
            if isinstance(item, Reading):
                if item.losses:
                    raise UserError(f"the example {source.recording} cannot be used: {item.losses[0].reason}")
                continue
            for first in range(0, len(item.sound), WINDOWS_AT_ONCE):
                found.append(embedder(item.sound[first : first + WINDOWS_AT_ONCE]))
    return np.concatenate(found)
