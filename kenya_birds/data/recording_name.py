"""Site, date and time in the names of recordings."""

import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

import numpy as np

from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

GROUPS = ("site", "year", "month", "day", "hour", "minute", "second", "zone")
# The directives of strptime for digits, and %site.
_DIRECTIVES = {
    "site": r"(?P<site>.+?)",
    "Y": r"(?P<year>[0-9]{4})",
    "y": r"(?P<year>[0-9]{2})",
    "m": r"(?P<month>[0-9]{2})",
    "d": r"(?P<day>[0-9]{2})",
    "H": r"(?P<hour>[0-9]{2})",
    "M": r"(?P<minute>[0-9]{2})",
    "S": r"(?P<second>[0-9]{2})",
    "f": r"[0-9]{1,9}",
    "z": r"(?P<zone>Z|[+-][0-9]{2}:?(?:[0-9]{2})?)",
    "%": "%",
}
_TOKEN = re.compile(r"%(site|.?)|\*|[^%*]+", re.DOTALL)
_NEEDED = ("year", "month", "day", "hour")


class NamePattern:
    """Pattern that reads site, date and time from file names.

    Args:
        text: A pattern as for `strptime`, with `%site`, `%Y`, `%y` (of this century), `%m`, `%d`, `%H`, `%M`, `%S`,
            `%f`, `%z`, and `*` for any text, such as `%site_%Y%m%d_%H%M%S*`; or a regular expression with named
            groups such as `(?P<site>...)`: site, year, month, day, hour, minute, second and zone (`+0300` or Z). It
            must match the whole name without its suffix.

    Raises:
        UserError: If the pattern is invalid, or has neither a site nor date and hour.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._expression = re.compile(text if "(?P<" in text else _translated(text))
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"the name pattern '{text}' cannot be used ({error}): expected one such as %site_%Y%m%d_%H%M%S, or a "
                "regular expression with named groups"
            ) from None
        names = set(self._expression.groupindex)
        unknown = sorted(names - set(GROUPS))
        if unknown:
            raise UserError(f"the name pattern '{text}' has a group '{unknown[0]}': expected {', '.join(GROUPS)}")
        missing = [name for name in _NEEDED if name not in names]
        if missing and (len(missing) < len(_NEEDED) or "site" not in names):
            raise UserError(
                f"the name pattern '{text}' has no {missing[0]}: expected a date with year, month, day and hour, or a "
                "site"
            )

    @classmethod
    def of(cls, text: str | None) -> "NamePattern | None":
        """Makes a pattern from a text; None for None."""
        return None if text is None else cls(text)

    @property
    def has_time(self) -> bool:
        """Whether the pattern reads a date and a time, not only a site."""
        return "year" in self._expression.groupindex

    def match(self, name: str) -> dict[str, str | None] | None:
        """Returns the text of each group; None if the pattern does not match.

        Args:
            name: File name of a recording.
        """
        match = self._expression.fullmatch(name.rpartition(".")[0] or name) or self._expression.fullmatch(name)
        if match is None:
            return None
        groups = match.groupdict()
        if len(groups.get("year") or "") == 2:
            groups["year"] = f"20{groups['year']}"
        return groups

    def check(self, names: Iterable[str]) -> None:
        """Logs how many file names the pattern matches.

        Raises:
            UserError: If the pattern matches no file name.
        """
        names = list(dict.fromkeys(names))
        others = [name for name in names if self.match(name) is None]
        if others and len(others) == len(names):
            raise UserError(
                f"the name pattern '{self.text}' matches none of {len(names)} recordings, such as {others[0]}: "
                "correct the pattern"
            )
        if others:
            logger.warning(
                "The name pattern '%s' matches %d of %d recordings; the others, such as %s, are read by the standard "
                "patterns",
                self.text,
                len(names) - len(others),
                len(names),
                others[0],
            )


def _translated(text: str) -> str:
    """Returns the regular expression of a strptime pattern."""
    parts = []
    for token in _TOKEN.finditer(text):
        if token[0] == "*":
            parts.append(".*")
        elif token[1] is None:
            parts.append(re.escape(token[0]))
        elif token[1] in _DIRECTIVES:
            parts.append(_DIRECTIVES[token[1]])
        else:
            known = " ".join(f"%{name}" for name in _DIRECTIVES)
            raise re.error(f"'{token[0]}' is unknown, expected {known}")
    return "".join(parts)


DAY_H = 24
# Format of the archive's names: collection, number, optional site. Without a site the number is used.
_ARCHIVE_SITE = re.compile(r"(?P<collection>[A-Za-z]+)_(?P<number>[0-9]+)(?:_(?P<site>S[0-9]+))?")
_DATE_TIME = re.compile(
    r"(?<![0-9])(?P<year>(?:19|20)[0-9]{2})(?P<in_date>[-_.]?)(?P<month>[0-9]{2})(?P=in_date)(?P<day>[0-9]{2})"
    # Song Meters write a $ between date and time if a GPS set the clock, BirdNET-Pi its name and camera.
    r"(?P<between>-birdnet-(?:RTSP_[0-9]+-)?|[ T_$-]?)"
    r"(?P<hour>[0-9]{2})(?P<in_time>[-:_.]?)(?P<minute>[0-9]{2})"
    r"(?:(?P=in_time)(?P<second>[0-9]{2})(?:[.,][0-9]{1,9})?)?(?P<zone>Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?(?![0-9])"
)
_SUFFIX = re.compile(r"\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]+")
_COPY = re.compile(r"copy( \([0-9]+\))? of ", re.IGNORECASE)
# Wildlife Acoustics' mark of the channels.
_CHANNELS = re.compile(r"_(?:0\+1|[01])$")
# Programs that cut clips add begin and end to the name.
_CLIP = re.compile(r"[0-9]+(?:\.[0-9]+)?s?[_-][0-9]+(?:\.[0-9]+)?s?$")
# The first AudioMoths named recordings by seconds since 1970, in hexadecimal: September 2017 to the end of 2024.
_HEXADECIMAL = re.compile(r"(?=[0-9]*[A-F])(?P<seconds>5[9A-F][0-9A-F]{6}|6[0-6][0-9A-F]{6})\.(?:WAV|wav)")
_UTC_OFFSETS_MIN = range(-12 * 60, 14 * 60 + 1)


class RecordingName(NamedTuple):
    """Site and start time in a recording's file name.

    Attributes:
        site: The text before date and time: a site, a recorder's prefix or its serial number. For the archive's names,
            the collection and the site, such as "KEN_001" or "UHH_S01". If such a name has no site, the number after
            the collection is used; in some collections (SSW, HSN) this is a running number of the recording, so each
            recording is its own site. None if unknown.
        start: Start of the recording: in UTC if the name has a Z, with a time zone if the name has an offset,
            otherwise without time zone, in the recorder's local time. None if unknown.
    """

    site: str | None
    start: datetime | None

    @property
    def local(self) -> datetime | None:
        """Local start time, without a time zone; None if unknown."""
        return None if self.start is None or self.start.tzinfo is UTC else self.start.replace(tzinfo=None)

    @property
    def utc(self) -> datetime | None:
        """Start time in UTC; None if unknown."""
        return None if self.start is None or self.start.tzinfo is None else self.start.astimezone(UTC)


def parse_recording_name(name: str, pattern: NamePattern | None = None) -> RecordingName | None:
    """Reads site, date and time from a file name, if they are unambiguous.

    Dates have formats such as `20211207` and `2021-12-07`, times such as `153852` and `15-38-52`; a Z, `UTC` or an
    offset such as `+0300` may follow. Names with days before months, years of two digits, times without seconds, or
    two dates are ambiguous and not read.

    Args:
        name: File name of a recording, such as `KEN_001_20211207_153852.flac` or `20211207_153852.WAV`.
        pattern: Pattern that is tried first. If it has no date, date and time are read as without it.

    Returns:
        Site and start, or None if the name contains neither, or the date or time does not exist.
    """
    if pattern is not None and (groups := pattern.match(name)) is not None:
        usual = None if pattern.has_time else parse_recording_name(name)
        parsed = RecordingName(groups.get("site") or None, usual.start if usual else _start(groups))
        return None if parsed == (None, None) else parsed
    if match := _HEXADECIMAL.fullmatch(name):
        return RecordingName(None, datetime.fromtimestamp(int(match["seconds"], 16), UTC))
    suffix = list(_SUFFIX.finditer(name))[-1:]
    stem = name[: suffix[0].start()] if suffix and suffix[0].end() == len(name) else name
    found = [(match, start) for match in _DATE_TIME.finditer(stem) if (start := _plain_start(match)) is not None]
    # Frontier Labs' recorders write begin and end: S20211207T153852+1000_E20211207T163852+1000.
    if len(found) == 2 and stem[found[0][0].start() - 1] == "S" and stem[found[1][0].start() - 1] == "E":
        return RecordingName(_site(stem[: found[0][0].start() - 1]), found[0][1])
    if len(found) != 1 or name != name.strip() or _CLIP.search(stem[found[0][0].end() :]):
        return None
    match, start = found[0]
    is_birdnet_pi = match["between"].startswith("-birdnet")  # its prefix is a species
    return RecordingName(None if is_birdnet_pi else _site(stem[: match.start()]), start)


def _plain_start(match: re.Match[str]) -> datetime | None:
    """Returns the time of a match; None if it is ambiguous or does not exist."""
    is_compact = not match["in_date"] and not match["in_time"]
    if (not match["between"] and not is_compact) or (match["second"] is None and match["between"] != "T"):
        return None
    groups = match.groupdict()
    # Without a T before the time, -0100 may be a number, and +0001 is a number.
    if match["between"] != "T" and (groups["zone"] or "").startswith("-"):
        groups["zone"] = None
    start = _start(groups)
    return _start(groups | {"zone": None}) if start is None and match["between"] != "T" else start


def _start(groups: dict[str, str | None]) -> datetime | None:
    """Returns the time from groups of digits; None if it is missing or does not exist."""
    if groups.get("year") is None:
        return None
    numbers = [int(groups.get(name) or 0) for name in ("year", "month", "day", "hour", "minute", "second")]
    try:
        return datetime(*numbers, tzinfo=zone_of(groups.get("zone")))  # type: ignore[arg-type, misc]
    except ValueError:
        return None


def zone_of(text: str | None) -> timezone | None:
    """Returns the time zone of an offset; `+0000` is a local time, while Z and UTC are not.

    Args:
        text: Such as `+0300`, `+03:00`, `+03`, Z or UTC; empty or None: no time zone.

    Raises:
        ValueError: If there is no such offset.
    """
    if not text:
        return None
    if text in ("Z", "UTC"):
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    minutes = (60 * int(digits[:2]) + int(digits[2:])) * (-1 if text[0] == "-" else 1)
    if minutes not in _UTC_OFFSETS_MIN or int(digits[2:]) % 15:
        raise ValueError(f"there is no time zone {text}")
    return timezone(timedelta(minutes=minutes), text)


def _site(prefix: str) -> str | None:
    """Returns the site in the text before a date."""
    prefix = _COPY.sub("", prefix).rstrip("_- .")
    if match := _ARCHIVE_SITE.fullmatch(prefix):
        return f"{match['collection']}_{match['site'] or match['number']}"
    return _CHANNELS.sub("", prefix) or None


def recorded_by_hour(recordings: Iterable[tuple[datetime, float]]) -> np.ndarray:
    """Returns the recorded time in each hour of the day.

    Args:
        recordings: Start of each recording, and its length in seconds.

    Returns:
        Seconds, shape `(24,)`.
    """
    recorded_s = np.zeros(DAY_H)
    for begin, duration_s in recordings:
        begin_s = begin.hour * 3600 + begin.minute * 60 + begin.second
        edges_s = 3600 * np.arange(begin_s // 3600, (begin_s + duration_s) // 3600 + 2)
        lasting_s = np.diff(np.clip(edges_s, begin_s, begin_s + duration_s))
        np.add.at(recorded_s, (edges_s[:-1] // 3600 % DAY_H).astype(int), lasting_s)
    return recorded_s
