"""Position of the sound in a file, checked against the header, which may state too much or too little sound.

Decoders trust the header. They read 10 s of a WAV file of hours whose 32-bit size overflowed at 4 GiB, and read the
first half of a broken download as a complete file.
"""

import io
import math
import re
import struct
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kenya_birds.data.compressed_frames import flac_headers, followed_headers, read_at

# Sizes have 32 bits in RIFF, AIFF and AU.
WRAP_BYTES = 2**32
# Writers of streams set an unknown size to the largest number, minus a header.
UNKNOWN_SIZES = tuple(range(size - 4096, size + 4096) for size in (0x7F000000, 2**31, 2**32))
# Larger 64-bit sizes, weeks of sound, are damaged.
MAX_SOUND_BYTES = 2**38
# Upper limit, above that of silence in the largest FLAC frames.
MAX_FLAC_SAMPLES_PER_BYTE = 2**13
# Fewer bytes after the last chunk are not missing sound, but a tag or the rest of a disk block.
LEAST_REST_BYTES = 2**16
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
JOINED_FLAC = "a second FLAC file joined to the first, which is not read"
# Chunks without sound, which may be truncated at the end of a file.
NOTES = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"guan", b"wamd", b"cue ", b"fact", b"PEAK", b"smpl")
MAX_CHUNKS = 10_000
# Number of places checked in a FLAC file, and of bytes at its end (two frames or more).
FLAC_PLACES, FLAC_TAIL_BYTES = 8, 2**18


class Layout(NamedTuple):
    """Chunk structure of a container.

    Attributes:
        first: Byte offset of the first chunk.
        name_bytes: Length of a chunk's name.
        number: Byte order of numbers, as in `struct`.
        size: Type of a chunk's size, as in `struct`.
        is_whole: Whether the size includes the chunk's name and size.
        align: Chunks begin at multiples of this number of bytes.
    """

    first: int
    name_bytes: int
    number: str
    size: str
    is_whole: bool
    align: int


LAYOUTS = {
    b"RIFF": Layout(12, 4, "<", "I", False, 2),
    b"RF64": Layout(12, 4, "<", "I", False, 2),
    b"BW64": Layout(12, 4, "<", "I", False, 2),
    b"RIFX": Layout(12, 4, ">", "I", False, 2),
    b"FORM": Layout(12, 4, ">", "I", False, 2),
    b"caff": Layout(8, 4, ">", "q", False, 1),
    b"riff": Layout(40, 16, "<", "Q", True, 8),  # W64: names are GUIDs that begin with those of RIFF
}
KINDS = {b"FORM": (b"AIFF", b"AIFC"), b"caff": (b"",), b"riff": (b"",)}  # by default WAVE


