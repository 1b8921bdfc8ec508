"""Batches of windows, computed by several threads while other threads read recordings."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from kenya_birds.console import enough_memory
from kenya_birds.inference.audio_stream import Reading
from kenya_birds.inference.windows import Windows

# With this size, a batch's spectra and activations fit into the cache of a CPU.
BATCH_SIZES = {"cpu": 16, "cuda": 128}
# Number of groups of windows in the queue, of some megabytes each.
WAITING_GROUPS = 4
# Time to wait for readers to stop; a reader that downloads a file ends after the download.
STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Job:
    """A recording to analyse.

    Attributes:
        recording: Name of the recording.
        read: Function that yields its windows, and finally the `Reading`.
    """

    recording: str
    read: Callable[[], Iterator[Windows | Reading]]


Submit = Callable[[np.ndarray], "Future[np.ndarray]"]


class BatchPool:
    """Thread pool for batches of windows of one size; the result of a window does not depend on other windows.

    On a CPU each thread computes one batch, because operations on small tensors gain little from more threads.

    Args:
        compute: Function that takes float32 of shape `(batch_size, window_samples)` and returns an array with a row
            for each window.
        device: Device for the computation.
        batch_size: Windows per batch; by default 16 on a CPU and 128 on a GPU.

    Attributes:
        batch_size: Windows per batch.
        threads: Number of batches that are computed in parallel.
    """

    def __init__(
        self, compute: Callable[[np.ndarray], np.ndarray], device: torch.device, batch_size: int | None
    ) -> None:
        self._compute = compute
        self.batch_size = batch_size or BATCH_SIZES.get(device.type, 128)
        # Two on a GPU, so that it computes during transfers.
        self._torch_threads = torch.get_num_threads()
        self.threads = self._torch_threads if device.type == "cpu" else 2

    @contextmanager
    def started(self) -> "Iterator[Submit]":
        """Starts threads, which end with the `with` block; other blocks have threads of their own.

        Yields:
            A function that submits a batch: it takes float32 of shape `(batch_size, window_samples)`, which the caller
            must not change, and returns the future of an array with a row for each window.
        """
        executor = ThreadPoolExecutor(self.threads, "compute", initializer=torch.set_num_threads, initargs=(1,))

        def submit(sound: np.ndarray) -> "Future[np.ndarray]":
            return executor.submit(self._compute, sound)

        try:
            yield submit
        finally:
            executor.shutdown(cancel_futures=True)
            torch.set_num_threads(self._torch_threads)  # new threads inherit the setting of the pool's threads


@dataclass(frozen=True)
class ComputedWindows:
    """Windows of a recording with their results.

    Attributes:
        job: Index of the recording's job.
        windows: The windows.
        results: An array with a row for each window.
    """

    job: int
    windows: Windows
    results: np.ndarray


@dataclass(frozen=True)
class FinishedJob:
    """The end of a recording, after all its windows.

    Attributes:
        job: Index of the recording's job.
        reading: Result of its reading.
    """

    job: int
    reading: Reading


def computed(
    jobs: Sequence[Job], readers: int, pool: BatchPool, window_samples: int
) -> Iterator[ComputedWindows | FinishedJob]:
    """Reads recordings and computes the results of their windows; both run in parallel to the caller's work.

    Args:
        jobs: The recordings.
        readers: Number of threads that read.
        pool: Thread pool for the computation.
        window_samples: Length of a window.

    Yields:
        Windows with their results, and a `FinishedJob` after the last windows of a recording. The order is kept within
        each recording. With several readers, recordings may be interleaved.

    Raises:
        UserError: If the device has too little memory.
    """
    with _reading(jobs, readers) as items, pool.started() as submit:
        for batch in _computed(_batches(items, pool.batch_size, window_samples), submit, pool.threads):
            results = np.zeros((0, 0)) if batch.results is None else _result(batch.results, pool)
            row = 0
            for part in batch.parts:
                if isinstance(part, FinishedJob):
                    yield part
                    continue
                count = len(part.windows.starts)
                yield ComputedWindows(part.job, part.windows, results[row : row + count])
                row += count


@dataclass(frozen=True)
class _ReadWindows:
    """Windows of a recording, before their results are computed."""

    job: int
    windows: Windows


@dataclass(frozen=True)
class _FailedReader:
    """The error that ended a reading thread."""

    error: BaseException


class _EndedReader:
    """The end of a reading thread that has no further job."""


@dataclass
class _Batch:
    """Windows of one batch, and the ends of recordings among them."""

    sound: np.ndarray
    filled: int
    parts: list[_ReadWindows | FinishedJob]
    results: "Future[np.ndarray] | None" = None


@contextmanager
def _reading(jobs: Sequence[Job], readers: int) -> Iterator[Iterator[_ReadWindows | FinishedJob]]:
    """Reads jobs with threads that end with the `with` block; the order is kept within each job."""
    items: queue.Queue[_ReadWindows | FinishedJob | _FailedReader | _EndedReader]
    items = queue.Queue(WAITING_GROUPS + readers)
    waiting = iter(range(len(jobs)))
    lock = threading.Lock()
    stopped = threading.Event()

    def put(item: _ReadWindows | FinishedJob | _FailedReader | _EndedReader) -> bool:
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
                    part = FinishedJob(index, item) if isinstance(item, Reading) else _ReadWindows(index, item)
                    if not put(part):
                        return
        except BaseException as error:  # raised again in the consumer
            put(_FailedReader(error))
        put(_EndedReader())

    threads = [threading.Thread(target=work, name=f"read-{n}", daemon=True) for n in range(min(readers, len(jobs)))]

    def taken() -> Iterator[_ReadWindows | FinishedJob]:
        running = len(threads)
        while running:
            item = items.get()
            if isinstance(item, _FailedReader):
                raise item.error
            if isinstance(item, _EndedReader):
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
            thread.join(STOP_TIMEOUT_S)


def _batches(items: Iterator[_ReadWindows | FinishedJob], size: int, samples: int) -> Iterator[_Batch]:
    """Yields batches of one size; the last is padded with zeros."""

    def empty() -> _Batch:
        return _Batch(np.zeros((size, samples), dtype=np.float32), 0, [])

    batch = empty()
    for item in items:
        if isinstance(item, FinishedJob):
            batch.parts.append(item)
            if not batch.filled:
                yield batch
                batch = empty()
            continue
        windows, first = item.windows, 0
        while first < len(windows.starts):
            last = min(first + size - batch.filled, len(windows.starts))
            part = Windows(windows.starts[first:last], windows.ends[first:last], windows.sound[first:last])
            batch.sound[batch.filled : batch.filled + last - first] = part.sound
            batch.filled += last - first
            batch.parts.append(_ReadWindows(item.job, part))
            if batch.filled == size:
                yield batch
                batch = empty()
            first = last
    if batch.parts:
        yield batch


def _computed(batches: Iterator[_Batch], submit: Submit, threads: int) -> Iterator[_Batch]:
    """Yields batches in order, with results, while the following ones are computed."""
    pending: deque[_Batch] = deque()
    for batch in batches:
        if batch.filled:
            batch.results = submit(batch.sound)
        pending.append(batch)
        while len(pending) > threads + 1:
            yield pending.popleft()
    yield from pending


def _result(results: "Future[np.ndarray]", pool: BatchPool) -> np.ndarray:
    with enough_memory(f"give a smaller --batch_size than {pool.batch_size}"):
        return results.result()
