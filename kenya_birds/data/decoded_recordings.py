"""Cache of whole recordings on disk, decoded to 16-bit samples at one sampling rate."""

import hashlib
import logging
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kenya_birds.data.audio import Block, RecordingReader, read_header
from kenya_birds.data.same_recording import file_identity
from kenya_birds.data.sound_pieces import SILENCE_S, audible, resampled
from kenya_birds.errors import UserError
from kenya_birds.files import read_json, whole_file, write_json
from kenya_birds.fingerprints import DECODERS, code_fingerprint, library_versions
from kenya_birds.locks import LOCK_FILE, shared_lock

logger = logging.getLogger(__name__)

FOLDER = "kenya_birds_recordings"
BLOCK_S = 30
FULL_SCALE = 32767
# Number of files mapped at a time; systems allow about 1,000 open files.
OPEN_FILES = 128


@dataclass(frozen=True)
class DecodedRecording:
    """One recording in the cache.

    Attributes:
        name: File name of the recording.
        path: The samples: int16, a NumPy file.
        samples: Number of samples.
        scale: The sound is `samples * scale`, with full scale at -1 and 1.
        runs: Continuous sections with sound, `[begin, end)`, int64 of shape `(runs, 2)`. Between them the recording is
            damaged, or has digital silence of 0.25 s or more.
        damaged_s: Seconds that could not be decoded.
    """

    name: str
    path: Path
    samples: int
    scale: float
    runs: np.ndarray
    damaged_s: float


