"""Follows the frames of MP3 and AAC files, which have no container: what is between them is a tag, or damage."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

LARGEST_FRAME_BYTES = 8191
# Where the header that counts frames begins in its frame; the larger its side information, the later.
_COUNT_OFFSETS = (13, 21, 36)
_V1_LAYER_3 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s
_V1_LAYER_2 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_V2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = (44_100, 48_000, 32_000)
_ID3V1_BYTES = 128
# Players ignore what stands behind the sound; writers fill up disk clusters with zeros. Much of it is lost sound.
MOST_JUNK_BYTES = 2**16
MOST_JUNK_SHARE = 1 / 8
# So many frames in a row are sound: what only looks like the header of one is common in other data.
_FRAMES_IN_A_ROW = 3


@dataclass(frozen=True)
class MpegFrames:
    """What is in a file.

    Attributes:
        promised_frames: How many frames of sound a header of `Xing`, `Info` or `VBRI` promises; None without one.
        no_sound: (first byte, byte behind the last) of everything that is no sound and no damage.
        damage: (byte, what is wrong from there on); None if nothing is.
    """

    promised_frames: int | None
    no_sound: tuple[tuple[int, int], ...]
    damage: tuple[int, str] | None


def follow_frames(path: Path) -> MpegFrames:
    """Follows a file from frame to frame."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        at = _find_frames(file, 0)
        if at is None:  # layer I, or no bitrate in the headers: FFmpeg alone can judge
            return MpegFrames(None, (), None)
        promised = frame_count(_read(file, at, LARGEST_FRAME_BYTES)[: frame_bytes(_read(file, at, 7))])
        no_sound, damage = [(0, at)], None
        last = at
        while at < size:
            length = frame_bytes(_read(file, at, 7))
            if length:
                last, at = at, at + length
                continue
            tag = tag_bytes(_read(file, at, MOST_JUNK_BYTES))
            if tag:
                no_sound.append((at, at + tag))
                at += tag
                continue
            following = _find_frames(file, at)
            if following is not None:
                damage = at, "what stands between two frames is no sound"
            elif size - at <= min(MOST_JUNK_BYTES, MOST_JUNK_SHARE * at):
                no_sound.append((at, size))
            else:
                damage = at, f"its last {size - at} bytes are no sound"
            break
        if damage is None and last + frame_bytes(_read(file, last, 7)) > size:
            damage = last, "its last frame is not complete: the file was cut off"
    return MpegFrames(promised, tuple(no_sound), damage)


def frame_count(frame: bytes) -> int | None:
    """Number of frames that a header of `Xing`, `Info` or `VBRI` in a frame promises; None if there is none."""
    for offset in _COUNT_OFFSETS:
        name, content = frame[offset : offset + 4], frame[offset:]
        if name == b"VBRI":
            return int.from_bytes(content[14:18]) or None
        if name in (b"Xing", b"Info") and len(content) >= 12 and content[7] & 1:
            return int.from_bytes(content[8:12]) or None
    return None


def frame_bytes(header: bytes) -> int:
    """Size of a frame of MPEG layer II or III or of AAC, by its first 7 bytes; 0 if they do not begin one."""
    if len(header) < 7 or header[0] != 0xFF or header[1] < 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)  # version 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    if layer == 4 and version >= 2:  # AAC in ADTS
        length = int.from_bytes(header[3:6]) >> 5 & 0x1FFF
        return length if length > 7 and header[2] >> 2 & 15 < 13 else 0
    rate, bitrate, padding = header[2] >> 2 & 3, header[2] >> 4, header[2] >> 1 & 1
    if version == 1 or layer not in (2, 3) or rate == 3 or bitrate == 15:
        return 0
    rate_hz = _RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kbps = (_V2 if version != 3 else _V1_LAYER_3 if layer == 3 else _V1_LAYER_2)[bitrate]
    slots = 72 if layer == 3 and version != 3 else 144
    return slots * kbps * 1000 // rate_hz + padding if kbps else 0


def tag_bytes(data: bytes) -> int:
    """Size of the tag (ID3, APE or Lyrics3) at the start of `data`, all of which need not be there; 0 without one."""
    if data.startswith(b"ID3") and len(data) >= 10:
        size = sum((byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        return 10 + size + (10 if data[5] & 16 else 0)
    if data.startswith(b"APETAGEX") and len(data) >= 24:
        size = int.from_bytes(data[12:16], "little")
        return 32 + (size if data[23] & 32 else 0)  # else it is a footer
    if data.startswith(b"TAG"):
        return _ID3V1_BYTES
    lyrics = re.match(rb"LYRICSBEGIN.*?(LYRICS200|LYRICSEND)", data, re.DOTALL)
    return lyrics.end() if lyrics else 0


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _find_frames(file: BinaryIO, at: int) -> int | None:
    """Byte at which the next frames begin, tags at `at` left out."""
    while tag := tag_bytes(_read(file, at, MOST_JUNK_BYTES)):
        at += tag
    while data := _read(file, at, 2**16):
        for match in re.finditer(rb"\xff[\xe0-\xff]", data):
            if _is_row(file, at + match.start()):
                return at + match.start()
        if len(data) < 2**16:
            break
        at += len(data) - 1
    return None


def _is_row(file: BinaryIO, at: int) -> bool:
    """Whether frames of one kind follow on each other from a byte on, up to the end if it is near."""
    first = _read(file, at, 7)
    for _ in range(_FRAMES_IN_A_ROW):
        header = _read(file, at, 7)
        # The same version, layer and sampling rate.
        if not frame_bytes(header) or header[1] & 0xFE != first[1] & 0xFE or header[2] & 0x0C != first[2] & 0x0C:
            return not header and at > 0
        at += frame_bytes(header)
    return True
