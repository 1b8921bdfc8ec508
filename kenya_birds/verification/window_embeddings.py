"""Embeddings of the windows of detections: computed by the model of the run, or read from a table."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from kenya_birds.data.audio import RecordingReader, UndecodableError
from kenya_birds.errors import UserError
from kenya_birds.files import users_file
from kenya_birds.inference.detect import hash_model
from kenya_birds.inference.embedding_models import Embedder, load_embedder
from kenya_birds.inference.embeddings import read_about
from kenya_birds.inference.sources import find_sources
from kenya_birds.saved_models import find_model

logger = logging.getLogger(__name__)

CANDIDATES_FILE = "candidates.parquet"
WINDOWS_AT_ONCE = 16
KEY = ["recording", "start_s", "end_s"]


def model_of_run(model: str, model_sha256: str) -> Embedder:
    """Loads the model of a detection run.

    Args:
        model: Its name in `run.json`.
        model_sha256: Its fingerprint.

    Raises:
        UserError: If the model is not there, is another one, or has no embedding.
    """
    advice = "give embeddings of these recordings with --embeddings (see kenya-birds embed)"
    try:
        saved = find_model(model)
    except UserError as error:
        raise UserError(f"the model of the detections cannot be used ({error}): {advice}") from None
    if hash_model(saved) != model_sha256:
        raise UserError(f"'{model}' is not the model that made the detections any more: {advice}")
    return load_embedder(saved)


def embed_detections(
    embedder: Embedder, rows: pd.DataFrame, recordings: Mapping[str, str], channel: str | None
) -> np.ndarray:
    """Embeds the window around the middle of each detection; each recording is opened once.

    Args:
        embedder: The model.
        rows: Detections with `recording`, `start_s` and `end_s`.
        recordings: Path or URL of each recording.
        channel: See `RecordingReader`: the channel that the detection run read.

    Returns:
        float32 of shape `(detections, size)`; NaN where the sound cannot be decoded.
    """
    window_of = rows.groupby(KEY, sort=False).ngroup().to_numpy()
    windows = rows.drop_duplicates(KEY).reset_index(drop=True)
    found = np.full((len(windows), embedder.size), np.nan, dtype=np.float32)
    lost = 0
    with tqdm(total=len(windows), desc="Embedding candidates", unit="window", disable=None) as bar:
        for name, its in windows.sort_values(KEY).groupby("recording", sort=False):
            (source,) = find_sources([recordings[str(name)]])
            with source.local_path() as path, RecordingReader(path, embedder.sampling_rate, channel) as reader:
                places: list[int] = []
                sounds: list[np.ndarray] = []
                row: Any  # pandas does not know the types of columns
                for row in its.itertuples():
                    middle = (row.start_s + row.end_s) / 2 * embedder.sampling_rate
                    try:
                        sounds.append(reader.read(round(middle - embedder.clip_samples / 2), embedder.clip_samples))
                        places.append(row.Index)
                    except UndecodableError:
                        lost += 1
                    if len(sounds) == WINDOWS_AT_ONCE:
                        found[places] = embedder(np.stack(sounds))
                        places, sounds = [], []
                    bar.update()
                if sounds:
                    found[places] = embedder(np.stack(sounds))
    if lost:
        logger.warning("%d candidates cannot be decoded, and are not drawn", lost)
    return found[window_of]


def look_up(path: Path, rows: pd.DataFrame) -> np.ndarray:
    """Reads the embedding of each detection from a table of `kenya-birds embed`.

    It is that of the window of the same recording whose middle is nearest to that of the detection.

    Args:
        path: The table.
        rows: Detections with `recording`, `start_s` and `end_s`.

    Returns:
        float32 of shape `(detections, size)`.

    Raises:
        UserError: If the table cannot be read, or has no window that overlaps the middle of a detection.
    """
    size = int(read_about(path)["embedding_size"])
    wanted = list(dict.fromkeys(rows["recording"]))
    found = np.empty((len(rows), size), dtype=np.float32)
    distance_s = np.full(len(rows), np.inf)
    middles_s = ((rows["start_s"] + rows["end_s"]) / 2).to_numpy()
    places = {name: np.flatnonzero((rows["recording"] == name).to_numpy()) for name in wanted}
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                windows = table.drop_columns("embedding").to_pandas()
                vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, size)
                for name, its in windows.reset_index(drop=True).groupby("recording", sort=False):
                    own = places.get(str(name), np.empty(0, dtype=np.int64))
                    at = ((its["start_s"] + its["end_s"]) / 2).to_numpy()
                    gaps = np.abs(middles_s[own][:, np.newaxis] - at)
                    nearest = gaps.argmin(axis=1)
                    gap = gaps[np.arange(len(own)), nearest]
                    inside = gap <= (its["end_s"] - its["start_s"]).to_numpy()[nearest] / 2
                    better = inside & (gap < distance_s[own])
                    distance_s[own[better]] = gap[better]
                    found[own[better]] = vectors[its.index.to_numpy()[nearest[better]]]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): embed again") from None
    if len(missing := np.flatnonzero(np.isinf(distance_s))):
        row = rows.iloc[missing[0]]
        raise UserError(
            f"{path} has no window at {middles_s[missing[0]]:.3f} s of {row['recording']}: embed the recordings of "
            "the detections, with the same paths as kenya-birds detect"
        )
    return found


def write_candidates(folder: Path, rows: np.ndarray, embeddings: np.ndarray, source: str) -> None:
    """Writes the embeddings of the candidates of a sample, so that the sample can be resumed and enlarged.

    Args:
        folder: Folder of the sample.
        rows: Rows of the table of detections, shape `(rows,)`.
        embeddings: Their embeddings, shape `(rows, size)`.
        source: SHA-256 of the model or of the table that the embeddings are from.
    """
    size = embeddings.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.astype(np.float32).ravel()), size)
    with users_file(folder / CANDIDATES_FILE) as partial:
        table = pa.table({"row": pa.array(rows), "embedding": vectors})
        pq.write_table(table.replace_schema_metadata({"source": source}), partial)


def read_candidates(folder: Path, rows: np.ndarray, source: str | None) -> np.ndarray | None:
    """Reads what `write_candidates` wrote.

    Args:
        folder: Folder of the sample.
        rows: Rows of the table of detections.
        source: SHA-256 of the table that the embeddings should be from; None: any.

    Returns:
        Shape `(rows, size)`; None if there is no file, or it is of other rows.

    Raises:
        UserError: If the file cannot be read, or its embeddings are not from `source`.
    """
    path = folder / CANDIDATES_FILE
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        if source is not None and (table.schema.metadata or {}).get(b"source") != source.encode():
            raise UserError(f"{path} has other embeddings: omit --embeddings to use them, or give another --output")
        if not np.array_equal(table["row"].to_numpy(), rows):
            return None
        vectors = table["embedding"].combine_chunks()
        return vectors.flatten().to_numpy().reshape(len(rows), -1)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): delete it, and run this again") from None
