"""Cache of embeddings on disk, in blocks of windows of one recording."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.errors import UserError
from kenya_birds.files import whole_file
from kenya_birds.locks import LOCK_FILE, shared_lock

logger = logging.getLogger(__name__)

FOLDER = "kenya_birds_embeddings"
# Windows of a file. A run that is killed loses at most so many embeddings.
BLOCK_WINDOWS = 256
SHOWN_EVERY_S = 15.0


@dataclass(frozen=True)
class Block:
    """Windows of one recording that are embedded together and kept in one file.

    Attributes:
        rows: Which windows of the whole task.
        made_from: All that their sound depends on.
    """

    rows: np.ndarray
    made_from: tuple[Any, ...]


class EmbeddingCache:
    """Embeddings of windows, computed once.

    Each block is a file, which is written completely or not at all. So an interrupted run continues with the next
    block, and other runs, folds and seeds find what they need. If another process embeds into the same cache, this one
    waits for it.

    Args:
        cache_dir: Folder of the cache.
        made_from: All that the embeddings depend on besides the sound: the network, settings, code and libraries.
        size: Numbers of each embedding.

    Attributes:
        computed: Windows that this object had to embed.
    """

    def __init__(self, cache_dir: str | Path, made_from: tuple[Any, ...], size: int) -> None:
        self.folder = Path(cache_dir) / FOLDER
        self.size = size
        self.computed = 0
        self._made_from = made_from

    def get(self, blocks: Sequence[Block], embed: Callable[[Block], np.ndarray], what: str) -> np.ndarray:
        """Embeddings of windows, from the cache or computed.

        Args:
            blocks: All windows, each in one block.
            embed: Embeds the windows of a block, float32 of shape `(windows, size)`.
            what: The windows, for the log.

        Returns:
            float32, shape `(windows, size)`.

        Raises:
            UserError: If the cache cannot be read or written, or the sound cannot be read.
        """
        found = np.empty((sum(len(block.rows) for block in blocks), self.size), dtype=np.float32)
        missing = self._fill(found, blocks)
        if not missing:
            return found
        with ExitStack() as stack:
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(shared_lock(self.folder / LOCK_FILE, f"the embeddings in {self.folder}"))
            missing = self._fill(found, missing)  # another process may have embedded them in the meantime
            progress = _Progress(what, len(found), sum(len(block.rows) for block in missing))
            for block in missing:
                try:
                    found[block.rows] = embed(block)
                except OSError as error:
                    raise UserError(f"the sound of {what} cannot be read: {error}") from None
                with self._writing():
                    self._write(block, found[block.rows])
                self.computed += len(block.rows)
                progress.add(len(block.rows))
            progress.finish()
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, NotImplementedError) as error:
            raise UserError(
                f"{self.folder} cannot be written: {error}; free disk space there, or give another --cache_dir"
            ) from None

    def _fill(self, found: np.ndarray, blocks: Sequence[Block]) -> list[Block]:
        """Reads blocks from the cache; returns those that are not in it."""
        missing = []
        for block in blocks:
            stored = self._read(block)
            if stored is None:
                missing.append(block)
            else:
                found[block.rows] = stored
        return missing

    def _path(self, block: Block) -> Path:
        key = hashlib.sha256(repr((self._made_from, block.made_from)).encode()).hexdigest()[:32]
        return self.folder / f"{key}.npy"

    def _read(self, block: Block) -> np.ndarray | None:
        path = self._path(block)
        try:
            if not path.is_file() or not path.stat().st_size:  # empty after a power cut or on a full disk
                return None
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it, and it is computed again") from None
        if stored.shape != (len(block.rows), self.size):
            raise UserError(f"{path} has the shape {stored.shape}: delete it, and it is computed again")
        return stored

    def _write(self, block: Block, embeddings: np.ndarray) -> None:
        with whole_file(self._path(block)) as partial, partial.open("wb") as file:
            np.save(file, embeddings)


class _Progress:
    """Lines in the log: how many windows are embedded, how fast, and how long the rest takes."""

    def __init__(self, what: str, total: int, missing: int) -> None:
        self._what, self._missing, self._done = what, missing, 0
        self._begin_s = self._shown_s = time.monotonic()
        in_cache = total - missing
        logger.info(
            "Embedding %s: %d windows%s", what, missing, f" ({in_cache} more are in the cache)" if in_cache else ""
        )

    def add(self, windows: int) -> None:
        self._done += windows
        now_s = time.monotonic()
        if now_s - self._shown_s >= SHOWN_EVERY_S:
            self._shown_s = now_s
            per_s = self._done / (now_s - self._begin_s)
            logger.info(
                "Embedding %s: %d of %d windows (%.0f%%), %.0f a second, %.1f minutes left",
                self._what,
                self._done,
                self._missing,
                100 * self._done / self._missing,
                per_s,
                (self._missing - self._done) / per_s / 60,
            )

    def finish(self) -> None:
        took_s = time.monotonic() - self._begin_s
        logger.info("Embedded %s: %d windows in %.1f s", self._what, self._done, took_s)


def rows_of(recordings: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of the windows of each recording, in the order in which the recordings first occur.

    Args:
        recordings: Recording of each window.
    """
    number, names = pd.factorize(np.asarray(recordings, dtype=object))
    ends = np.bincount(number, minlength=len(names)).cumsum()
    order = np.argsort(number, kind="stable")
    return {name: order[first:end] for name, first, end in zip(names, [0, *ends], ends, strict=False)}


def blocks_of(recordings: Sequence[str], made_from: Callable[[str, np.ndarray], tuple[Any, ...]]) -> list[Block]:
    """Divides windows into blocks: the windows of a recording in their order, at most `BLOCK_WINDOWS` in each.

    Args:
        recordings: Recording of each window.
        made_from: All that the sound of some windows of a recording depends on, from its name and their rows.
    """
    blocks = []
    for name, rows in rows_of(recordings).items():
        for first in range(0, len(rows), BLOCK_WINDOWS):
            part = rows[first : first + BLOCK_WINDOWS]
            blocks.append(Block(part, made_from(name, part)))
    return blocks
