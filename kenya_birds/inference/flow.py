"""From recordings to scored batches: threads that read, and batches that mix windows of many recordings."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from kenya_birds.errors import UserError
from kenya_birds.inference.scoring import WindowScorer
from kenya_birds.inference.streaming import Reading
from kenya_birds.inference.windows import Windows

# Groups of windows, of some megabytes each, that wait between readers and scoring.
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


@dataclass
class Batch:
    """Windows that are scored together.

    Attributes:
        sound: int16 of shape `(batch_size, window_samples)`; zeros behind the windows.
        filled: Number of windows.
        parts: (job, its windows) in the order of the rows; behind a job's last windows, how its reading ended.
        scores: To be: of shape `(batch_size, classes)`; None where there are no windows.
    """

    sound: np.ndarray
    filled: int
    parts: list[tuple[int, Windows | Reading]]
    scores: "Future[np.ndarray] | None" = None


@contextmanager
def read_all(jobs: Sequence[Job], readers: int) -> Iterator[Iterator[tuple[int, Windows | Reading]]]:
    """Reads with several threads, which end with the `with` block.

    Yields:
        What the jobs give with each job's number; in order within a job.
    """
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


def make_batches(items: Iterator[tuple[int, Windows | Reading]], size: int, samples: int) -> Iterator[Batch]:
    """Batches of one size; the last is filled up with zeros."""

    def empty() -> Batch:
        return Batch(np.zeros((size, samples), dtype=np.int16), 0, [])

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


def score_all(batches: Iterator[Batch], scorer: WindowScorer) -> Iterator[Batch]:
    """The batches in order, with scores, while those that follow are being scored."""
    pending: deque[Batch] = deque()
    for batch in batches:
        if batch.filled:
            batch.scores = scorer.submit(batch.sound)
        pending.append(batch)
        while len(pending) > scorer.threads + 1:
            yield _finished(pending.popleft())
    while pending:
        yield _finished(pending.popleft())


def _finished(batch: Batch) -> Batch:
    if batch.scores is not None:
        try:
            batch.scores.result()
        except torch.OutOfMemoryError:
            raise UserError(
                f"the device has no memory for batches of {len(batch.sound)} windows: give a smaller --batch_size"
            ) from None
    return batch
