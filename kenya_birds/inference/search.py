"""Nearest-neighbour search: the windows of a file of embeddings that are most like an example."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kenya_birds.errors import UserError
from kenya_birds.inference.embedders import Embedder, load_embedder
from kenya_birds.inference.embedding import embedding_versions, read_about
from kenya_birds.inference.run import hash_model
from kenya_birds.inference.sources import FoundSources, find_sources
from kenya_birds.inference.stopwatch import Stopwatch
from kenya_birds.inference.streaming import Reading, read_source
from kenya_birds.inference.windows import WindowGrid
from kenya_birds.saved_models import find_model
from kenya_birds.values import Count, Device, checked

logger = logging.getLogger(__name__)

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
