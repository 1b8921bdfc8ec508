"""Time of an import of many annotations, beside that of reading the headers of their recordings.

    python benchmarks/import_speed.py [--recordings 10000] [--annotations 100000]

The same annotations are imported from one CSV, and from a Raven table for each recording. "Headers" reads the header
of every recording, as the import does; "import" is the whole import, headers included; "read" reads the new archive.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from kenya_birds.data.archive import read_archive
from kenya_birds.data.import_report import Findings
from kenya_birds.data.importing import ImportSettings, import_annotations, read_headers

SECONDS, RATE_HZ = 10, 400


def make(folder: Path, recordings: int, annotations: int) -> tuple[Path, Path, list[str]]:
    """Writes recordings of 10 s, one CSV of all annotations, and a Raven table for each recording."""
    random = np.random.default_rng(0)
    sound, one, many = folder / "sound", folder / "one", folder / "many"
    names = [f"site{number % 100:02}/{number:05}.wav" for number in range(recordings)]
    noise = random.integers(-1000, 1000, SECONDS * RATE_HZ, dtype=np.int16)
    rows: dict[str, list[tuple[float, float, str]]] = {name: [] for name in names}
    for number in range(annotations):
        start_s = round(float(random.uniform(0, SECONDS - 2)), 3)
        rows[names[number % recordings]].append((start_s, start_s + 1, f"Species {random.integers(100)}"))
    for name in names:
        for path in (sound / name, many / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(sound / name, noise, RATE_HZ)
        lines = [
            f"{n}\tSpectrogram 1\t1\t{a}\t{b}\t50\t150\t{species}\n" for n, (a, b, species) in enumerate(rows[name])
        ]
        header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
        (many / name).with_suffix(".Table.1.selections.txt").write_text(header + "".join(lines), encoding="utf-8")
    one.mkdir()
    lines = [f"{name},{a},{b},{species}\n" for name in names for a, b, species in rows[name]]
    (one / "birds.csv").write_text("file,start,end,species\n" + "".join(lines), encoding="utf-8")
    return one / "birds.csv", many, names


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=10_000)
    parser.add_argument("--annotations", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        one, many, names = make(folder, options.recordings, options.annotations)
        begin = time.perf_counter()
        read_headers(names, folder / "sound", Findings())
        headers_s = time.perf_counter() - begin
        print(f"{options.annotations} annotations, {options.recordings} recordings; headers: {headers_s:.1f} s")
        print("| Source | Import (s) | Import without headers (s) | Read (s) |\n| --- | --- | --- | --- |")
        for name, source in (("one CSV", one), ("a Raven table for each recording", many)):
            archive = folder / f"archive_{source.stem}"
            begin = time.perf_counter()
            result = import_annotations(archive, ImportSettings(source, recordings=folder / "sound"))
            import_s = time.perf_counter() - begin
            assert len(result.recordings) == options.recordings
            begin = time.perf_counter()
            read_archive(archive)
            read_s = time.perf_counter() - begin
            print(f"| {name} | {import_s:.1f} | {import_s - headers_s:.1f} | {read_s:.1f} |")


if __name__ == "__main__":
    main()
