"""Builders of the `datasets` library: clips around annotations, and windows without annotations."""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import multiprocess
import numpy as np
import pandas as pd
import pyarrow as pa

from kenya_birds.data.archive import Archive, archive_fingerprint, read_archive, select_classes
from kenya_birds.data.audio import RecordingReader, check_channel, encode_wav
from kenya_birds.data.joined_archive import divide_each
from kenya_birds.data.planning import NO_ROWS, AnnotatedTimes, plan_clips, plan_no_call
from kenya_birds.data.same_recording import check_undivided, with_names_of
from kenya_birds.data.silent_recordings import with_others, without_clips
from kenya_birds.data.splits import SPLITS, check_splits, least_recordings, recordings_in, stratified_split
from kenya_birds.data.weak_recordings import WEAK_LABELS, check_weak_splits, divided_clips, with_only_train
from kenya_birds.defaults import MIN_ANNOTATIONS, SPLIT_SEED, TEST_SIZE, VALIDATION_SIZE
from kenya_birds.errors import UserError
from kenya_birds.fingerprints import DECODERS, code_fingerprint, library_versions
from kenya_birds.private_interfaces import BuilderHooks, table_key

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
WATCH = "end-with-parent"

_is_on = False


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """On Linux, kills every process forked inside the block when this process dies, even by SIGKILL.

    Ctrl+C reaches all processes of a terminal. These processes ignore it and wait until this process ends them.

    Otherwise the workers of a `datasets` build would continue to write into the folder of the next build, and the
    process that serves their queue would never end. On other systems that process remains, idle, and workers call
    `end_with_parent`.
    """
    global _is_on
    before, _is_on = _is_on, True
    try:
        yield
    finally:
        _is_on = before


def end_with_parent() -> None:
    """Ends this worker process when its parent process ends; does nothing in other processes."""
    parent = multiprocess.parent_process()
    if parent is not None and not any(thread.name == WATCH for thread in threading.enumerate()):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, _wait_for_the_end)
        threading.Thread(target=_wait_and_end, args=(parent,), name=WATCH, daemon=True).start()


def _wait_for_the_end(*_: Any) -> None:
    """On Ctrl+C in a worker: the process that started it ends it, after their queue; that error is not shown."""
    sys.unraisablehook = lambda _: None


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Raises `KeyboardInterrupt` where Ctrl+C made `datasets` raise another exception, while it waits for workers."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            cause = cause.__context__
        raise


