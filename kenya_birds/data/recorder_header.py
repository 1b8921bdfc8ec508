"""Time and place that recorders write into their files, beside the sound.

Formats: AudioMoth's comment (OpenAcousticDevices/AudioMoth-Firmware-Basic, `setHeaderComment`), GUANO
(https://guano-md.org), Wildlife Acoustics' chunk `wamd` (as in wamd2guano of guano-py), Frontier Labs' Vorbis comments
in FLAC (as in QutEcoacoustics/emu), and the comment of opensoundscape, which contains that of the AudioMoth.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from kenya_birds.data.compressed_frames import read_at
from kenya_birds.data.recording_name import zone_of
from kenya_birds.data.sound_extent import LAYOUTS, MAX_CHUNKS, OpenFile, find_sound

# Longer notes are not from a recorder. Wildlife Acoustics' chunk may contain a voice note.
MAX_NOTE_BYTES = 2**22
# Clocks that were never set start in 1970 or 1980.
YEARS = range(1990, 2100)
# Times that differ less are the same: some recorders write the scheduled start, and the start of the first sample.
SAME_TIME = timedelta(seconds=60)
SHOWN_CHARACTERS = 60
_AUDIOMOTH = re.compile(
    r"Recorded at (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.\d+)? "
    r"(?P<day>\d\d)/(?P<month>\d\d)/(?P<year>\d{4})"
    r"(?: \(UTC(?P<zone>[+-]\d{1,2}(?::\d\d)?)?\))?"
)
_ISO = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:[.,]\d+)? ?(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?"
)
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
# Identifiers of fields in Wildlife Acoustics' chunk.
_WAMD_TIME, _WAMD_PLACE = 5, 6


@dataclass(frozen=True)
class RecorderHeader:
    """Time and place in a recording's header. All values are plain, so that they can be stored as JSON.

    Attributes:
        start: Start of the recording in ISO 8601, with an offset or Z if the header states its time zone; empty if
            unknown.
        latitude: Degrees, north is positive; None if unknown.
        longitude: Degrees, east is positive; None if unknown.
        source: Name of the format with the time, such as `GUANO`; empty if none.
        faults: Values that cannot be used, with the reason.
    """

    start: str = ""
    latitude: float | None = None
    longitude: float | None = None
    source: str = ""
    faults: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "RecorderHeader":
        """Makes it from its attributes as JSON."""
        return cls(**{**stored, "faults": tuple(stored["faults"])})

    @property
    def time(self) -> datetime | None:
        """Start of the recording, with a time zone if the header states one; None if unknown."""
        return _time(self.start) if self.start else None


NO_HEADER = RecorderHeader()


class _Note(NamedTuple):
    """Time and place in one of a file's notes, as texts that are not checked yet."""

    source: str
    time: str = ""
    place: tuple[str, str] | None = None
    fault: str = ""


def read_recorder_header(path: Path) -> RecorderHeader:
    """Reads time and place from the header of a WAV or FLAC file.

    If a file has several formats, the first of GUANO, Wildlife Acoustics, Frontier Labs, AudioMoth and opensoundscape
    is used; the others add what it lacks. Values that are impossible or cannot be read become faults; nothing is
    raised.

    Args:
        path: The recording.

    Returns:
        What is known; empty for other formats and for files that cannot be opened.
    """
    try:
        with path.open("rb", buffering=0) as file:
            kind = file.read(12)
            if kind.startswith(b"fLaC"):
                notes = list(_flac_notes(OpenFile(file, path.stat().st_size)))
            elif kind[:4] in (b"RIFF", b"RF64", b"BW64") and kind[8:] == b"WAVE":
                notes = list(_wave_notes(OpenFile(file, path.stat().st_size), path))
            else:
                notes = []
    except OSError as error:
        return RecorderHeader(faults=(error.strerror or str(error),))
    return _joined(sorted(notes, key=lambda note: _ORDER.index(note.source)))


