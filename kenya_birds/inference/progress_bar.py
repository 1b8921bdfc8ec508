"""A bar for the analysis of many recordings: which file of how many, and hours done of all."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import TracebackType

import soundfile
from tqdm import tqdm

from kenya_birds.inference.sources import Source

# Formats whose header gives the length at once.
QUICK_SUFFIXES = (".wav", ".wave", ".flac", ".aif", ".aiff", ".w64", ".rf64", ".au")
HEADERS_PER_FORMAT = 50
LONGEST_S = 7 * 24 * 3600.0  # what a header says beyond is no length


class RecordingsBar:
    """A progress bar of recordings, whose hours are estimated from their sizes until they have been read.

    A context manager.

    Args:
        sources: The recordings.
        sizes: Bytes of each by its name; None where it is not known.
        is_shown: Whether to show anything.
    """

    def __init__(self, sources: Sequence[Source], sizes: Mapping[str, int | None], *, is_shown: bool = True) -> None:
        self._files = len(sources)
        self._done_files = 0
        self._done_s = 0.0  # of recordings that are finished
        self._sizes = {source.recording: sizes.get(source.recording) or 0 for source in sources}
        # Of recordings that are not finished: lengths that headers tell, and bytes of the others by format.
        self._told_s = _told_lengths(sources) if is_shown else {}
        self._left_s = sum(self._told_s.values())
        self._left_bytes: Counter[str] = Counter()
        # What tells the length of the others: seconds and bytes of recordings of the same format.
        self._seconds: dict[str, float] = defaultdict(float)
        self._bytes: Counter[str] = Counter()
        for recording, size in self._sizes.items():
            if recording in self._told_s:
                self._learn(recording, self._told_s[recording])
            else:
                self._left_bytes[_suffix(recording)] += size
        self._bar = tqdm(
            desc=self._description, disable=not (is_shown and sources), total=self.total_h, bar_format=self._format
        )

    def __enter__(self) -> "RecordingsBar":
        """Shows it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves it as it is."""
        self._bar.close()

    def advance(self, seconds: float) -> None:
        """Takes sound that was analysed, in any recording."""
        if self._bar.total is not None:
            self._bar.total = max(self._bar.total, self._bar.n + seconds / 3600)
        self._bar.update(seconds / 3600)

    def finish(self, recording: str, duration_s: float) -> None:
        """Takes the true length of a recording that is finished.

        Args:
            recording: Its name.
            duration_s: Its length; 0 if it could not be read.
        """
        told_s = self._told_s.pop(recording, None)
        if told_s is not None:
            self._left_s -= told_s
        else:
            self._left_bytes[_suffix(recording)] -= self._sizes[recording]
            if duration_s:
                self._learn(recording, duration_s)
        self._done_s += duration_s
        self._done_files += 1
        total_h = self.total_h
        self._bar.total = None if total_h is None else max(total_h, self._bar.n)
        self._bar.bar_format = self._format
        self._bar.set_description_str(self._description)

    @property
    def _format(self) -> str:
        if self.total_h is None:
            return "{desc}: {n:.2f} h [{elapsed}]"
        return "{desc}: {percentage:3.0f}%|{bar}| {n:.2f} of {total:.2f} h [{elapsed}<{remaining}]"

    @property
    def _description(self) -> str:
        return f"file {min(self._done_files + 1, self._files)} of {self._files}"

    @property
    def total_h(self) -> float | None:
        """Hours of all recordings, as far as they are known or estimated; None while nothing tells."""
        left_s = self._done_s + self._left_s
        for suffix, size in self._left_bytes.items():
            # Of its format, or else of all.
            known = suffix if self._bytes[suffix] else None
            seconds = self._seconds[suffix] if known else sum(self._seconds.values())
            size_bytes = self._bytes[suffix] if known else sum(self._bytes.values())
            if size and not size_bytes:
                return None
            left_s += size * seconds / max(size_bytes, 1)
        return left_s / 3600 if left_s or self._done_files == self._files else None

    def _learn(self, recording: str, duration_s: float) -> None:
        self._seconds[_suffix(recording)] += duration_s
        self._bytes[_suffix(recording)] += self._sizes[recording]


def _told_lengths(sources: Sequence[Source]) -> dict[str, float]:
    """Lengths in seconds of recordings whose header is quickly read: of some of each format."""
    of_format: dict[str, list[Source]] = {}
    for source in sources:
        if source.system is None and _suffix(source.recording) in QUICK_SUFFIXES:
            of_format.setdefault(_suffix(source.recording), []).append(source)
    told_s = {}
    for files in of_format.values():
        for source in files[:: max(1, len(files) // HEADERS_PER_FORMAT)]:
            try:
                duration_s = soundfile.info(source.recording).duration
            except (OSError, RuntimeError, ValueError):  # it fails when it is read, and is listed
                continue
            if 0 < duration_s <= LONGEST_S:
                told_s[source.recording] = duration_s
    return told_s


def _suffix(recording: str) -> str:
    return PurePosixPath(recording).suffix.lower()