@dataclass(frozen=True)
class SampleForm:
    """Sample format.

    Attributes:
        block_bytes: Bytes of a block; without compression, one sample of each channel.
        block_frames: Samples per channel in a block.
        raw: Arguments with which libsndfile reads the samples without a header; empty if unknown.
    """

    block_bytes: int
    block_frames: int = 1
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SoundExtent:
    """Position of the sound in a file.

    Attributes:
        begin: First byte.
        end: The byte after the last existing one.
        lost_bytes: Bytes that are missing, or exist but are not read.
        reason: Reason for the lost bytes, else empty.
        form: Sample format; None if the number of samples does not follow from the number of bytes.
        is_length_wrong: Whether the header's number of samples is impossible, so that samples must be counted.
    """

    begin: int
    end: int
    lost_bytes: int = 0
    reason: str = ""
    form: SampleForm | None = None
    is_length_wrong: bool = False

    @property
    def frames(self) -> int | None:
        """Number of existing samples per channel; None if it does not follow from the bytes."""
        if self.form is None:
            return None
        return (self.end - self.begin) // self.form.block_bytes * self.form.block_frames

    @property
    def raw(self) -> dict[str, Any]:
        """Arguments with which libsndfile reads the samples without a header; empty if unknown."""
        return {} if self.form is None else self.form.raw

    def promised_frames(self, found: int) -> int:
        """Returns the number of samples per channel, lost ones included.

        Args:
            found: Number of samples that a decoder finds.
        """
        here_bytes = self.end - self.begin
        if not self.lost_bytes or not here_bytes:
            return found
        if self.form is None:
            return found + math.ceil(found * self.lost_bytes / here_bytes)
        return max(found, (here_bytes + self.lost_bytes) // self.form.block_bytes * self.form.block_frames)


def find_sound(path: Path) -> SoundExtent | None:
    """Finds the position of the sound in a WAV, RF64, BW64, W64, AIFF, CAF, AU, NIST or FLAC file.

    Returns:
        The position; None for other formats, files that are too damaged, and FLAC files with a plausible header.
    """
    try:
        with path.open("rb", buffering=0) as file:
            start = file.read(1024)
            size = file.seek(0, io.SEEK_END)
            if start[:4] in (b".snd", b"dns."):
                return _au_sound(OpenFile(file, size), start)
            if start.startswith(b"fLaC"):
                return _flac_sound(OpenFile(file, size), start)
            if start.startswith(b"NIST_1A\n"):
                return _nist_sound(OpenFile(file, size), start)
            if start[8:12].startswith(KINDS.get(start[:4], (b"WAVE",))) and start[:4] in LAYOUTS:
                return _chunked_sound(OpenFile(file, size), start[:4], LAYOUTS[start[:4]])
    except (OSError, struct.error, ValueError, ArithmeticError, LookupError):
        pass
    return None


class SoundBytes(io.RawIOBase):
    """File object that contains only the sound of a file, without headers.

    Args:
        path: The file.
        begin: First byte of the sound.
        end: The byte after the last one.
    """

    def __init__(self, path: Path, begin: int, end: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._begin, self._end = begin, end
        self._file.seek(begin)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a byte of the sound; see `io.IOBase.seek`."""
        start = {io.SEEK_SET: self._begin, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._end}[whence]
        return self._file.seek(start + offset) - self._begin

    def tell(self) -> int:
        """Returns the position in the sound, in bytes."""
        return self._file.tell() - self._begin

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, up to the end of the sound."""
        view = memoryview(buffer).cast("B")
        return self._file.readinto(view[: max(min(len(view), self._end - self._file.tell()), 0)])

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


class OpenFile(NamedTuple):
    """An open file and its size in bytes."""

    file: BinaryIO
    size: int

    def chunk(self, layout: Layout, at: int) -> tuple[bytes, int, int] | None:
        """Returns name, first byte and size of the chunk at a byte; None without a chunk."""
        head_bytes = layout.name_bytes + struct.calcsize("<" + layout.size)
        head = read_at(self.file, at, head_bytes)
        # A GUID may have any bytes.
        if len(head) < head_bytes or (layout.name_bytes == 4 and not all(32 <= byte < 127 for byte in head[:4])):
            return None
        (size,) = struct.unpack(layout.number + layout.size, head[layout.name_bytes :])
        return head[:4], at + head_bytes, size - (head_bytes if layout.is_whole else 0)

    def behind(self, layout: Layout, end: int) -> int:
        """Returns where the next chunk begins; some writers do not align it."""
        aligned = end + -end % layout.align
        return end if aligned > end and self.chunk(layout, end) and not self.chunk(layout, aligned) else aligned

    def is_zero(self, begin: int) -> bool:
        """Returns True if all samples of bytes after a position are zero."""
        step = max((self.size - begin) // 64, 4096)
        return not any(read_at(self.file, at, 4096).strip(b"\0") for at in range(begin, self.size, step))

    def missed(self, begin: int) -> int:
        """Returns the number of bytes after a position if they may be sound outside all chunks; else 0."""
        rest = self.size - begin
        is_other = rest < LEAST_REST_BYTES or read_at(self.file, begin, 16).startswith(TAGS) or self.is_zero(begin)
        return 0 if is_other else rest


def _chunked_sound(file: OpenFile, container: bytes, layout: Layout) -> SoundExtent | None:
    form: SampleForm | None = None
    sound: tuple[int, int] | None = None
    others, large, reasons = 0, None, []
    at = layout.first
    for _ in range(MAX_CHUNKS):
        found = file.chunk(layout, at)
        if found is None:
            break
        name, begin, size = found
        if name in (b"fmt ", b"COMM", b"desc"):
            form = _FORMS[name](layout.number, read_at(file.file, begin, min(max(size, 0), 64)))
        elif name == b"ds64":
            (large,) = struct.unpack("<Q", read_at(file.file, begin + 8, 8))
        elif name in (b"data", b"SSND"):
            if name == b"SSND":
                before = 8 + struct.unpack(">I", read_at(file.file, begin, 4))[0]
            else:
                before = 4 if container == b"caff" else 0
            declared = large if large is not None and size == 2**32 - 1 else size - before
            begin += before
            end = _end(file, layout, begin, declared)
            if sound is None:
                sound = begin, end
            else:
                others += min(end, file.size) - begin
                reasons.append("a second data chunk, which is not read")
            size = end - begin
        elif name in LAYOUTS:
            others += min(size, file.size - begin)
            reasons.append("a second file joined to the first, which is not read")
        elif begin + size > file.size:
            at = file.size if name in NOTES else at
            break
        if size < 0:
            break
        at = file.behind(layout, begin + size)
    if sound is None:
        return None
    return _extent(file, *sound, at, form, others, reasons)


def _extent(
    file: OpenFile, begin: int, end: int, at: int, form: SampleForm | None, others: int, reasons: list[str]
) -> SoundExtent:
    """Returns the extent of sound at `[begin, end)` by the header, in a file whose chunks end at `at`."""
    lost = others
    if end > file.size:
        lost += end - file.size
        reasons = [*reasons, f"the header states {end - file.size} more bytes of sound than the file has"]
    elif rest := file.missed(at):
        lost += rest
        reasons = [*reasons, f"{rest} bytes follow after the end of the sound by the header: they may be sound, too"]
    return SoundExtent(begin, max(min(end, file.size), begin), lost, "; ".join(dict.fromkeys(reasons)), form)


def _end(file: OpenFile, layout: Layout, begin: int, size: int) -> int:
    """Returns the end of sound that begins at `begin` and has `size` bytes by its header."""
    rest = file.size - begin - size
    if not 0 < size < MAX_SOUND_BYTES or any(size in sizes for sizes in UNKNOWN_SIZES):
        # The size is nevertheless correct if a chunk follows.
        follows = file.chunk(layout, begin + size) if size >= 0 and rest > 0 else None
        is_known = follows is not None and follows[1] + follows[2] <= file.size
        return begin + size if is_known else file.size
    if rest >= WRAP_BYTES and layout.size == "I":
        wrapped = begin + size + rest // WRAP_BYTES * WRAP_BYTES
        if wrapped in (file.size, file.size - 1) or file.chunk(layout, wrapped) or not file.is_zero(begin + size):
            return wrapped
    # Some writers store the size of the file as the size of the sound.
    return file.size if size in (file.size, file.size - 8) else begin + size


def _wave_form(number: str, fmt: bytes) -> SampleForm | None:
    tag, channels, rate, _, block = struct.unpack(number + "HHIIH", fmt[:14])
    if tag == 0xFFFE:
        (tag,) = struct.unpack(number + "H", fmt[24:26])
    if tag in (2, 17):  # ADPCM
        (block_frames,) = struct.unpack(number + "H", fmt[18:20])
        return SampleForm(block, block_frames) if block and block_frames else None
    names = {1: ("PCM_U8", "PCM_16", "PCM_24", "PCM_32"), 3: ("", "", "", "FLOAT", *("",) * 3, "DOUBLE")}
    names |= {6: ("ALAW",), 7: ("ULAW",)}
    width, rest = divmod(block, channels)
    bits = int.from_bytes(fmt[14:16], "little" if number == "<" else "big")
    # Some writers forget the channels in the size of a block. Less than 32 bits may be stored in 4 bytes.
    if bits and tag in (1, 3) and not (block == 4 * channels and 16 < bits < 32):
        width, rest = -(-bits // 8), 0
    subtype = names.get(tag, ())[width - 1 : width] if width else ()
    if not any(subtype) or rest:
        return None
    block = width * channels
    endian = "LITTLE" if number == "<" else "BIG"
    raw = {"format": "RAW", "subtype": subtype[0], "endian": endian, "channels": channels, "samplerate": rate}
    return SampleForm(block, 1, raw)


def _aiff_form(number: str, comm: bytes) -> SampleForm | None:
    channels, _, bits = struct.unpack(number + "HIH", comm[:8])
    compression = comm[18:22].lower() or b"none"
    if compression == b"ima4" and channels:
        return SampleForm(34 * channels, 64)
    widths = {b"none": -(-bits // 8), b"twos": -(-bits // 8), b"sowt": -(-bits // 8), b"raw ": 1, b"fl32": 4}
    widths |= {b"fl64": 8, b"in24": 3, b"in32": 4, b"ulaw": 1, b"alaw": 1}
    block = channels * widths.get(compression, 0)
    return SampleForm(block) if block else None


def _caf_form(number: str, desc: bytes) -> SampleForm | None:
    packet_bytes, packet_frames = struct.unpack(number + "II", desc[16:24])
    return SampleForm(packet_bytes, packet_frames) if packet_bytes and 0 < packet_frames < 2**16 else None


_FORMS = {b"fmt ": _wave_form, b"COMM": _aiff_form, b"desc": _caf_form}


def _au_sound(file: OpenFile, start: bytes) -> SoundExtent:
    begin, size, encoding, _, channels = struct.unpack((">" if start[:1] == b"." else "<") + "5I", start[4:24])
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(encoding, 0)
    end = file.size if not size or any(size in sizes for sizes in UNKNOWN_SIZES) else begin + size
    form = SampleForm(width * channels) if width * channels else None
    return _extent(file, begin, end, end, form, 0, [])


def _nist_sound(file: OpenFile, start: bytes) -> SoundExtent | None:
    numbers = dict(re.findall(rb"\n(sample_count|channel_count|sample_n_bytes) -i (\d+)", start))
    if len(numbers) < 3:
        return None
    begin, block = int(start[8:16]), int(numbers[b"channel_count"]) * int(numbers[b"sample_n_bytes"])
    end = begin + int(numbers[b"sample_count"]) * block
    return _extent(file, begin, end, end, SampleForm(block) if block else None, 0, [])


def _flac_sound(file: OpenFile, start: bytes) -> SoundExtent | None:
    """Checks the positions of some frames: they must increase and stay below the header's number of samples."""
    block_frames, promised = int.from_bytes(start[10:12]), int.from_bytes(start[18:26]) & (2**36 - 1)
    if start[4] & 127 or not block_frames or not promised:
        return None
    tail = max(file.size - FLAC_TAIL_BYTES, 0)
    places = []
    for at in range(0, tail, max(tail // FLAC_PLACES, 2**16)):
        places += [place for _, place in islice(followed_headers(file.file, block_frames, at, tail), 1)]
    last = pairwise(flac_headers(file.file, block_frames, tail, file.size))
    places += [place for (_, before), (_, place) in last if 0 < place - before <= block_frames]
    is_wrong = bool(places) and (places[-1] >= promised or promised > MAX_FLAC_SAMPLES_PER_BYTE * file.size)
    if not is_wrong and places == sorted(places):
        return None
    for at in range(1, file.size, 2**20):
        found = re.search(rb"fLaC[\x00\x80]\x00\x00\x22", read_at(file.file, at, 2**20 + 8))
        if found:
            second = at + found.start()
            return SoundExtent(0, second, file.size - second, JOINED_FLAC)
    return SoundExtent(0, file.size, is_length_wrong=True) if is_wrong else None