def _joined(notes: list[_Note]) -> RecorderHeader:
    """Joins notes in the order of their importance."""
    times: list[tuple[str, datetime]] = []
    places: list[tuple[str, tuple[float, float]]] = []
    faults = [f"{note.source}: {note.fault}" for note in notes if note.fault]
    for note in notes:
        try:
            if note.time:
                times.append((note.source, _time(note.time)))
        except ValueError as error:
            faults.append(f"{note.source}: the time {_shown(note.time)} {_reason(error, 'does not exist')}")
        try:
            if note.place is not None:
                places.append((note.source, _place(*note.place)))
        except ValueError as error:
            faults.append(f"{note.source}: the place {_shown(' '.join(note.place or ()))} {_reason(error, '')}")
    source, start = times[0] if times else ("", None)
    for other, time in times[1:]:
        if start is not None and not is_same_time(start, time):
            faults.append(f"{source} states {_iso(start)} and {other} {_iso(time)}: the first is used")
    latitude, longitude = places[0][1] if places else (None, None)
    return RecorderHeader("" if start is None else _iso(start), latitude, longitude, source, tuple(faults))


def is_same_time(one: datetime, other: datetime) -> bool:
    """Whether two times agree to a minute; if one has no time zone, their clocks are compared."""
    if (one.tzinfo is None) != (other.tzinfo is None):
        one, other = one.replace(tzinfo=None), other.replace(tzinfo=None)
    return abs(one - other) <= SAME_TIME


class _Refused(ValueError):
    """Raised for a value that can be read, but is impossible; the message is the reason."""


def _reason(error: ValueError, usual: str) -> str:
    return str(error) if isinstance(error, _Refused) else usual or "cannot be read"


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return f"'{text[:SHOWN_CHARACTERS]}{'...' if len(text) > SHOWN_CHARACTERS else ''}'"


def _time(text: str) -> datetime:
    """Parses ISO 8601; raises `ValueError` for a time that does not exist or is not a recording's."""
    match = _ISO.fullmatch(text.strip())
    if match is None:
        raise _Refused("cannot be read: expected a time such as 2021-12-07T15:38:52+03:00")
    time = datetime.fromisoformat(f"{match['date']}T{match['time']}").replace(tzinfo=zone_of(match["zone"]))
    if time.year not in YEARS:
        raise _Refused("is not a recording's: the clock was not set")
    return time


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z") if time.tzinfo is UTC else time.isoformat()


def _place(latitude: str, longitude: str) -> tuple[float, float]:
    """Parses coordinates in degrees; raises `ValueError` if they are impossible."""
    if not all(re.fullmatch(_NUMBER, text.strip()) for text in (latitude, longitude)):
        raise ValueError
    place = float(latitude), float(longitude)
    if abs(place[0]) > 90 or abs(place[1]) > 180:
        raise _Refused("is not on Earth: expected a latitude of -90 to 90 and a longitude of -180 to 180")
    if place == (0, 0):
        raise _Refused("means that there was no satellite signal")
    return place


def _wave_notes(file: OpenFile, path: Path) -> Iterator[_Note]:
    layout, at = LAYOUTS[b"RIFF"], LAYOUTS[b"RIFF"].first
    for _ in range(MAX_CHUNKS):
        found = file.chunk(layout, at)
        if found is None:
            return
        name, begin, size = found
        if name == b"data":
            # The header's size may be wrong.
            extent = find_sound(path)
            if extent is None or extent.begin != begin:
                return
            at = file.behind(layout, extent.end)
            continue
        if name in _READERS:
            data = read_at(file.file, begin, min(size, MAX_NOTE_BYTES))
            yield from _READERS[name](data)
            if begin + size > file.size:
                yield _Note(_SOURCES[name], fault=f"{begin + size - file.size} bytes are missing at its end")
        at = file.behind(layout, begin + size)