class DecodedRecordings:
    """Decoded recordings from which windows are read. The files are memory-mapped.

    Args:
        recordings: The recordings; windows refer to them by index.
        sampling_rate: In Hz.
    """

    def __init__(self, recordings: Sequence[DecodedRecording], sampling_rate: int) -> None:
        self.recordings = list(recordings)
        self.sampling_rate = sampling_rate
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without open files; other processes open them again."""
        return {**self.__dict__, "_maps": OrderedDict()}

    @property
    def names(self) -> list[str]:
        """Names of the recordings."""
        return [recording.name for recording in self.recordings]

    @property
    def lengths(self) -> dict[str, int]:
        """Number of samples by name."""
        return {recording.name: recording.samples for recording in self.recordings}

    def select(self, names: Sequence[str]) -> "DecodedRecordings":
        """Returns the named recordings, in this order."""
        by_name = {recording.name: recording for recording in self.recordings}
        return DecodedRecordings([by_name[name] for name in names if name in by_name], self.sampling_rate)

    def read(self, recording: int, start: int, samples: int) -> np.ndarray:
        """Reads the samples of a window, int16 of shape `(samples,)`; multiply them by the recording's `scale`.

        A window that reaches past the end of its run is padded with mirrored sound on both sides, as in detection.

        Args:
            recording: Index of the recording.
            start: First sample, inside a run.
            samples: Length of the window.

        Raises:
            ValueError: If the start is not in a run.
        """
        runs = self.recordings[recording].runs
        number = int(runs[:, 0].searchsorted(start, side="right")) - 1
        if number < 0 or start >= runs[number, 1]:
            raise ValueError(f"{self.recordings[recording].name} has no sound at sample {start}")
        sound = self._map(recording)[start : min(start + samples, int(runs[number, 1]))]
        missing = samples - len(sound)
        if not missing:
            return np.array(sound)
        return np.pad(sound, (missing // 2, missing - missing // 2), mode="symmetric")

    def _map(self, recording: int) -> np.ndarray:
        if recording not in self._maps:
            self._maps[recording] = np.load(self.recordings[recording].path, mmap_mode="r")
            if len(self._maps) > OPEN_FILES:
                self._maps.popitem(last=False)
        self._maps.move_to_end(recording)
        return self._maps[recording]


def decode_recordings(
    paths: Mapping[str, Path],
    cache_dir: str | Path,
    sampling_rate: int,
    *,
    threads: int = 1,
    channel: str | None = None,
) -> DecodedRecordings:
    """Decodes recordings, or reads them from the cache.

    The cache contains only complete recordings, so interrupted runs resume with the next recording. If another
    process decodes into the same cache, this one waits for it. Memory does not grow with the length of a recording.

    Args:
        paths: File of each recording by its name.
        cache_dir: Folder of the cache.
        sampling_rate: In Hz; recordings with another rate are resampled.
        threads: Number of recordings that are decoded at the same time.
        channel: See `RecordingReader`.

    Returns:
        The recordings in the order of `paths`. Recordings that cannot be opened are skipped and logged.

    Raises:
        UserError: If the disk has too little space, or the cache cannot be written.
    """
    folder = Path(cache_dir) / FOLDER
    wanted = {name: folder / _key(path, sampling_rate, channel) for name, path in paths.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with shared_lock(folder / LOCK_FILE, f"the decoded recordings in {folder}"):
            # Copies of a file with the same name and time are one file in the cache.
            missing = {stem: paths[name] for name, stem in wanted.items() if _read(name, stem) is None}
            if missing:
                _check_space(missing.values(), folder, sampling_rate)
                with ThreadPoolExecutor(threads) as pool:
                    tasks = [pool.submit(_write, path, stem, sampling_rate, channel) for stem, path in missing.items()]
                    try:
                        for task in tasks:
                            task.result()
                    except BaseException:
                        pool.shutdown(cancel_futures=True)
                        raise
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"{folder} cannot be written: {error}; free disk space there, or give another --cache_dir"
        ) from None
    found = [_read(name, stem) for name, stem in wanted.items()]
    decoded = DecodedRecordings([recording for recording in found if recording is not None], sampling_rate)
    damaged = [recording for recording in decoded.recordings if recording.damaged_s]
    if damaged:
        logger.warning(
            "%d of %d recordings are damaged: %.1f s of sound are skipped (first: %s)",
            len(damaged),
            len(decoded.recordings),
            sum(recording.damaged_s for recording in damaged),
            damaged[0].name,
        )
    return decoded


def _key(path: Path, sampling_rate: int, channel: str | None) -> str:
    """Returns the name in the cache; it changes with the file, rate, channel, this code and the decoders."""
    made_from = (
        *file_identity(path),
        *(sampling_rate, channel, code_fingerprint(__name__), sorted(library_versions((*DECODERS, "numpy")).items())),
    )
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:24]


def _read(name: str, stem: Path) -> DecodedRecording | None:
    """Returns a recording from the cache; None if it is not in the cache."""
    path, about = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        return None
    stored = read_json(about)
    runs = np.array(stored["runs"], dtype=np.int64).reshape(-1, 2)
    return DecodedRecording(name, path, stored["samples"], stored["scale"], runs, stored["damaged_s"])


def _check_space(paths: Iterable[Path], folder: Path, sampling_rate: int) -> None:
    """Logs how much disk space the recordings need; raises `UserError` if less is free."""
    sizes = []
    for path in paths:
        try:
            sizes.append(read_header(path).duration_s * sampling_rate)
        except UserError:
            sizes.append(0.0)
    # In addition to the result, one recording at a time is stored as 32-bit samples.
    needed = 2 * sum(sizes) + 4 * max(sizes, default=0)
    free = shutil.disk_usage(folder).free
    logger.info(
        "Decoding %d recordings (%.1f h): %.2f GB of disk are needed in %s, %.1f GB are free",
        len(sizes),
        sum(sizes) / sampling_rate / 3600,
        needed / 1e9,
        folder,
        free / 1e9,
    )
    if needed > free:
        raise UserError(
            f"{len(sizes)} recordings need {needed / 1e9:.2f} GB of disk in {folder}, and {free / 1e9:.2f} GB are "
            "free: free disk space there, or give another --cache_dir"
        )


def _write(path: Path, stem: Path, sampling_rate: int, channel: str | None) -> None:
    """Decodes one recording into the cache."""
    temporary = stem.with_suffix(".float32")
    try:
        with RecordingReader(path, sampling_rate, channel) as reader:
            samples = reader.samples
            found = _write_floats(reader, temporary, sampling_rate)
    except UserError as error:
        logger.warning("%s", error)
        return
    else:
        # 16-bit sound at its own rate is stored exactly; other sound is scaled to the full 16-bit range.
        scale = 1 / 32768 if found.is_16_bit else max(found.peak, float(np.finfo(np.float32).tiny)) / FULL_SCALE
        with (
            whole_file(stem.with_suffix(".npy")) as partial,
            partial.open("wb") as target,
            temporary.open("rb") as file,
        ):
            header = {"descr": "<i2", "fortran_order": False, "shape": (samples,)}
            np.lib.format.write_array_header_1_0(target, header)
            while len(sound := np.fromfile(file, dtype="<f4", count=BLOCK_S * sampling_rate)):
                target.write(np.rint(sound / scale).astype("<i2").tobytes())
        about = {"samples": samples, "scale": scale, "runs": found.runs, "damaged_s": found.damaged_s}
        write_json(about, stem.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)


@dataclass
class _Found:
    """Properties of a recording, found while decoding."""

    runs: list[list[int]]
    peak: float = 0.0
    is_16_bit: bool = True
    damaged_s: float = 0.0


def _write_floats(reader: RecordingReader, path: Path, sampling_rate: int) -> _Found:
    """Writes a recording as 32-bit floats at the requested rate, with zeros for missing sound."""
    rate, found = reader.header.sample_rate_hz, _Found([])

    def intact(block: Block) -> bool:
        if block.sound is None:
            found.damaged_s += block.frames / rate
        return block.sound is not None

    blocks = filter(intact, reader.blocks(BLOCK_S * rate))
    with path.open("wb") as file:
        for start, sound in audible(resampled(blocks, rate, sampling_rate), round(SILENCE_S * sampling_rate)):
            sound = sound[: reader.samples - start]
            if not len(sound):
                continue
            file.seek(4 * start)
            file.write(sound.astype("<f4").tobytes())
            found.peak = max(found.peak, float(np.abs(sound).max()))
            whole = sound * np.float32(32768)
            found.is_16_bit &= bool((np.rint(whole) == whole).all() and whole.max() <= FULL_SCALE)
            if found.runs and found.runs[-1][1] == start:
                found.runs[-1][1] = start + len(sound)
            else:
                found.runs.append([start, start + len(sound)])
        file.truncate(4 * reader.samples)
    found.is_16_bit &= found.peak <= 1
    return found
