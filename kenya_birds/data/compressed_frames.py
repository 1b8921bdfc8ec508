"""Search for frames of FLAC and MPEG audio and for pages of Ogg in the bytes of a file."""

import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 2**16
HEADER_BYTES = 16  # at most
UNKNOWN_BYTES = 2**31 - 1  # sizes from here on are placeholders: AVI files have parts of at most 1 or 2 GB


def _crc_table(bits: int, polynomial: int) -> list[int]:
    """Returns the checksum of each byte value, starting from zero."""
    table = [value << (bits - 8) for value in range(256)]
    for _ in range(8):
        table = [(value << 1 ^ polynomial * (value >> (bits - 1))) & ((1 << bits) - 1) for value in table]
    return table


CRC8 = _crc_table(8, 0x07)
CRC16 = _crc_table(16, 0x8005)


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Reads at most `size` bytes of an open file at a byte offset; unlike `os.pread`, this works on Windows.

    Args:
        file: The open file.
        offset: Byte offset.
        size: Largest number of bytes.
    """
    file.seek(offset)
    return file.read(size)


def flac_headers(
    file: BinaryIO, block_frames: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int]]:
    """Finds every frame header with a correct checksum; there is about one false match in 10^7 bytes.

    Args:
        file: A FLAC file.
        block_frames: Largest number of samples in a frame. If headers count frames, each frame but the last has it.
        start: First byte of the search.
        stop: The byte after the last one; by default the end of the file.

    Yields:
        (byte offset, first sample) of each frame.
    """
    stop = os.fstat(file.fileno()).st_size if stop is None else stop
    for begin in range(start, stop, CHUNK_BYTES):
        data = read_at(file, begin, CHUNK_BYTES + HEADER_BYTES)
        for match in re.finditer(rb"\xff[\xf8\xf9]", data):
            if match.start() < min(CHUNK_BYTES, stop - begin):
                place = _first_sample(data[match.start() : match.start() + HEADER_BYTES], block_frames)
                if place is not None:
                    yield begin + match.start(), place


def followed_headers(file: BinaryIO, block_frames: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yields the headers of `flac_headers` whose next header has the expected position, which excludes false matches.

    Args:
        file: A FLAC file.
        block_frames: Largest number of samples in a frame.
        start: First byte of the search.
        stop: The byte after the last one.
    """
    pairs = pairwise(flac_headers(file, block_frames, start, stop))
    return (header for header, (_, place) in pairs if 0 < place - header[1] <= block_frames)


def find_flac_frame(file: BinaryIO, block_frames: int, sample: int) -> int:
    """Returns the byte offset of a frame header at most a few frames before `sample`.

    Args:
        file: A FLAC file.
        block_frames: Largest number of samples in a frame.
        sample: Index of the sample.
    """
    low, high = 0, os.fstat(file.fileno()).st_size
    while high - low > CHUNK_BYTES:
        middle = (low + high) // 2
        offset, place = next(followed_headers(file, block_frames, middle, high), (high, sample + 1))
        if place > sample:
            high = middle
        else:
            low = offset
    return low


def possible_ends(data: bytes) -> Iterator[int]:
    """Yields the possible lengths of the frame at the start of `data`, by the checksum at the frame's end."""
    checksum = 0
    for length, byte in enumerate(data, 1):
        checksum = (checksum << 8 & 0xFFFF) ^ CRC16[checksum >> 8 ^ byte]
        if not checksum:
            yield length


