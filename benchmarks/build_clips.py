"""Time and memory of cutting an archive's clips, and of keeping its decoded recordings, beside decoding it once.

    python benchmarks/build_clips.py [--hours 4] [--data_dir ARCHIVE]

Without an archive, a synthetic one is made, with recordings of 20 minutes and as many annotations per hour as in the
Kenyan archive. "Decode" reads every recording with soundfile, "build" cuts all clips, "keep" decodes all recordings
into the cache from which training draws windows. They are measured in turns, with as many processes (keep: threads),
and the fastest run of each counts, because other work on the machine slows them down.
"""

import argparse
import logging
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import soundfile

from kenya_birds.data.dataset import load_clips
from kenya_birds.data.decoded_recordings import decode_recordings
from kenya_birds.data.synthetic import synthesize_archive

ANNOTATIONS_PER_HOUR = 294
SAMPLING_RATE_HZ = 32_000
RECORDINGS_PER_HOUR = 3  # in a few hours enough for the processes to share those of each split


def decode(path: Path) -> int:
    """Decodes a recording in blocks, and returns its number of frames."""
    with soundfile.SoundFile(path) as file:
        return sum(len(block) for block in file.blocks(2**20, dtype="int16"))


def decode_all(data_dir: Path, processes: int) -> None:
    """Decodes every recording of an archive once."""
    paths = sorted((data_dir / "soundscape_data").iterdir())
    if processes == 1:
        for path in paths:
            decode(path)
    else:
        with multiprocessing.Pool(processes) as pool:
            pool.map(decode, paths, chunksize=1)


def build(data_dir: Path, processes: int) -> None:
    """Cuts every clip of an archive."""
    with tempfile.TemporaryDirectory() as cache_dir:
        load_clips(data_dir, cache_dir=cache_dir, num_proc=processes)


def keep(data_dir: Path, threads: int) -> None:
    """Decodes every recording of an archive into a new cache."""
    paths = {path.name: path for path in (data_dir / "soundscape_data").iterdir()}
    with tempfile.TemporaryDirectory() as cache_dir:
        decode_recordings(paths, cache_dir, SAMPLING_RATE_HZ, threads=threads)


def measure(function: Callable[[Path, int], None], data_dir: Path, processes: int) -> tuple[float, float]:
    """Runs a function in a fresh process; returns seconds, and MB of the largest process."""

    def run(connection: multiprocessing.connection.Connection) -> None:
        start = time.perf_counter()
        function(data_dir, processes)
        seconds = time.perf_counter() - start
        peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        connection.send((seconds, max(peaks) / 1024))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run, args=(sender,))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="an archive; by default a synthetic one")
    parser.add_argument("--hours", type=int, default=4, help="length of the synthetic archive")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the fastest is reported")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = options.data_dir or synthesize_archive(
            Path(folder) / "archive",
            recordings=RECORDINGS_PER_HOUR * options.hours,
            duration_s=3600 / RECORDINGS_PER_HOUR,
            species=60,
            annotations=ANNOTATIONS_PER_HOUR * options.hours,
            scene="quiet",
        )
        logging.disable(logging.WARNING)
        datasets.disable_progress_bars()
        print(f"{platform.processor() or platform.machine()}, {multiprocessing.cpu_count()} cores, {data_dir.name}")
        decode_all(data_dir, 1)  # into the page cache
        print("| Processes | Decode (s) | Build (s) | Keep (s) | Build, peak MB | Keep, peak MB |")
        print("| --- | --- | --- | --- | --- | --- |")
        for processes in (1, 2):
            runs = [
                [measure(run, data_dir, processes) for run in (decode_all, build, keep)]
                for _ in range(options.repeats)
            ]
            (decoded_s, _), (built_s, built_mb), (kept_s, kept_mb) = map(min, zip(*runs, strict=True))
            print(f"| {processes} | {decoded_s:.1f} | {built_s:.1f} | {kept_s:.1f} | {built_mb:.0f} | {kept_mb:.0f} |")


if __name__ == "__main__":
    main()
