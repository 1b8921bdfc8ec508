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
import torch

from kenya_birds import __version__
from kenya_birds.errors import UserError
from kenya_birds.files import as_utf8, check_output, check_suffix
from kenya_birds.fingerprints import DECODERS, MODEL, code_fingerprint, library_versions
from kenya_birds.inference.audio_stream import Reading, Stopwatch, read_source
from kenya_birds.inference.batching import BatchPool, Job, computed
from kenya_birds.inference.detect import hash_model
from kenya_birds.inference.embedding_models import Embedder, load_embedder
from kenya_birds.inference.pipeline import MAX_READERS, log_losses, log_missing_band
from kenya_birds.inference.progress_bar import RecordingsBar
from kenya_birds.inference.run_report import RunReport, write_failures
from kenya_birds.inference.sources import FoundSources, Source, find_sources
from kenya_birds.inference.table_formats import Outputs
from kenya_birds.inference.windows import WindowGrid, Windows
from kenya_birds.saved_models import find_model
from kenya_birds.values import Count, Device, Seconds, checked

logger = logging.getLogger(__name__)

# Of the file's metadata: what it holds and how it was made, as JSON.
ABOUT_KEY = b"kenya_birds.embeddings"
ROWS_PER_GROUP = 1024


@checked
def embed_recordings(
    embedder: Embedder,
    paths: Iterable[str | Path] | FoundSources,
    output: str | Path,
    *,
    overlap_s: Seconds = 0.0,
    batch_size: Count | None = None,
    num_workers: Count | None = None,
    overwrite: bool = False,
) -> RunReport:
    """Writes the embedding of every window of recordings to a Parquet file, whole or not at all.

    Windows and faults are those of detection: windows of digital silence and those that lack sound are left out, a
    recording that cannot be read is too, and the others go on. What was not embedded stands in a table beside the
    file, `NAME_failed.csv`, which is empty where nothing was lost. Memory does not grow with the recordings:
    embeddings of one that is being read lie in files that are deleted.

    Columns: `recording` (as it was found), `start_s`, `end_s`, and `embedding`, a list of float32 of one length. Rows
    are in the order of the paths and of time. The schema's metadata says the model's name, hash and sizes.

    Args:
        embedder: The model.
        paths: See `find_sources`.
        output: The file; its name ends in `.parquet`.
        overlap_s: Overlap of neighbouring windows in seconds.
        batch_size: Windows that are embedded together; by default 16 on a CPU and 128 on a GPU.
        num_workers: Threads that read recordings; by default 1 on a CPU and up to 8 on a GPU.
        overwrite: Whether to replace the file if it is there.

    Returns:
        An account: see `RunReport.of`, and `windows`.

    Raises:
        UserError: If a path leads to nothing, a setting is out of range, or the file cannot be written.
    """
    output = Path(output)
    failed = _check_output(output, overwrite)
    grid = WindowGrid.with_overlap(embedder.clip_samples, overlap_s, embedder.sampling_rate)
    sources = find_sources(paths)
    sources.log()
    stopwatch = Stopwatch()
    readers = num_workers or (1 if embedder.device.type == "cpu" else min(torch.get_num_threads(), MAX_READERS))

    def embed(sound: np.ndarray) -> np.ndarray:
        with stopwatch.time("model"):
            return embedder(sound)

    pool = BatchPool(embed, embedder.device, batch_size)
    about = {
        "model": embedder.saved.name,
        "model_sha256": hash_model(embedder.saved),
        "embedding": embedder.how,
        "embedding_size": embedder.size,
        "sampling_rate": embedder.sampling_rate,
        "clip_s": embedder.clip_s,
        "overlap_s": overlap_s,
    }
    versions = {"kenya_birds": __version__, **embedding_versions()}
    begin_s = time.perf_counter()
    readings: dict[str, Reading] = {}
    try:
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(output.parent))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{output.name}_", dir=output.parent))
            file = outputs.open_parquet(output.name, _schema(embedder.size, {**about, "versions": versions}))
            writer = _Writer(file, Path(folder), sources, embedder)
            bar = stack.enter_context(RecordingsBar(sources, {source.recording: _size(source) for source in sources}))
            reached_s = dict.fromkeys(range(len(sources)), 0.0)
            jobs = [_job(source, grid, embedder.sampling_rate, stopwatch) for source in sources]
            for index, item, rows in computed(jobs, readers, pool, grid.window_samples):
                with stopwatch.time("write"):
                    if isinstance(item, Windows):
                        writer.add(index, item, rows)
                        end_s = float(item.ends[-1]) / embedder.sampling_rate
                        bar.advance(end_s - reached_s[index])
                        reached_s[index] = end_s
                        continue
                    writer.finish(index, item)
                readings[sources[index].recording] = item
                log_losses(sources[index].recording, item)
                bar.advance(max(item.duration_s - reached_s[index], 0.0))
                bar.finish(sources[index].recording, item.duration_s)
            writer.close()
            log_missing_band(readings, embedder.highest_hz)
            report = RunReport.of(
                {source.recording: readings[source.recording] for source in sources},
                new=set(readings),
                wall_s=time.perf_counter() - begin_s,
                spent_s=stopwatch.spent_s,
                about={**about, "windows": writer.rows},
                processes=1,
                threads=pool.threads,
                skipped=sources.skipped,
            )
            write_failures(outputs.open(failed), report.failures)
            outputs.commit()
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}): nothing was written") from None
    return report