def _first_sample(header: bytes, block_frames: int) -> int | None:
    """Returns the index of a frame's first sample; None if this is not a frame header."""
    if len(header) < 6:
        return None
    # Values that RFC 9639 reserves or forbids: block size 0, rate 15, channels from 11 on, depth 3, and a bit.
    if header[2] < 16 or header[2] & 15 == 15 or header[3] >= 0xB0 or header[3] >> 1 & 7 == 3 or header[3] & 1:
        return None
    # The frame's number is coded like a UTF-8 character, in up to 7 bytes; the header's checksum comes last.
    ones = 8 - (header[4] ^ 255).bit_length()
    size = 4 + max(ones, 1) + {6: 1, 7: 2}.get(header[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if ones in (1, 8) or size >= len(header):
        return None
    checksum = 0
    for byte in header[:size]:
        checksum = CRC8[checksum ^ byte]
    if checksum != header[size]:
        return None
    number = header[4] & (127 >> ones)
    for byte in header[5 : 4 + max(ones, 1)]:
        number = number << 6 | byte & 63
    return number if header[1] & 1 else number * block_frames


MARK = b"OggS"
PAGE_HEADER_BYTES = 27
FIRST, LAST = 2, 4  # flags of a page
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def find_ogg_damage(path: Path) -> tuple[int, str] | None:
    """Finds the first damage of an Ogg file; FFmpeg skips damaged pages without an error.

    Consecutive streams in one file (chained) are complete if each of them has its last page.

    Returns:
        (byte from which on packets are uncertain, description of the damage); None if every page is intact. If only
        the end is missing, the byte is the one after the last intact page.
    """
    numbers: dict[bytes, int] = {}  # number of the next page, of each stream without its last page
    has_sound = False  # whether pages followed the first pages of the streams
    at = 0
    with path.open("rb") as file:
        while True:
            page = _read_page(file, at)
            if page is None:
                following = _find_page(file, at + 1)
                if following is None:
                    break
                if numbers:
                    return at, "an Ogg page is damaged"
                at = following
                continue
            flags, stream, number = page[5], page[14:18], int.from_bytes(page[18:22], "little")
            if flags & FIRST:
                if numbers and has_sound:
                    return at, "the end of a stream is missing"
                has_sound = False
            elif numbers.get(stream) != number:
                return at, "an Ogg page is missing"
            else:
                has_sound = True
            numbers[stream] = number + 1
            if flags & LAST:
                del numbers[stream]
            at += len(page)
    return (at, "its last Ogg page is missing: the file is truncated") if numbers else None


def find_missing_avi(path: Path) -> tuple[int, str] | None:
    """Finds whether the end of an AVI file is missing; FFmpeg reads what there is without an error.

    Returns:
        (size of the file in bytes, description of the damage); None if the file, which may consist of several parts,
        has all sound that its headers promise, or they promise none, as those of a recorder that was switched off.
    """
    size = path.stat().st_size
    part = 0
    with path.open("rb") as file:
        while (header := read_at(file, part, 12))[:4] == b"RIFF" and len(header) == 12:
            part_end = part + 8 + int.from_bytes(header[4:8], "little")
            at = part + 12
            while at < min(part_end, size) and len(chunk := read_at(file, at, 12)) == 12:
                if chunk[:4] == bytes(4):
                    break  # zeros are no chunk
                end = at + 8 + int.from_bytes(chunk[4:8], "little")
                if chunk[:4] == b"LIST" and chunk[8:] == b"movi" and size < end < at + UNKNOWN_BYTES:
                    return size, "its header promises more sound: the file is truncated"
                at = end + end % 2
            part = part_end + part_end % 2
    return None


def _read_page(file: BinaryIO, at: int) -> bytes | None:
    """Returns the page that begins at a byte; None if there is no page with a correct checksum."""
    file.seek(at)
    header = file.read(PAGE_HEADER_BYTES)
    if len(header) < PAGE_HEADER_BYTES or not header.startswith(MARK):
        return None
    sizes = file.read(header[26])
    page = header + sizes + file.read(sum(sizes))
    if len(page) != PAGE_HEADER_BYTES + header[26] + sum(sizes):
        return None
    # Ogg's checksum is zlib's with reversed bits and without inversions.
    reversed_page = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    checksum = zlib.crc32(reversed_page, 2**32 - 1) ^ (2**32 - 1)
    return page if int(f"{checksum:032b}"[::-1], 2) == int.from_bytes(page[22:26], "little") else None


def _find_page(file: BinaryIO, at: int) -> int | None:
    """Returns the byte at which the next intact page begins."""
    file.seek(at)
    kept = b""
    while data := file.read(2**20):
        begin, data = at - len(kept), kept + data
        mark = data.find(MARK)
        while mark >= 0:
            if _read_page(file, begin + mark) is not None:
                return begin + mark
            mark = data.find(MARK, mark + 1)
        at = begin + len(data)
        kept = data[-len(MARK) + 1 :]
        file.seek(at)
    return None


LARGEST_FRAME_BYTES = 8191
# Offsets of the header with the frame count in its frame; they depend on the size of the side information.
_COUNT_OFFSETS = (13, 21, 36)
_V1_LAYER_3 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s
_V1_LAYER_2 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_V2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = (44_100, 48_000, 32_000)
_ID3V1_BYTES = 128
# A little other data after the sound is ignored, as players do (writers fill disk clusters with zeros). More than this
# is treated as lost sound.
MOST_JUNK_BYTES = 2**16
MOST_JUNK_SHARE = 1 / 8
# Number of consecutive frames that are accepted as sound; single false matches are common in other data.
_FRAMES_IN_A_ROW = 3


@dataclass(frozen=True)
class MpegFrames:
    """Structure of an MPEG audio file.

    Attributes:
        promised_frames: Number of frames in a `Xing`, `Info` or `VBRI` header; None without such a header.
        no_sound: (first byte, byte after the last) of each section without sound, such as tags.
        damage: (first byte, description of the damage); None without damage.
    """

    promised_frames: int | None
    no_sound: tuple[tuple[int, int], ...]
    damage: tuple[int, str] | None


def follow_frames(path: Path) -> MpegFrames:
    """Reads the headers of a file from frame to frame."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        at = _find_frames(file, 0)
        if at is None:  # layer I, or no bitrate in the headers: left to FFmpeg
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
                damage = at, "the data between two frames is not sound"
            elif size - at <= min(MOST_JUNK_BYTES, MOST_JUNK_SHARE * at):
                no_sound.append((at, size))
            else:
                damage = at, f"its last {size - at} bytes are not sound"
            break
        if damage is None and last + frame_bytes(_read(file, last, 7)) > size:
            damage = last, "its last frame is incomplete: the file is truncated"
    return MpegFrames(promised, tuple(no_sound), damage)


def frame_count(frame: bytes) -> int | None:
    """Returns the number of frames in a `Xing`, `Info` or `VBRI` header; None without such a header."""
    for offset in _COUNT_OFFSETS:
        name, content = frame[offset : offset + 4], frame[offset:]
        if name == b"VBRI":
            return int.from_bytes(content[14:18]) or None
        if name in (b"Xing", b"Info") and len(content) >= 12 and content[7] & 1:
            return int.from_bytes(content[8:12]) or None
    return None


def frame_bytes(header: bytes) -> int:
    """Returns the size of a frame of MPEG layer II or III or AAC, from its first 7 bytes; 0 if there is no frame."""
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
    """Returns the size of the tag (ID3, APE or Lyrics3) that begins at the start of `data`; 0 without a tag."""
    if data.startswith(b"ID3") and len(data) >= 10:
        size = sum((byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        return 10 + size + (10 if data[5] & 16 else 0)
    if data.startswith(b"APETAGEX") and len(data) >= 24:
        size = int.from_bytes(data[12:16], "little")
        return 32 + (size if data[23] & 32 else 0)  # otherwise it is a footer
    if data.startswith(b"TAG"):
        return _ID3V1_BYTES
    lyrics = re.match(rb"LYRICSBEGIN.*?(LYRICS200|LYRICSEND)", data, re.DOTALL)
    return lyrics.end() if lyrics else 0


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _find_frames(file: BinaryIO, at: int) -> int | None:
    """Returns the byte at which the next frames begin, after tags at `at`."""
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
    """Returns True if consecutive frames of one kind begin at a byte, possibly up to the end of the file."""
    first = _read(file, at, 7)
    for _ in range(_FRAMES_IN_A_ROW):
        header = _read(file, at, 7)
        # The same version, layer and sampling rate.
        if not frame_bytes(header) or header[1] & 0xFE != first[1] & 0xFE or header[2] & 0x0C != first[2] & 0x0C:
            return not header and at > 0
        at += frame_bytes(header)
    return True
