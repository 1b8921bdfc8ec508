"""Small sound files with the headers that recorders write, made by the published formats."""

import struct

import numpy as np
import scipy.io.wavfile
import soundfile

AUDIOMOTH = (
    "Recorded at {time} (UTC{zone}) by AudioMoth 24526B065D325963 at medium gain while battery was 3.8V and "
    "temperature was 12.8C."
)
RATE = 8000


def chunk(name, data):
    """A RIFF chunk; those of odd length are padded."""
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def comment(text):
    return chunk(b"LIST", b"INFO" + chunk(b"ICMT", text.encode() + b"\0" * 9) + chunk(b"IART", b"AudioMoth\0"))


def guano(**fields):
    lines = ["GUANO|Version:1.0", *(f"{key.replace('_', ' ')}: {value}" for key, value in fields.items())]
    return chunk(b"guan", "\n".join(lines).encode())


def wamd(time="", place=""):
    fields = [(0, b"\1\0"), (1, b"SM4"), (5, time.encode()), (6, place.encode()), (0xFFFF, b"\0\0")]
    return chunk(b"wamd", b"".join(struct.pack("<HI", number, len(value)) + value for number, value in fields))


def write_wav(path, before=b"", after=b"", seconds=1):
    """Writes a WAV file with chunks before and after its sound."""
    sound = np.round(3000 * np.sin(np.arange(seconds * RATE))).astype(np.int16)
    scipy.io.wavfile.write(path, RATE, sound)
    data = path.read_bytes()
    body = data[12:36] + before + data[36:] + after
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body)
    return path


def write_flac(path, comments):
    """Writes a FLAC file with Vorbis comments, as Frontier Labs' recorders do."""
    soundfile.write(path, np.round(3000 * np.sin(np.arange(RATE))).astype(np.int16), RATE)
    data = path.read_bytes()
    texts = [f"{key}={value}".encode() for key, value in comments.items()]
    body = struct.pack("<I", 13) + b"Frontier Labs" + struct.pack("<I", len(texts))
    body += b"".join(struct.pack("<I", len(text)) + text for text in texts)
    block = b"\4" + len(body).to_bytes(3, "big") + body
    # Behind the stream information, which is no longer marked as the last block.
    path.write_bytes(data[:4] + bytes([data[4] & 127]) + data[5:42] + block + data[42:])
    return path
