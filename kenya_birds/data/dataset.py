"""Cuts the annotated clips of an archive: a `datasets` builder, sharded by recording."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import sklearn
from datasets.builder import Key

from kenya_birds.data.archive import Archive, archive_fingerprint, read_archive, select_classes
from kenya_birds.data.audio import RecordingReader, encode_wav
from kenya_birds.data.planning import plan_clips, plan_no_call
from kenya_birds.data.splits import SPLITS, check_splits, seed_split
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

NO_CALL = "no_call"
NO_CALL_ORDERS = ("quietest", "uniform")
DEFAULT_NO_CALL_PER_RECORDING = 20
DEFAULT_SAMPLING_RATE = 32_000
DEFAULT_CLIP_S = 3.0
DEFAULT_MIN_ANNOTATIONS = 10
# A clip is about 200 kB: this many are held in memory at a time.
CLIPS_PER_TABLE = 64


@dataclass
class ClipsConfig(datasets.BuilderConfig):
    """What is cut out of an archive; another value of any field is another data set in the cache.

    Attributes:
        sampling_rate: Rate of the clips in Hz; recordings with another rate are resampled.
        clip_s: Length of a clip in seconds.
        context_s: Sound stored on each side of the clip as well, for training to shift the clip in.
        edge_tolerance_s: See `plan_clips`.
        min_annotations: Species with fewer annotations are dropped.
        splits: `train`, `validation` or `test` by recording; by default `seed_split` with the four fields below.
        test_size: See `seed_split`.
        validation_size: See `seed_split`.
        fold: See `seed_split`.
        split_seed: Seed of `seed_split`.
        no_call_per_recording: At most so many windows without any call are cut from each training recording, into a
            split of their own, `no_call`; 0 makes no such split.
        no_call_margin_s: Least time between such a window, context included, and any annotation.
        no_call_order: Which of them are cut: the `quietest`, or a choice spread evenly over the recording (`uniform`).
    """

    sampling_rate: int = DEFAULT_SAMPLING_RATE
    clip_s: float = DEFAULT_CLIP_S
    context_s: float = 0.0
    edge_tolerance_s: float = 0.0
    min_annotations: int = DEFAULT_MIN_ANNOTATIONS
    splits: dict[str, str] | None = None
    test_size: float = 0.2
    validation_size: float = 0.2
    fold: int = 0
    split_seed: int = 42
    no_call_per_recording: int = 0
    no_call_margin_s: float = 1.5
    no_call_order: str = "quietest"

    def __post_init__(self) -> None:
        """Checks what is not checked where it is used."""
        super().__post_init__()
        if not (self.sampling_rate > 0 and 1 <= self.clip_s * self.sampling_rate < float("inf")):
            raise UserError(
                f"sampling_rate is {self.sampling_rate} Hz and clip_s is {self.clip_s} s: expected a clip of one "
                "sample or more"
            )
        for name in ("context_s", "no_call_per_recording", "no_call_margin_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}: expected 0 or more")
        if not 2 * abs(self.edge_tolerance_s) < self.clip_s:
            raise UserError(f"edge_tolerance_s is {self.edge_tolerance_s}: expected less than half of clip_s")
        if self.no_call_order not in NO_CALL_ORDERS:
            raise UserError(f"no_call_order is {self.no_call_order!r}: expected one of {NO_CALL_ORDERS}")

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Adds the archive's fingerprint, so that a changed archive is cut anew, and what `seed_split` depends on."""
        made_from = {"archive": archive_fingerprint(self.data_dir), "scikit-learn": sklearn.__version__}
        return super().create_config_id({**config_kwargs, **made_from}, custom_features)


