"""Embeddings of an archive's clips, computed once and then found in the cache of `datasets`."""

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from kenya_birds.data.audio import decode_wav
from kenya_birds.fingerprints import MODEL, code_fingerprint, library_versions
from kenya_birds.inference.embedders import Embedder
from kenya_birds.inference.run import hash_model
from kenya_birds.training.batches import rows_of


def embed_clips(clips: Dataset, embedder: Embedder, batch_size: int) -> np.ndarray:
    """Embeds clips.

    Args:
        clips: Rows of `load_clips`, of the embedder's rate and length and without context.
        embedder: The model.
        batch_size: Clips at a time.

    Returns:
        float32, shape `(clips, size)`.

    Raises:
        UserError: If the model gives what is no number.
    """

    def embed(table: pa.Table) -> pa.Table:
        audio = table["audio"].combine_chunks().field("bytes").to_pylist()
        embeddings = embedder(np.stack([decode_wav(data) for data in audio]))
        return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(embeddings.reshape(-1), embedder.size)})

    code, versions = code_fingerprint(Embedder.__module__), library_versions(MODEL)
    made_from = (clips._fingerprint, hash_model(embedder.saved), embedder.device.type, code, versions)
    done = clips.with_format("arrow").map(
        embed,
        batched=True,
        batch_size=batch_size,
        remove_columns=clips.column_names,
        features=Features({"embedding": List(Value("float32"), length=embedder.size)}),
        new_fingerprint=Hasher.hash(made_from),
        desc="Embedding clips",
    )
    return np.stack(rows_of(done.with_format(None), "embedding"))
