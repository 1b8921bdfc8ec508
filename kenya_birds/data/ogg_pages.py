"""Checks the pages of an Ogg file: their checksums, their numbers, and whether the last one is there."""

import zlib
from pathlib import Path
from typing import BinaryIO

MARK = b"OggS"
HEADER_BYTES = 27
LARGEST_PAGE_BYTES = HEADER_BYTES + 255 + 255 * 255
FIRST, LAST = 2, 4  # flags of a page
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def find_ogg_damage(path: Path) -> tuple[int, str] | None:
    """Finds the first damage; FFmpeg leaves out a damaged page without a word.

    Streams that follow each other in one file (chained) are whole if each of them ends.

    Returns:
        (byte from which on packets are not certain, what is wrong there); None if every page is intact and in its
        place. Where only the end is missing, the byte is the one after the last intact page.
    """
    numbers: dict[bytes, int] = {}  # the next page's, of each stream that has not ended
    has_sound = False  # whether there were pages after the first pages of the streams
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
    return (at, "its last Ogg page is missing: the file was cut off") if numbers else None


def _read_page(file: BinaryIO, at: int) -> bytes | None:
    """The page that begins at a byte; None if there is none, or its checksum is false."""
    file.seek(at)
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MARK):
        return None
    sizes = file.read(header[26])
    page = header + sizes + file.read(sum(sizes))
    if len(page) != HEADER_BYTES + header[26] + sum(sizes):
        return None
    # Ogg's checksum is that of zlib with the bits in reverse order, and without its inversions.
    reversed_page = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    checksum = zlib.crc32(reversed_page, 2**32 - 1) ^ (2**32 - 1)
    return page if int(f"{checksum:032b}"[::-1], 2) == int.from_bytes(page[22:26], "little") else None


def _find_page(file: BinaryIO, at: int) -> int | None:
    """Byte at which the next intact page begins."""
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