class KenyaBirds(datasets.ArrowBasedBuilder):
    """Builder of the clips: one window centred on each annotation of a species that is frequent enough.

    It writes Arrow tables, not examples: `datasets` encodes audio examples only where torchcodec, and so FFmpeg, is.

    Columns:
        audio: The clip with its context, mono 16-bit WAV, zeros past the recording's ends.
        label: Class id of the annotation; names are eBird codes. None in the split `no_call`.
        labels: Class ids of every annotation whose centre lies in the clip, each once, sorted.
        unknown: Whether a bird that the annotators could not name is centred in the clip, so that a species which is
            not in `labels` may be there all the same.
        recording: File name of the recording.
        start_s: Start of the clip, without context, in the recording; negative where it begins before it.
        center_s: The annotation's centre.

    Attributes:
        archive: The archive as read.
        classes: eBird codes; the index is the class id.
        clips: What will be cut (see `plan_clips`).
        splits: `recording` and `split`, sorted by recording.

    Raises:
        UserError: If the archive or the splits cannot be used (see `read_archive`, `check_splits`).
    """

    BUILDER_CONFIG_CLASS = ClipsConfig
    # To be raised when the same archive and settings would give other clips or splits: the cache goes by it.
    VERSION = datasets.Version("1.1.0")

    archive: Archive
    classes: list[str]
    clips: pd.DataFrame
    splits: pd.DataFrame

    def _info(self) -> datasets.DatasetInfo:
        config = self.config
        self.archive = read_archive(config.data_dir)
        self.classes = select_classes(self.archive.annotations, config.min_annotations)
        self.clips = plan_clips(
            self.archive, self.classes, config.sampling_rate, config.clip_s, config.edge_tolerance_s
        )
        if config.splits is None:
            self.splits = seed_split(
                self.clips,
                test_size=config.test_size,
                validation_size=config.validation_size,
                fold=config.fold,
                seed=config.split_seed,
            )
        else:
            self.splits = pd.DataFrame(sorted(config.splits.items()), columns=["recording", "split"])
            check_splits(self.splits, set(self.clips["recording"]))
        return datasets.DatasetInfo(
            description="Clips centred on the annotations of soundscape recordings.",
            features=datasets.Features(
                {
                    "audio": datasets.Audio(sampling_rate=config.sampling_rate, decode=False),
                    "label": datasets.ClassLabel(names=self.classes),
                    "labels": datasets.List(datasets.ClassLabel(names=self.classes)),
                    "unknown": datasets.Value("bool"),
                    "recording": datasets.Value("string"),
                    "start_s": datasets.Value("float64"),
                    "center_s": datasets.Value("float64"),
                }
            ),
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        recordings = self.splits.groupby("split")["recording"].apply(list)
        shards = {split: {"recordings": recordings[split], "no_call": False} for split in SPLITS}
        if self.config.no_call_per_recording:
            shards[NO_CALL] = {"recordings": recordings["train"], "no_call": True}
        return [datasets.SplitGenerator(split, gen_kwargs=kwargs) for split, kwargs in shards.items()]

    def _generate_tables(self, recordings: list[str], no_call: bool) -> Iterator[tuple[Key, pa.Table]]:
        rate, context = self.config.sampling_rate, round(self.config.context_s * self.config.sampling_rate)
        samples = round(self.config.clip_s * rate)
        for shard, recording in enumerate(recordings):
            try:
                reader = RecordingReader(self.archive.recording_path(recording), rate)
            except UserError:
                continue  # told by `build_clips`, which misses the clips
            with reader:
                if no_call:
                    windows = self._no_call_windows(recording, reader)
                else:
                    windows = self.clips[self.clips["recording"] == recording]
                for first in range(0, len(windows), CLIPS_PER_TABLE):
                    rows, audio = [], []
                    for window in windows.iloc[first : first + CLIPS_PER_TABLE].itertuples():
                        with suppress(UserError):  # this clip is missed, its neighbours are not
                            sound = reader.read(window.start - context, samples + 2 * context)
                            audio.append({"bytes": encode_wav(sound, rate), "path": None})
                            rows.append(window)
                    if rows:
                        columns = {
                            "audio": pa.array(audio, datasets.Audio.pa_type),
                            "label": pa.array([None if no_call else row.label for row in rows], pa.int64()),
                            "labels": pa.array([row.labels for row in rows], pa.list_(pa.int64())),
                            "unknown": [row.unknown for row in rows],
                            "recording": [recording] * len(rows),
                            "start_s": [row.start / rate for row in rows],
                            "center_s": [row.center_s for row in rows],
                        }
                        yield Key(shard, first), pa.table(columns)

    def _no_call_windows(self, recording: str, reader: RecordingReader) -> pd.DataFrame:
        """The windows without any call that are cut from a recording, in order of time."""
        config = self.config
        context = round(config.context_s * config.sampling_rate)
        stored_s = config.clip_s + 2 * config.context_s
        windows = plan_no_call(self.archive, [recording], config.sampling_rate, stored_s, config.no_call_margin_s)
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


def clips_builder(
    data_dir: str | Path, *, splits: pd.DataFrame | None = None, cache_dir: str | Path | None = None, **settings: Any
) -> KenyaBirds:
    """Reads an archive and plans its clips; nothing is cut yet (see `build_clips`).

    Args:
        data_dir: The archive (see `read_archive`).
        splits: `recording` and `split`, as `seed_split` and `read_splits` return; by default `seed_split`.
        cache_dir: Where the clips are kept; by default the cache of `datasets`.
        **settings: The fields of `ClipsConfig`.

    Raises:
        UserError: If the archive or the splits cannot be used.
    """
    if splits is not None:
        check_splits(splits, set(splits["recording"]))
        settings["splits"] = dict(zip(splits["recording"], splits["split"], strict=True))
    return KenyaBirds(
        data_dir=str(Path(data_dir).resolve()),
        cache_dir=None if cache_dir is None else str(cache_dir),
        dataset_name="kenya_birds",
        **settings,
    )


def build_clips(builder: KenyaBirds, num_proc: int | None = None) -> datasets.DatasetDict:
    """Cuts the clips, or finds them in the cache, as train, validation and test.

    Args:
        builder: What `clips_builder` returns.
        num_proc: Number of processes; each works on recordings of its own.

    Returns:
        The clips by split, with the columns of `KenyaBirds`. The audio is not decoded: `audio["bytes"]` is a WAV file,
        whose samples `decode_wav` gives without FFmpeg.

    Clips whose sound cannot be read are set aside, counted and logged; their neighbours are kept.

    Raises:
        UserError: If `num_proc` is below 1, or a split has no clip whose sound can be read.
    """
    if num_proc is not None and num_proc < 1:
        raise UserError(f"num_proc is {num_proc}: expected 1 or more processes")
    builder.download_and_prepare(num_proc=num_proc)
    for split, info in builder.info.splits.items():
        if not info.num_examples:
            raise UserError(f"no clip of the {split} split can be read: fetch its recordings again, or split anew")
    clips = builder.as_dataset()
    missed = missed_clips(builder, clips)
    if len(missed):
        logger.warning(
            "Set aside %d of %d clips, whose sound cannot be read: %s",
            len(missed),
            len(builder.clips),
            ", ".join(f"{n} of {name}" for name, n in missed["recording"].value_counts(sort=False).items()),
        )
    return clips


def missed_clips(builder: KenyaBirds, clips: datasets.DatasetDict) -> pd.DataFrame:
    """The rows of `builder.clips` that could not be cut, because their sound cannot be read."""
    cut = [
        key
        for split in SPLITS
        for key in zip(clips[split]["recording"], clips[split]["center_s"], clips[split]["label"], strict=True)
    ]
    planned = pd.MultiIndex.from_frame(builder.clips[["recording", "center_s", "label"]])
    return builder.clips[~planned.isin(cut)]


@overload
def load_clips(data_dir: str | Path, *, split: None = None, **settings: Any) -> datasets.DatasetDict: ...


@overload
def load_clips(data_dir: str | Path, *, split: str, **settings: Any) -> datasets.Dataset: ...


def load_clips(
    data_dir: str | Path, *, split: str | None = None, num_proc: int | None = None, **settings: Any
) -> datasets.DatasetDict | datasets.Dataset:
    """`clips_builder` and `build_clips` in one: an archive's clips.

    Args:
        data_dir: The archive (see `read_archive`).
        split: `train`, `validation`, `test`, or `no_call`: windows of the training recordings in which nothing is
            annotated. By default the first three.
        num_proc: Number of processes.
        **settings: What else `clips_builder` takes: `splits`, `cache_dir`, `min_annotations`, `sampling_rate`, ...

    Returns:
        The clips by split, or those of the split that was asked for.

    Raises:
        UserError: If the archive or the splits cannot be used, or there is no such split.
    """
    if split not in (None, NO_CALL, *SPLITS):
        raise UserError(f"no split {split!r}: expected one of {', '.join((*SPLITS, NO_CALL))}")
    if split == NO_CALL:
        settings.setdefault("no_call_per_recording", DEFAULT_NO_CALL_PER_RECORDING)
    clips = build_clips(clips_builder(data_dir, **settings), num_proc)
    return clips if split is None else clips[split]
