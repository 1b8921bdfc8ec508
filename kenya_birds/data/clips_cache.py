"""Columns computed from clips, in the cache of `datasets`, and the error of a cache that cannot be written.

This module imports little: if the code of an imported module changes, cached columns are computed again (see
`code_fingerprint`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.fingerprint import Hasher

from kenya_birds.errors import UserError
from kenya_birds.files import is_write_error


@contextmanager
def writing_cache(folder: str | Path | None) -> Iterator[None]:
    """Turns the error of a cache that cannot be written, such as a full disk, into `UserError`.

    Args:
        folder: The cache; None: the cache of `datasets`.
    """
    cache = Path(folder or datasets.config.HF_DATASETS_CACHE).expanduser()
    try:
        yield
    except (OSError, datasets.exceptions.DatasetGenerationError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        if cause is None or not is_write_error(cause, cache):  # it may be of the archive
            raise
        raise UserError(
            f"the cache {cache} cannot be written: {cause}; free disk space there, or give another --cache_dir"
        ) from None


def map_clips(
    clips: datasets.Dataset,
    function: Callable[[pa.Table], pa.Table],
    features: datasets.Features,
    batch_size: int,
    made_from: object,
    desc: str,
) -> datasets.Dataset:
    """Applies a function to batches of clips; the result is kept in the cache beside the clips.

    Args:
        clips: Rows of `load_clips`.
        function: Returns the new columns of a batch.
        features: Names and types of the new columns.
        batch_size: Clips in a batch.
        made_from: All that the result depends on; a result that was made from the same is read from the cache.
        desc: Text of the progress bar.

    Raises:
        UserError: If the cache cannot be written.
    """
    folder = Path(clips.cache_files[0]["filename"]).parent if clips.cache_files else None
    with writing_cache(folder):
        done = clips.with_format("arrow").map(
            function,
            batched=True,
            batch_size=batch_size,
            writer_batch_size=batch_size,
            remove_columns=[name for name in clips.column_names if name not in features],
            features=features,
            new_fingerprint=Hasher.hash(made_from),
            desc=desc,
        )
    return done.with_format(None)