def format_embedding(report: RunReport) -> str:
    """Some lines for people."""
    said, now = report.content, report.content["this_run"]
    lines = [
        f"{said['recordings']} recordings, {said['hours']:.2f} h: {said['windows']} windows, {said['embedding_size']} "
        f"numbers each ({said['embedding']})",
        f"{now['wall_s']:.1f} s, {now['times_real_time']:.0f} times real time",
    ]
    if report.failures:
        lines.append(report.faults)
    return "\n".join(lines)


def embedding_versions() -> dict[str, str]:
    """What embeddings depend on besides the model's files and the recordings: code and libraries."""
    return {"code": code_fingerprint(Embedder.__module__)[:12], **library_versions((*MODEL, *DECODERS))}


def failures_file(output: Path) -> Path:
    """Where it is said what was not embedded."""
    return output.with_name(f"{output.stem}_failed.csv")


def read_about(path: str | Path) -> dict[str, Any]:
    """What the metadata of a file of embeddings says: model, sizes, settings, versions.

    Raises:
        UserError: If the file cannot be read or is another.
    """
    try:
        return json.loads((pq.read_schema(path).metadata or {})[ABOUT_KEY])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as embeddings ({type(error).__name__}): give a file that kenya-birds embed wrote"
        ) from None


def _check_output(output: Path, overwrite: bool) -> str:
    """The name of the table of failures."""
    check_suffix(output, (".parquet",), "a file of embeddings")
    failed = failures_file(output)
    for path in (output, failed):
        check_output(path, overwrite)
    return failed.name


def _size(source: Source) -> int | None:
    try:
        return source.state().size_bytes
    except UserError:  # it fails when it is read, and is listed
        return None


def _job(source: Source, grid: WindowGrid, sampling_rate: int, stopwatch: Stopwatch) -> Job:
    return Job(source.recording, lambda: read_source(source, grid, sampling_rate, stopwatch))


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
    """A recording that is not written yet."""

    path: Path
    starts: list[np.ndarray] = field(default_factory=list)
    ends: list[np.ndarray] = field(default_factory=list)
    reading: Reading | None = None


