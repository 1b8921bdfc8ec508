"""Writes archives by hand, where a test needs to know every row."""

from pathlib import Path

import numpy as np
import soundfile

HEADER = "Filename,Start Time (s),End Time (s),Species eBird Code"
SPECIES_HEADER = "Scientific Name,Species eBird Code,Common Name"
RATE = 8_000


def noise(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """int16 noise, different in every sample."""
    return np.random.default_rng(seed).integers(-20_000, 20_000, round(seconds * rate), dtype=np.int16)


def as_int16(sound: np.ndarray) -> np.ndarray:
    """Float samples as int16: exact where they come from 16 bits, else rounded; clipped at full scale."""
    return np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int16)


def write_archive(folder: Path, rows: list[tuple], seconds: float = 10.0) -> Path:
    """Writes an archive whose recordings are noise.

    Args:
        folder: A new folder.
        rows: (recording, time or (start, end), species code) of each annotation.
        seconds: Length of each recording.
    """
    (folder / "soundscape_data").mkdir(parents=True)
    lines = [HEADER]
    for recording, time, code in rows:
        start, end = time if isinstance(time, tuple) else (time, time)
        lines.append(f"{recording},{start},{end},{code}")
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n")
    codes = sorted({code for *_, code in rows} - {"????"})
    species = [SPECIES_HEADER, *(f"Avis {code},{code},Bird {code}" for code in codes)]
    (folder / "species.csv").write_text("\n".join(species) + "\n")
    for seed, recording in enumerate(sorted({recording for recording, *_ in rows})):
        soundfile.write(folder / "soundscape_data" / recording, noise(seconds, seed=seed), RATE)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    """Replaces text that stands in a file."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
