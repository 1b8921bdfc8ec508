"""How long the parts of a run took."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("fetch", "decode", "resample", "features", "model", "write")


class Stopwatch:
    """Adds up the time that threads spend in each part of the work.

    Attributes:
        spent_s: Seconds by part; of several threads at once, the sum.
    """

    def __init__(self) -> None:
        self.spent_s = dict.fromkeys(PARTS, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Counts the time in the `with` block for a part."""
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - begin_s)

    def add(self, part: str, seconds: float) -> None:
        """Counts so many seconds for a part."""
        with self._lock:
            self.spent_s[part] += seconds
