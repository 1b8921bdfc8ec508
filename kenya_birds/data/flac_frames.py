"""Finds the frames of a FLAC file, damaged or not, by their headers: each says which samples it holds."""

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

CHUNK_BYTES = 2**16
HEADER_BYTES = 16  # at most


def _crc_table(bits: int, polynomial: int) -> list[int]:
    """What each byte turns an all-zero checksum into."""
    table = [value << (bits - 8) for value in range(256)]
    for _ in range(8):
        table = [(value << 1 ^ polynomial * (value >> (bits - 1))) & ((1 << bits) - 1) for value in table]
    return table


CRC8 = _crc_table(8, 0x07)
CRC16 = _crc_table(16, 0x8005)


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """At most `size` bytes of an open file from a byte offset on; unlike `os.pread`, Windows has it."""
    file.seek(offset)
    return file.read(size)


def flac_headers(
    file: BinaryIO, block_frames: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int]]:
    """Finds every frame header whose checksum is true; one in some 10^7 bytes only looks like one.

    Args:
        file: A FLAC file.
        block_frames: Most samples of a frame; where the headers count frames, each but the last has as many.
        start: Byte from which on to look.
        stop: Byte before which to look; by default the end.

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
    """Those of `flac_headers` whose next one is where it should be: what only looks like a header is not."""
    pairs = pairwise(flac_headers(file, block_frames, start, stop))
    return (header for header, (_, place) in pairs if 0 < place - header[1] <= block_frames)


def find_flac_frame(file: BinaryIO, block_frames: int, sample: int) -> int:
    """Byte offset of a frame header that is not after `sample`, and at most a few frames before it."""
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
    """Lengths that a frame at the start of `data` may have by its checksum, which comes last; one of them is right."""
    checksum = 0
    for length, byte in enumerate(data, 1):
        checksum = (checksum << 8 & 0xFFFF) ^ CRC16[checksum >> 8 ^ byte]
        if not checksum:
            yield length


def _first_sample(header: bytes, block_frames: int) -> int | None:
    """The number of a frame's first sample; None if this is not a frame header."""
    if len(header) < 6:
        return None
    # What RFC 9639 keeps for later or forbids: block size 0, rate 15, channels from 11 on, depth 3, and a bit.
    if header[2] < 16 or header[2] & 15 == 15 or header[3] >= 0xB0 or header[3] >> 1 & 7 == 3 or header[3] & 1:
        return None
    # The frame's number is written like a character in UTF-8, in up to 7 bytes; the header's checksum comes last.
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