class _Writer:
    """Writes recordings in their order, however their windows come, and none that could not be read to its end."""

    def __init__(self, file: pq.ParquetWriter, folder: Path, sources: Sequence[Source], embedder: Embedder) -> None:
        self.rows = 0
        self._file, self._folder, self._sources, self._embedder = file, folder, sources, embedder
        self._spools: dict[int, _Spool] = {}
        self._next = 0
        self._tables: list[pa.Table] = []

    def add(self, index: int, windows: Windows, embeddings: np.ndarray) -> None:
        """Keeps windows of a recording."""
        spool = self._spool(index)
        with spool.path.open("ab") as file:
            file.write(np.ascontiguousarray(embeddings, dtype=np.float32).tobytes())
        spool.starts.append(windows.starts)
        spool.ends.append(windows.ends)

    def finish(self, index: int, reading: Reading) -> None:
        """Writes a recording, and those that waited for it, if all before it are written."""
        self._spool(index).reading = reading
        while self._next in self._spools and self._spools[self._next].reading is not None:
            spool = self._spools.pop(self._next)
            for table in self._rows(spool, self._sources[self._next].recording):
                self._tables.append(table)
                if sum(map(len, self._tables)) >= ROWS_PER_GROUP:
                    self._flush()
            spool.path.unlink(missing_ok=True)
            self._next += 1

    def close(self) -> None:
        """Writes what is left."""
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
                    # At the recording's own rate it may end between two of the model's samples.
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
    """A window that is like an example.

    Attributes:
        recording: As it stands in the file of embeddings.
        start_s: Its start in the recording.
        end_s: Its end.
        similarity: Cosine of the angle between its embedding and the example's, at most 1.
    """

    recording: str
    start_s: float
    end_s: float
    similarity: float


@checked
def search_embeddings(
    path: str | Path,
    examples: Iterable[str | Path] | FoundSources,
    *,
    top_k: Count = 20,
    model: str | None = None,
    device: Device | None = None,
) -> list[Hit]:
    """Finds windows that are most like an example call.

    Every window is compared, one row group at a time. Of several examples, or one longer than a window, the one that
    is most alike counts.

    Args:
        path: What `kenya-birds embed` wrote.
        examples: Recordings of calls, best cut to the length of a window (see `find_sources`).
        top_k: How many windows.
        model: Where the model is that made the file; by default where it was then.
        device: Where to embed the examples.

    Returns:
        From the most to the least alike.

    Raises:
        UserError: If a file cannot be read, an example is silent, or the model is not the one that made the file.
    """
    about = read_about(path)
    saved = find_model(model or about["model"])
    if hash_model(saved) != about["model_sha256"]:
        raise UserError(
            f"'{saved.name}' is not the model that made {path}: give that one with --model, or embed again with this"
        )
    made_with, now = about.get("versions", {}), embedding_versions()
    if changed := [name for name in now if made_with.get(name) != now[name]]:
        logger.warning(
            "%s was made with other versions of %s: similarities may be a little off; embed again to be sure",
            path,
            ", ".join(changed),
        )
    is_own = saved.config.get("model_type") == "kenya_birds"
    embedder = load_embedder(saved, clip_s=None if is_own else about["clip_s"], device=device)
    wanted = _unit(_embed_examples(embedder, examples))
    best = pa.table({"recording": [], "start_s": [], "end_s": [], "similarity": []})
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                embeddings = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, embedder.size)
                similarity = (_unit(embeddings) @ wanted.T).max(axis=1)
                found = rows.drop_columns("embedding").append_column("similarity", pa.array(similarity, pa.float64()))
                best = pa.concat_tables([best, found], promote_options="permissive")
                best = best.take(np.argsort(-best["similarity"].to_numpy(), kind="stable")[:top_k])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): embed again") from None
    return [Hit(**row) for row in best.to_pylist()]


def _embed_examples(embedder: Embedder, examples: Iterable[str | Path] | FoundSources) -> np.ndarray:
    grid = WindowGrid(embedder.clip_samples, embedder.clip_samples)
    found: list[np.ndarray] = []
    for source in find_sources(examples):
        for item in read_source(source, grid, embedder.sampling_rate, Stopwatch()):
            if isinstance(item, Reading):
                if item.losses:
                    raise UserError(f"the example {source.recording} cannot be used: {item.losses[0].reason}")
                continue
            for first in range(0, len(item.sound), WINDOWS_AT_ONCE):
                found.append(embedder(item.sound[first : first + WINDOWS_AT_ONCE]))
    return np.concatenate(found)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
