"""Progress bar for the analysis of many recordings: number of files, and hours."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import TracebackType

import soundfile
from tqdm import tqdm

from kenya_birds.inference.sources import Source

# Formats whose header contains the length.
QUICK_SUFFIXES = (".wav", ".wave", ".flac", ".aif", ".aiff", ".w64", ".rf64", ".au")
HEADERS_PER_FORMAT = 50
LONGEST_S = 7 * 24 * 3600.0  # longer values are errors in the header


class RecordingsBar:
    """Progress bar of recordings. Lengths are estimated from file sizes until the recordings are read.

    The bar is a context manager.

    Args:
        sources: The recordings.
        sizes: Bytes by the recording's name; None if unknown.
        is_shown: Whether to show the bar.
    """

    def __init__(self, sources: Sequence[Source], sizes: Mapping[str, int | None], *, is_shown: bool = True) -> None:
        self._files = len(sources)
        self._done_files = 0
        self._done_s = 0.0  # of recordings that are finished
        self._sizes = {source.recording: sizes.get(source.recording) or 0 for source in sources}
        # Unfinished recordings: known lengths by headers, and bytes of the others by format.
        self._header_lengths_s = _header_lengths(sources) if is_shown else {}
        self._left_s = sum(self._header_lengths_s.values())
        self._left_bytes: Counter[str] = Counter()
        # Known seconds and bytes by format, from which the other lengths are estimated.
        self._seconds: dict[str, float] = defaultdict(float)
        self._bytes: Counter[str] = Counter()
        for recording, size in self._sizes.items():
            if recording in self._header_lengths_s:
                self._learn(recording, self._header_lengths_s[recording])
            else:
                self._left_bytes[_suffix(recording)] += size
        self._bar = tqdm(
            desc=self._description, disable=not (is_shown and sources), total=self.total_h, bar_format=self._format
        )

    def __enter__(self) -> "RecordingsBar":
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the bar; it remains visible."""
        self._bar.close()

    def advance(self, seconds: float) -> None:
        """Adds seconds of analysed sound."""
        if self._bar.total is not None:
            self._bar.total = max(self._bar.total, self._bar.n + seconds / 3600)
        self._bar.update(seconds / 3600)

    def finish(self, recording: str, duration_s: float) -> None:
        """Marks a recording as finished.

        Args:
            recording: Name of the recording.
            duration_s: Its exact length; 0 if it could not be read.
        """
        known_s = self._header_lengths_s.pop(recording, None)
        if known_s is not None:
            self._left_s -= known_s
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
        """Known or estimated hours of all recordings; None if they cannot be estimated yet."""
        left_s = self._done_s + self._left_s
        for suffix, size in self._left_bytes.items():
            # By recordings of the same format, or of all formats.
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


def _header_lengths(sources: Sequence[Source]) -> dict[str, float]:
    """Returns lengths in seconds of some recordings of each format, read from their headers."""
    of_format: dict[str, list[Source]] = {}
    for source in sources:
        if source.system is None and _suffix(source.recording) in QUICK_SUFFIXES:
            of_format.setdefault(_suffix(source.recording), []).append(source)
    known_s = {}
    for files in of_format.values():
        for source in files[:: max(1, len(files) // HEADERS_PER_FORMAT)]:
            try:
                duration_s = soundfile.info(source.recording).duration
            except (OSError, RuntimeError, ValueError):  # reported as failed when it is read
                continue
            if 0 < duration_s <= LONGEST_S:
                known_s[source.recording] = duration_s
    return known_s


def _suffix(recording: str) -> str:
    return PurePosixPath(recording).suffix.lower()