def _info_notes(data: bytes) -> Iterator[_Note]:
    """Reads comments in a chunk `LIST` of the type `INFO`."""
    at = 4
    while data[:4] == b"INFO" and at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"ICMT":
            yield from _comment_notes(_text(data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2


def _comment_notes(comment: str) -> Iterator[_Note]:
    """Reads a comment of an AudioMoth, or of opensoundscape with the original comment in it."""
    if comment.startswith("opso_metadata{"):
        try:
            about = json.loads(comment.removeprefix("opso_metadata"))
        except (ValueError, RecursionError):
            yield _Note("opensoundscape", fault="its comment is not valid JSON")
            return
        # It knows where the original recording was cut; the original comment has the start of the whole.
        start = about.get("recording_start_time")
        if isinstance(start, str) and start:
            yield _Note("opensoundscape", time=start.replace("+00:00", "Z"))  # Python's form of UTC
        elif isinstance(inner := about.get("comment"), str):
            yield from _comment_notes(inner.removeprefix("opso_metadata"))
        return
    if match := _AUDIOMOTH.search(comment):
        hours, _, minutes = (match["zone"] or "").partition(":")
        zone = f"{int(hours):+03d}:{minutes or '00'}" if hours else "Z"
        time = "{year}-{month}-{day}T{hour}:{minute}:{second}".format(**match.groupdict())
        yield _Note("AudioMoth", time=time + zone)
    elif "AudioMoth" in comment:
        yield _Note("AudioMoth", fault=f"its comment has an unknown form: {_shown(comment)}")


def _guano_notes(data: bytes) -> Iterator[_Note]:
    fields = {}
    for line in _text(data).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields[key.strip()] = value.strip()
    place = fields.get("Loc Position", "").split()
    if not fields:
        yield _Note("GUANO", fault="it has no fields")
    else:
        pair = (place[0], " ".join(place[1:])) if place else None
        yield _Note("GUANO", time=fields.get("Timestamp", ""), place=pair)


def _wamd_notes(data: bytes) -> Iterator[_Note]:
    """Reads Wildlife Acoustics' fields: an identifier of 16 bits, a size of 32 bits, and the content."""
    at, fields = 0, {}
    while at + 6 <= len(data):
        number, size = struct.unpack_from("<HI", data, at)
        if number in (_WAMD_TIME, _WAMD_PLACE) and at + 6 + size <= len(data):
            fields[number] = _text(data[at + 6 : at + 6 + size])
        at += 6 + size
    parts = [part.strip() for part in fields.get(_WAMD_PLACE, "").split(",")]
    place = None
    if len(parts) >= 5 and parts[2] in ("N", "S"):  # WGS84,LATITUDE,N,LONGITUDE,E
        place = ("-" * (parts[2] == "S") + parts[1], "-" * (parts[4] == "W") + parts[3])
    elif len(parts) >= 3:  # WGS84,LATITUDE,LONGITUDE
        place = (parts[1], parts[2])
    yield _Note("Wildlife Acoustics", time=fields.get(_WAMD_TIME, ""), place=place)


def _flac_notes(file: OpenFile) -> Iterator[_Note]:
    at = 4
    while len(head := read_at(file.file, at, 4)) == 4:
        size = int.from_bytes(head[1:])
        if head[0] & 127 == 4:
            yield from _vorbis_notes(read_at(file.file, at + 4, size))
        elif head[0] & 127 == 2:  # `flac --keep-foreign-metadata` keeps the chunks of a WAV file
            yield from _kept_notes(read_at(file.file, at + 4, size))
        at += 4 + size
        if head[0] & 128:
            return


def _kept_notes(data: bytes) -> Iterator[_Note]:
    if data[:4] == b"riff" and data[4:8] in _READERS:
        yield from _READERS[data[4:8]](data[12:])


def _vorbis_notes(data: bytes) -> Iterator[_Note]:
    fields = {}
    try:
        at = 4 + struct.unpack_from("<I", data)[0]
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        for _ in range(min(count, MAX_CHUNKS)):
            (size,) = struct.unpack_from("<I", data, at)
            key, _, value = _text(data[at + 4 : at + 4 + size]).partition("=")
            fields[key.strip().lower()] = value.strip()
            at += 4 + size
    except struct.error:
        pass  # the rest is missing: the fields before it can be used
    if "recordingstart" in fields or "sensorlocation" in fields:
        place = re.findall(_NUMBER, fields.get("sensorlocation", ""))
        pair = (place[0], " ".join(place[1:])) if place else None
        yield _Note("Frontier Labs", time=fields.get("recordingstart", ""), place=pair)
    for key in ("comment", "description"):
        yield from _comment_notes(fields.get(key, ""))


def _text(data: bytes) -> str:
    """Decodes UTF-8, or Latin-1 of old programs, up to the first zero byte."""
    data = data.partition(b"\0")[0]
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        return data.decode("latin-1").strip()


_READERS: dict[bytes, Callable[[bytes], Iterator[Any]]] = {
    b"LIST": _info_notes,
    b"guan": _guano_notes,
    b"wamd": _wamd_notes,
}
_SOURCES = {b"LIST": "AudioMoth", b"guan": "GUANO", b"wamd": "Wildlife Acoustics"}
_ORDER = ("GUANO", "Wildlife Acoustics", "Frontier Labs", "AudioMoth", "opensoundscape")
