"""Reading broken recordings: twenty 3 s windows of one minute, with soundfile alone and with two decoders.

    python benchmarks/broken_files.py

A window is read correctly, read wrongly (other sound than in the intact file), short (less sound without an error) or
refused.
"""

import io
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.compressed_frames import flac_headers
from kenya_birds.errors import UserError

RATE_HZ = 32_000
WINDOW = 3 * RATE_HZ
FRAME = 4096  # samples of a FLAC frame, as libsndfile writes it


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'file':<36}  {'soundfile alone':<28}  kenya_birds")
        for name, (content, whole) in broken_files(Path(folder)).items():
            path = Path(folder) / "broken.audio"
            path.write_bytes(content)
            print(f"{name:<36}  {soundfile_alone(path, whole):<28}  {both_decoders(path, whole)}")


def broken_files(folder: Path) -> dict[str, tuple[bytes, np.ndarray]]:
    """Content and undamaged sound, float32, of each broken file."""
    rng = np.random.default_rng(0)
    sound = (3000 * rng.standard_normal(60 * RATE_HZ)).clip(-32768, 32767).astype(np.int16)
    flac, wav, mp3, ogg = (_encode(sound, kind) for kind in ("FLAC", "WAV", "MP3", "OGG"))
    (folder / "whole.flac").write_bytes(flac)
    with (folder / "whole.flac").open("rb", buffering=0) as file:
        starts = [offset for offset, _ in flac_headers(file, FRAME)] + [len(flac)]
    half = round(len(flac) * 31.5 / 60)  # amid a window
    frame = round(31.5 * RATE_HZ / FRAME)
    begin, end = starts[frame], starts[frame + 1]
    head = flac[: starts[0]]
    plain = head[:4] + bytes([head[4] | 128]) + head[5:42]  # stream information only
    files = {
        "FLAC, cut at half": flac[:half],
        "FLAC, one bit flipped": _flip(flac, half),
        "FLAC, 100 kB of zeros": flac[:half] + bytes(100_000) + flac[half + 100_000 :],
        "FLAC, a frame missing": flac[:begin] + flac[end:],
        "FLAC, noise between frames": flac[:begin] + rng.bytes(20_000) + flac[begin:],
        "FLAC, header says 10 minutes": _promise(flac, 600 * RATE_HZ),
        "FLAC, header says 30 s": _promise(flac, 30 * RATE_HZ),
        "FLAC, no length and no seek table": _promise(plain + flac[starts[0] :], 0),
        "WAV, cut at half": wav[: len(wav) // 2],
        "WAV, data size 0": wav[:40] + bytes(4) + wav[44:],
        "MP3, cut at half": mp3[: len(mp3) // 2],
        "MP3, 3 kB cut out": mp3[: len(mp3) // 2] + mp3[len(mp3) // 2 + 3000 :],
        "Ogg Vorbis, one bit flipped": _flip(ogg, len(ogg) // 2),
    }
    decoded = {kind: _decode(content) for kind, content in (("MP3", mp3), ("Ogg", ogg))}
    whole = sound / np.float32(32768)
    return {name: (content, decoded.get(name[:3], whole)) for name, content in files.items()}


def soundfile_alone(path: Path, whole: np.ndarray) -> str:
    """Seeks to and reads each window with soundfile, as one would by hand."""
    found: Counter[str] = Counter()
    for start in range(0, len(whole), WINDOW):
        try:
            with soundfile.SoundFile(path) as file:
                file.seek(start)
                window = file.read(WINDOW, dtype="float32")
        except soundfile.SoundFileError:
            found["refused"] += 1
        else:
            is_right = _is_like(window, whole[start : start + len(window)])
            found["wrong" if not is_right else "right" if len(window) == WINDOW else "short"] += 1
    return _in_words(found)


def both_decoders(path: Path, whole: np.ndarray) -> str:
    """Reads each window with `RecordingReader`."""
    found: Counter[str] = Counter()
    with RecordingReader(path) as reader:
        for start in range(0, min(len(whole), reader.header.frames), WINDOW):
            try:
                window = reader.read(start, WINDOW)
            except UserError:
                found["refused"] += 1
            else:
                is_right = _is_like(window, whole[start : start + WINDOW])
                found[f"right by {reader.decoder}" if is_right else "wrong"] += 1
    return _in_words(found)


def _is_like(window: np.ndarray, whole: np.ndarray) -> bool:
    """Whether sound is the same, give or take a step of 16 bits: decoders of lossy formats round differently."""
    return len(window) == len(whole) and np.abs(window - whole).max(initial=0) <= 1 / 32768


def _in_words(found: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(found.items(), reverse=True))


def _encode(sound: np.ndarray, format_: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, RATE_HZ, format=format_)
    return buffer.getvalue()


def _decode(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def _flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _promise(flac: bytes, frames: int) -> bytes:
    """Sets the number of frames in a FLAC file's header; 0 stands for not known."""
    word = int.from_bytes(flac[18:26])
    return flac[:18] + (word >> 36 << 36 | frames).to_bytes(8) + flac[26:]


if __name__ == "__main__":
    main()
