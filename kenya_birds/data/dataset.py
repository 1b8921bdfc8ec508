"""Cuts the annotated clips of an archive: a `datasets` builder, sharded by recording."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import sklearn
from datasets.builder import Key
from datasets.exceptions import DatasetGenerationError

from kenya_birds.data.archive import Archive, archive_fingerprint, read_archive, select_classes
from kenya_birds.data.audio import RecordingReader, encode_wav
from kenya_birds.data.splits import SPLITS, check_splits, seed_split
from kenya_birds.errors import UserError

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
        min_annotations: Species with fewer annotations are dropped.
        splits: `train`, `validation` or `test` by recording; by default `seed_split` with the four fields below.
        test_size: See `seed_split`.
        validation_size: See `seed_split`.
        fold: See `seed_split`.
        split_seed: Seed of `seed_split`.
    """

    sampling_rate: int = DEFAULT_SAMPLING_RATE
    clip_s: float = DEFAULT_CLIP_S
    min_annotations: int = DEFAULT_MIN_ANNOTATIONS
    splits: dict[str, str] | None = None
    test_size: float = 0.2
    validation_size: float = 0.2
    fold: int = 0
    split_seed: int = 42

    def __post_init__(self) -> None:
        """Checks the clips' rate and length; the rest is checked where it is used."""
        super().__post_init__()
        if not (self.sampling_rate > 0 and 1 <= self.clip_s * self.sampling_rate < float("inf")):
            raise UserError(
                f"sampling_rate is {self.sampling_rate} Hz and clip_s is {self.clip_s} s: expected a clip of one "
                "sample or more"
            )

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Adds the archive's fingerprint, so that a changed archive is cut anew, and what `seed_split` depends on."""
        made_from = {"archive": archive_fingerprint(self.data_dir), "scikit-learn": sklearn.__version__}
        return super().create_config_id({**config_kwargs, **made_from}, custom_features)


class KenyaBirds(datasets.ArrowBasedBuilder):
    """Builder of the clips: one window centred on each annotation of a species that is frequent enough.

    It writes Arrow tables, not examples: `datasets` encodes audio examples only where torchcodec, and so FFmpeg, is.

    Columns:
        audio: The clip, mono 16-bit WAV, zeros past the recording's ends.
        label: Class id of the annotation; names are eBird codes.
        labels: Class ids of every annotation whose centre lies in the window, each once, sorted.
        recording: File name of the recording.
        start_s: Start of the window in the recording; negative where it begins before it.
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
    VERSION = datasets.Version("1.0.0")

    archive: Archive
    classes: list[str]
    clips: pd.DataFrame
    splits: pd.DataFrame

    def _info(self) -> datasets.DatasetInfo:
        config = self.config
        self.archive = read_archive(config.data_dir)
        self.classes = select_classes(self.archive.annotations, config.min_annotations)
        self.clips = plan_clips(self.archive, self.classes, config.sampling_rate, config.clip_s)
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
                    "recording": datasets.Value("string"),
                    "start_s": datasets.Value("float64"),
                    "center_s": datasets.Value("float64"),
                }
            ),
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager | None) -> list[datasets.SplitGenerator]:
        recordings = self.splits.groupby("split")["recording"].apply(list)
        return [datasets.SplitGenerator(split, gen_kwargs={"recordings": recordings[split]}) for split in SPLITS]

    def _generate_tables(self, recordings: list[str]) -> Iterator[tuple[Key, pa.Table]]:
        samples = round(self.config.clip_s * self.config.sampling_rate)
        for shard, recording in enumerate(recordings):
            clips = self.clips[self.clips["recording"] == recording]
            with RecordingReader(self.archive.recording_path(recording), self.config.sampling_rate) as reader:
                for first in range(0, len(clips), CLIPS_PER_TABLE):
                    batch = clips.iloc[first : first + CLIPS_PER_TABLE]
                    windows = (reader.read(start, samples) for start in batch["start"])
                    audio = [{"bytes": encode_wav(w, self.config.sampling_rate), "path": None} for w in windows]
                    columns = {
                        "audio": pa.array(audio, datasets.Audio.pa_type),
                        "label": batch["label"].tolist(),
                        "labels": batch["labels"].tolist(),
                        "recording": batch["recording"].tolist(),
                        "start_s": (batch["start"] / self.config.sampling_rate).tolist(),
                        "center_s": batch["center_s"].tolist(),
                    }
                    yield Key(shard, first), pa.table(columns)

    def find_damage(self) -> UserError | None:
        """Cuts every clip once more in this process, and returns what the first damaged recording raises.

        `datasets` loses the cause of an exception on its way back from another process.
        """
        try:
            for generator in self._split_generators(None):
                for _ in self._generate_tables(**generator.gen_kwargs):
                    pass
        except UserError as error:
            return error
        return None


def plan_clips(archive: Archive, classes: list[str], sampling_rate: int, clip_s: float) -> pd.DataFrame:
    """Where each clip lies and which classes are in it; no audio is read.

    Args:
        archive: The archive.
        classes: eBird codes; the index is the class id. Annotations of other species are left out.
        sampling_rate: Rate in Hz of the grid on which windows lie.
        clip_s: Length of a window in seconds.

    Returns:
        Sorted by `recording` and `center_s`: `recording`, `center_s`, `start` (first sample, may be negative),
        `species` (eBird code), `label` (class id), `labels` (sorted class ids of what is centred in the window).
    """
    class_id = {code: index for index, code in enumerate(classes)}
    clips = archive.annotations[archive.annotations["species"].isin(class_id)]
    clips = clips.sort_values(["recording", "center_s"], kind="stable").reset_index(drop=True)
    samples = round(clip_s * sampling_rate)
    center = (clips["center_s"] * sampling_rate).round().astype("int64")
    clips = clips.assign(start=center - samples // 2, label=clips["species"].map(class_id), center=center)
    labels: list[list[int]] = []
    for _, rows in clips.groupby("recording"):
        centers, ids = rows["center"].to_numpy(), rows["label"].to_numpy()
        first = centers.searchsorted(rows["start"].to_numpy())
        last = centers.searchsorted(rows["start"].to_numpy() + samples)
        labels += [sorted({int(label) for label in ids[i:j]}) for i, j in zip(first, last, strict=True)]
    clips["labels"] = pd.Series(labels, dtype=object)
    return clips[["recording", "center_s", "start", "species", "label", "labels"]]


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

    Raises:
        UserError: If a recording cannot be decoded, or `num_proc` is below 1.
    """
    if num_proc is not None and num_proc < 1:
        raise UserError(f"num_proc is {num_proc}: expected 1 or more processes")
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except DatasetGenerationError:
        if damage := builder.find_damage():
            raise damage from None
        raise
    return builder.as_dataset()


def load_clips(data_dir: str | Path, *, num_proc: int | None = None, **settings: Any) -> datasets.DatasetDict:
    """`clips_builder` and `build_clips` in one: an archive's clips as train, validation and test.

    Args:
        data_dir: The archive (see `read_archive`).
        num_proc: Number of processes.
        **settings: What else `clips_builder` takes: `splits`, `cache_dir`, `min_annotations`, `sampling_rate`, ...

    Raises:
        UserError: If the archive, the splits or a recording cannot be used.
    """
    return build_clips(clips_builder(data_dir, **settings), num_proc)
