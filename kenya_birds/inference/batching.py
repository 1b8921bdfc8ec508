"""Batches of windows that are computed on while recordings are read: many recordings, threads and batches at once."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from kenya_birds.errors import UserError
from kenya_birds.inference.audio_stream import Reading
from kenya_birds.inference.windows import Windows

# On a CPU a batch's spectra and activations stay in its cache.
BATCH_SIZES = {"cpu": 16, "cuda": 128}
# Groups of windows, of some megabytes each, that wait between readers and computing.
WAITING_GROUPS = 4
# For readers that shall stop: one that fetches a file ends when it has it.
PATIENCE_S = 2.0


@dataclass(frozen=True)
class Job:
    """A recording to analyse.

    Attributes:
        recording: Its name.
        read: Gives its windows, and in the end how its reading ended.
    """

    recording: str
    read: Callable[[], Iterator[Windows | Reading]]


class BatchPool:
    """Threads that compute on batches of windows, all of one size: a window's result depends on no other window.

    On a CPU as many batches as there are threads are computed on at a time, each by one thread: operations on small
    tensors gain little from more. A context manager.

    Args:
        compute: Takes float32 of shape `(batch_size, window_samples)` and gives an array with a row for each window.
        device: Where it computes.
        batch_size: Windows of a batch; by default 16 on a CPU and 128 on a GPU.

    Attributes:
        batch_size: Windows of a batch.
        threads: Number of batches that are worked on at a time.
    """

    def __init__(
        self, compute: Callable[[np.ndarray], np.ndarray], device: torch.device, batch_size: int | None
    ) -> None:
        self._compute = compute
        self.batch_size = batch_size or BATCH_SIZES.get(device.type, 128)
        # Two on a GPU, so that it has work while results travel.
        self._torch_threads = torch.get_num_threads()
        self.threads = self._torch_threads if device.type == "cpu" else 2
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "BatchPool":
        """Starts its threads; they end with the `with` block."""
        self._pool = ThreadPoolExecutor(self.threads, "compute", initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for its threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)  # new threads take over what the pool's have set

    def submit(self, sound: np.ndarray) -> "Future[np.ndarray]":
        """Begins to compute on a batch.

        Args:
            sound: float32 of shape `(batch_size, window_samples)`, not to be written to.

        Returns:
            To be: a row for each window.
        """
        assert self._pool is not None, "submit within the `with` block"
        return self._pool.submit(self._compute, sound)


def computed(
    jobs: Sequence[Job], readers: int, pool: BatchPool, window_samples: int
) -> Iterator[tuple[int, Windows | Reading, np.ndarray]]:
    """Reads recordings and computes on their windows; both, and what the caller does, go on at the same time.

    Args:
        jobs: The recordings.
        readers: Threads that read.
        pool: Computes; it is opened and closed here.
        window_samples: Length of a window.

    Yields:
        Which job; windows, or in the end how its reading ended; and a row for each window. In order within a
        recording; recordings may take turns where there are several readers.

    Raises:
        UserError: If the device has too little memory.
    """
    with _reading(jobs, readers) as items, pool:
        for batch in _computed(_batches(items, pool.batch_size, window_samples), pool):
            results = np.zeros((0, 0)) if batch.results is None else _result(batch.results, pool)
            row = 0
            for index, item in batch.parts:
                count = len(item.starts) if isinstance(item, Windows) else 0
                yield index, item, results[row : row + count]
                row += count


@dataclass
class _Batch:
    """Windows that are computed on together, and what follows them."""

    sound: np.ndarray
    filled: int
    parts: list[tuple[int, Windows | Reading]]
    results: "Future[np.ndarray] | None" = None


@contextmanager
def _reading(jobs: Sequence[Job], readers: int) -> Iterator[Iterator[tuple[int, Windows | Reading]]]:
    """What the jobs read, in order within each, by threads that end with the `with` block."""
    items: queue.Queue[tuple[int, Windows | Reading] | BaseException | None] = queue.Queue(WAITING_GROUPS + readers)
    waiting = iter(range(len(jobs)))
    lock = threading.Lock()
    stopped = threading.Event()

    def put(item: tuple[int, Windows | Reading] | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            while True:
                with lock:
                    index = next(waiting, None)
                if index is None:
                    break
                for item in jobs[index].read():
                    if not put((index, item)):
                        return
        except BaseException as error:  # raised where the items are taken
            put(error)
        put(None)

    threads = [threading.Thread(target=work, name=f"read-{n}", daemon=True) for n in range(min(readers, len(jobs)))]

    def taken() -> Iterator[tuple[int, Windows | Reading]]:
        running = len(threads)
        while running:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item

    for thread in threads:
        thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        for thread in threads:
            thread.join(PATIENCE_S)


def _batches(items: Iterator[tuple[int, Windows | Reading]], size: int, samples: int) -> Iterator[_Batch]:
    """Batches of one size; the last is filled up with zeros."""

    def empty() -> _Batch:
        return _Batch(np.zeros((size, samples), dtype=np.float32), 0, [])

    batch = empty()
    for index, item in items:
        if isinstance(item, Reading):
            batch.parts.append((index, item))
            if not batch.filled:
                yield batch
                batch = empty()
            continue
        first = 0
        while first < len(item.starts):
            last = min(first + size - batch.filled, len(item.starts))
            part = Windows(item.starts[first:last], item.ends[first:last], item.sound[first:last])
            batch.sound[batch.filled : batch.filled + last - first] = part.sound
            batch.filled += last - first
            batch.parts.append((index, part))
            if batch.filled == size:
                yield batch
                batch = empty()
            first = last
    if batch.parts:
        yield batch


def _computed(batches: Iterator[_Batch], pool: BatchPool) -> Iterator[_Batch]:
    """The batches in order, with results, while those that follow are being computed on."""
    pending: deque[_Batch] = deque()
    for batch in batches:
        if batch.filled:
            batch.results = pool.submit(batch.sound)
        pending.append(batch)
        while len(pending) > pool.threads + 1:
            yield pending.popleft()
    yield from pending


def _result(results: "Future[np.ndarray]", pool: BatchPool) -> np.ndarray:
    try:
        return results.result()
    except torch.OutOfMemoryError:
        raise UserError(
            f"the device has no memory for batches of {pool.batch_size} windows: give a smaller --batch_size"
        ) from None