def _wait_and_end(parent: "multiprocess.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)


def _kill_with_parent() -> None:
    if _is_on:
        signal.signal(signal.SIGINT, _wait_for_the_end)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # noqa: TID251


if sys.platform == "linux":
    _prctl = ctypes.CDLL(None).prctl  # at import, because the lock that this takes may be held when a process forks
    os.register_at_fork(after_in_child=_kill_with_parent)  # noqa: TID251


NO_CALL = "no_call"
NO_CALL_ORDERS = ("quietest", "uniform")
DEFAULT_SAMPLING_RATE = 32_000
DEFAULT_CLIP_S = 3.0
# Number of clips in memory at a time; a clip has 200 to 400 kB.
CLIPS_PER_TABLE = 64


@dataclass
class ClipsConfig(datasets.BuilderConfig):
    """Settings of the clips; each combination of values is a separate data set in the cache.

    Attributes:
        sampling_rate: Rate of the clips in Hz; recordings with another rate are resampled.
        clip_s: Length of a clip in seconds.
        context_s: Seconds of sound stored on each side of the clip, so that training can shift the clip.
        edge_tolerance_s: See `plan_clips`.
        min_overlap_s: See `plan_clips`.
        min_annotations: Species with fewer annotations are dropped.
        channel: See `RecordingReader`; recordings that lack the channel are skipped.
        weak_labels: Recordings with weak annotations: `train` has them in the train split alone, `every_split` divides
            them as the others, and `leave_out` leaves them out.
        splits: `train`, `validation` or `test` by recording; by default `stratified_split` with the four fields below.
        one_split: Assigns every recording to this split, instead of `splits` or `stratified_split`.
        test_size: See `stratified_split`.
        validation_size: See `stratified_split`.
        fold: See `stratified_split`.
        split_seed: Random seed of `stratified_split`.
    """

    sampling_rate: int = DEFAULT_SAMPLING_RATE
    clip_s: float = DEFAULT_CLIP_S
    context_s: float = 0.0
    edge_tolerance_s: float = 0.0
    min_overlap_s: float = 0.0
    min_annotations: int = MIN_ANNOTATIONS
    channel: str | None = None
    weak_labels: str = "train"
    splits: dict[str, str] | None = None
    one_split: str | None = None
    test_size: float = TEST_SIZE
    validation_size: float = VALIDATION_SIZE
    fold: int = 0
    split_seed: int = SPLIT_SEED

    def __post_init__(self) -> None:
        """Checks settings that are not checked elsewhere."""
        super().__post_init__()
        if not (self.sampling_rate > 0 and 1 <= self.clip_s * self.sampling_rate < float("inf")):
            raise UserError(
                f"sampling_rate is {self.sampling_rate} Hz and clip_s is {self.clip_s} s: expected a clip of at least "
                "one sample"
            )
        if not 0 <= self.context_s < float("inf"):
            raise UserError(f"context_s is {self.context_s}: expected 0 or more")
        if self.one_split not in (None, *SPLITS) or (self.one_split and self.splits):
            raise UserError(
                f"one_split is {self.one_split!r}: expected one of {', '.join(SPLITS)}, without a table of splits"
            )
        if self.weak_labels not in WEAK_LABELS:
            raise UserError(f"weak_labels is {self.weak_labels!r}: expected one of {', '.join(WEAK_LABELS)}")
        if not 2 * abs(self.edge_tolerance_s) < self.clip_s:
            raise UserError(f"edge_tolerance_s is {self.edge_tolerance_s}: expected less than half of clip_s")
        if not 0 <= self.min_overlap_s <= self.clip_s:
            raise UserError(f"min_overlap_s is {self.min_overlap_s}: expected 0 to clip_s")

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Adds the archive, the code and the library versions, so that clips are cut again if one of them changes."""
        made_from = {
            "archive": archive_fingerprint(self.data_dir),
            "code": code_fingerprint(__name__),
            **library_versions((*DECODERS, "numpy", "scikit-learn")),
        }
        return super().create_config_id({**config_kwargs, **made_from}, custom_features)


class KenyaBirds(BuilderHooks, datasets.ArrowBasedBuilder):
    """Builder of the clips: one window centred on each annotation of the selected species, more on long calls.

    The builder writes Arrow tables, not examples, because `datasets` encodes audio examples only with torchcodec and
    FFmpeg.

    Columns:
        audio: The clip with its context, mirrored past the recording's ends: mono WAV, 16-bit integers if they are
            exact, otherwise 32-bit floats (see `encode_wav`).
        label: Class id of the annotation; names are eBird codes. None for windows without annotations.
        labels: Class ids of all annotations in the clip (see `plan_clips`), each once, sorted.
        unknown: True if an unknown bird is or may be in the clip. A species that is not in
            `labels` may then be present.
        weak: True if the species is known for the recording alone, which has signal there (see `signal_parts`).
        recording: File name of the recording.
        start_s: Start of the clip, without context, in the recording; negative if it is before the recording's start.
        center_s: Centre of the annotation, or of a part of it in a long call.

    Args:
        cache_dir: Folder of the cache; by default that of `datasets`.
        **settings: Arguments of `datasets.DatasetBuilder`, and the fields of `ClipsConfig`.

    Attributes:
        cache_root: Folder of the cache.
        archive: The archive.
        classes: eBird codes; the index is the class id.
        clips: Planned clips (see `plan_clips`).
        splits: `recording` and `split`, sorted by recording, with the recordings without clips (see `without_clips`).
        divided: The planned clips of recordings that may be in any split.
        only_train: Recordings with weak annotations or checked detections that are for the train split alone.
        same_sound: Groups of annotated recordings with the same sound; each group is in one split.

    Raises:
        UserError: If the archive or the splits cannot be used (see `read_archive`, `check_splits`).
    """

    BUILDER_CONFIG_CLASS = ClipsConfig
    VERSION = datasets.Version("1.2.0")

    archive: Archive
    classes: list[str]
    clips: pd.DataFrame
    splits: pd.DataFrame
    divided: pd.DataFrame
    only_train: frozenset[str]
    same_sound: list[list[str]]

    def __init__(self, cache_dir: str | None = None, **settings: Any) -> None:
        self.cache_root = os.path.expanduser(cache_dir or datasets.config.HF_DATASETS_CACHE)
        super().__init__(cache_dir=self.cache_root, **settings)

    def _info(self) -> datasets.DatasetInfo:
        config = self.config
        self.archive = read_archive(config.data_dir)
        if config.weak_labels == "leave_out":
            self.archive = self.archive.without_weak()
        _check_channels(self.archive, config.channel)
        self.classes = select_classes(self.archive.annotations, config.min_annotations)
        self.clips = plan_clips(
            self.archive,
            self.classes,
            config.sampling_rate,
            config.clip_s,
            config.edge_tolerance_s,
            config.min_overlap_s,
        )
        self.same_sound = self.archive.same_sound()
        self.divided, self.only_train = divided_clips(
            self.clips,
            self.archive,
            weak_in_train=config.weak_labels == "train",
            is_train=config.one_split == "train",
        )
        self.splits = self._plan_splits()
        self.clips = self.clips[self.clips["recording"].isin(self.splits["recording"])]
        return datasets.DatasetInfo(
            description="Clips centred on the annotations of soundscape recordings.",
            features=datasets.Features(
                {
                    "audio": datasets.Audio(sampling_rate=config.sampling_rate, decode=False),
                    "label": datasets.ClassLabel(names=self.classes),
                    "labels": datasets.List(datasets.ClassLabel(names=self.classes)),
                    "unknown": datasets.Value("bool"),
                    "weak": datasets.Value("bool"),
                    "recording": datasets.Value("string"),
                    "start_s": datasets.Value("float64"),
                    "center_s": datasets.Value("float64"),
                }
            ),
        )

    def _plan_splits(self) -> pd.DataFrame:
        """Splits of the recordings, as the settings say."""
        config = self.config
        together, others = self.same_sound, without_clips(self.archive, self.divided["recording"])
        if config.one_split:
            recordings = sorted({*self.divided["recording"], *others})
            table = pd.DataFrame({"recording": recordings, "split": config.one_split})
            return with_only_train(table, self.only_train, together) if config.one_split == "train" else table
        if config.splits is None:
            table = divide_each(
                self.divided,
                self.archive.archive_of,
                together,
                lambda clips: stratified_split(
                    clips,
                    test_size=config.test_size,
                    validation_size=config.validation_size,
                    fold=config.fold,
                    seed=config.split_seed,
                    same_sound=together,
                ),
                least=least_recordings(config.test_size, config.validation_size),
            )
            table = with_others(table, self.archive, together)
        else:
            given = pd.DataFrame(list(config.splits.items()), columns=["recording", "split"])
            given = check_weak_splits(given, self.only_train, self.archive.verified)
            names = set(self.divided["recording"])
            # A table may lack recordings without clips.
            names |= set(others) & set(with_names_of(given, others)["recording"])
            table = with_names_of(given, names).sort_values("recording").reset_index(drop=True)
            check_splits(table, names)
            check_undivided(table, together)
        return with_only_train(table, self.only_train, together)

    @contextmanager
    def preparing(self, folder: Path) -> Iterator[None]:
        """Removes the files of a killed build, and ends the worker processes with this process."""
        for left in folder.iterdir() if folder.suffix == ".incomplete" else ():
            left.unlink()
        with children_end_with_us(), _interrupts_kept():
            yield

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        recordings = self.splits.groupby("split")["recording"].apply(list)
        return [
            datasets.SplitGenerator(split, gen_kwargs={"recordings": recordings[split]})
            for split in SPLITS
            if split in recordings
        ]

    def _generate_tables(self, recordings: list[str]) -> Iterator[tuple[Any, pa.Table]]:
        end_with_parent()
        rate, context = self.config.sampling_rate, round(self.config.context_s * self.config.sampling_rate)
        samples = round(self.config.clip_s * rate)
        for shard, recording in enumerate(recordings):
            try:
                reader = RecordingReader(self.archive.recording_path(recording), rate, self.config.channel)
            except UserError:
                continue  # `build_clips` reports the missing clips
            with reader:
                windows = self._windows(recording, reader)
                for first in range(0, len(windows), CLIPS_PER_TABLE):
                    rows, audio = [], []
                    for window in windows.iloc[first : first + CLIPS_PER_TABLE].itertuples():
                        with suppress(UserError):  # skips only this clip
                            sound = reader.read(window.start - context, samples + 2 * context, pad_mode="symmetric")
                            audio.append({"bytes": encode_wav(sound, rate), "path": None})
                            rows.append(window)
                    if rows:
                        labels = np.array([row.label for row in rows])
                        columns = {
                            "audio": pa.array(audio, datasets.Audio.pa_type),
                            "label": pa.array(labels, pa.int64(), mask=labels < 0),
                            "labels": pa.array([row.labels for row in rows], pa.list_(pa.int64())),
                            "unknown": [row.unknown for row in rows],
                            "weak": [row.weak for row in rows],
                            "recording": [recording] * len(rows),
                            "start_s": [row.start / rate for row in rows],
                            "center_s": [row.center_s for row in rows],
                        }
                        yield table_key(shard, first), pa.table(columns)

    def _windows(self, recording: str, reader: RecordingReader) -> pd.DataFrame:
        """Returns the windows to cut from a recording, with the columns of `plan_clips`, in order of time."""
        return self.clips.iloc[self._rows.get(recording, NO_ROWS)]

    @cached_property
    def _rows(self) -> dict[Any, Any]:
        """Rows of the clips by recording."""
        return self.clips.groupby("recording").indices


def lacking_channel(archive: Archive, channel: str | None) -> dict[str, str]:
    """The recordings that lack a channel, with a message about each; see `check_channel`."""
    found: dict[str, str] = {}
    for name, header in archive.headers.items():
        try:
            check_channel(archive.recording_path(name), header, channel)
        except UserError as error:
            found[name] = str(error)
    return found


def _check_channels(archive: Archive, channel: str | None) -> None:
    """Logs how many recordings lack a channel; raises `UserError` if all do."""
    missing = list(lacking_channel(archive, channel).values())
    if missing and len(missing) == len(archive.headers):
        raise UserError(f"no recording has the channel: {missing[0]}")
    if missing:
        logger.warning(
            "%d of %d recordings lack a channel, so their clips and windows are skipped (first: %s)",
            len(missing),
            len(archive.headers),
            missing[0],
        )


@dataclass
class NoCallConfig(ClipsConfig):
    """Settings of windows without annotations, in addition to those of clips.

    Attributes:
        no_call_split: The split whose recordings are used.
        no_call_per_recording: Largest number of windows from each recording.
        no_call_margin_s: Smallest time between a window, context included, and any annotation.
        no_call_order: Which windows are cut: the `quietest`, or windows spread evenly over the recording (`uniform`).
    """

    no_call_split: str = "train"
    no_call_per_recording: int = 20
    no_call_margin_s: float = 1.5
    no_call_order: str = "quietest"

    def __post_init__(self) -> None:
        """Checks settings that are not checked elsewhere."""
        super().__post_init__()
        if self.no_call_split not in SPLITS:
            raise UserError(f"no_call_split is {self.no_call_split!r}: expected one of {SPLITS}")
        if self.no_call_per_recording < 1:
            raise UserError(f"no_call_per_recording is {self.no_call_per_recording}: expected 1 or more")
        if not 0 <= self.no_call_margin_s < float("inf"):
            raise UserError(f"no_call_margin_s is {self.no_call_margin_s}: expected 0 or more")
        if self.no_call_order not in NO_CALL_ORDERS:
            raise UserError(f"no_call_order is {self.no_call_order!r}: expected one of {NO_CALL_ORDERS}")


class NoCallWindows(KenyaBirds):
    """Builder of the split `no_call`: windows without annotations from the recordings of one split.

    Args:
        planned: Builder of the clips. Its archive, classes, splits and settings are used.
        **settings: The additional fields of `NoCallConfig`, and settings that differ from `planned`.
    """

    BUILDER_CONFIG_CLASS = NoCallConfig

    def __init__(self, planned: KenyaBirds, **settings: Any) -> None:
        self._planned = planned
        settings = {name: getattr(planned.config, name) for name in ClipsConfig.__annotations__} | settings
        if not settings["one_split"]:
            settings["splits"] = dict(zip(planned.splits["recording"], planned.splits["split"], strict=True))
        super().__init__(
            data_dir=planned.config.data_dir,
            cache_dir=planned.cache_root,
            dataset_name=f"{planned.dataset_name}_{NO_CALL}",
            **settings,
        )

    def _info(self) -> datasets.DatasetInfo:
        planned = self._planned
        for name in ("archive", "classes", "clips", "splits", "divided", "only_train", "same_sound"):
            setattr(self, name, getattr(planned, name))
        return datasets.DatasetInfo(
            description="Windows of soundscape recordings in which nothing is annotated.",
            features=planned.info.features,
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        recordings = recordings_in(self.splits, self.config.no_call_split)
        return [datasets.SplitGenerator(NO_CALL, gen_kwargs={"recordings": recordings})]

    def _windows(self, recording: str, reader: RecordingReader) -> pd.DataFrame:
        config = self.config
        context = round(config.context_s * config.sampling_rate)
        stored_s = config.clip_s + 2 * config.context_s
        windows = plan_no_call(
            self.archive, [recording], config.sampling_rate, stored_s, config.no_call_margin_s, self._annotated
        )
        windows["start"] += context
        number = min(config.no_call_per_recording, len(windows))
        if config.no_call_order == "uniform":
            return windows.iloc[np.linspace(0, len(windows) - 1, number).round().astype(int)]
        level = np.full(len(windows), np.inf)
        for index, start in enumerate(windows["start"]):
            with suppress(UserError):
                sound = reader.read(start, round(config.clip_s * config.sampling_rate))
                level[index] = np.square(sound, dtype=np.float64).mean()
        return windows.iloc[np.sort(level.argsort(kind="stable")[:number])]

    @cached_property
    def _annotated(self) -> AnnotatedTimes:
        return AnnotatedTimes(self.archive)
