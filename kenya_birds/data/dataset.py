"""Annotated clips of an archive as data sets, cut once and then read from the cache of `datasets`."""

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, overload

import datasets
import pandas as pd

from kenya_birds.data.builders import NO_CALL, KenyaBirds, NoCallConfig, NoCallWindows, lacking_channel
from kenya_birds.data.clips_cache import writing_cache
from kenya_birds.data.joined_archive import divide_each
from kenya_birds.data.silent_recordings import with_others
from kenya_birds.data.splits import SPLITS, check_splits, recordings_in, stratified_folds
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

UNUSED_COLUMNS: dict[str | None, list[str]] = {
    None: [],
    "single_label_classification": ["labels", "unknown"],
    "multi_label_classification": ["label"],
}


def clips_builder(
    data_dir: str | Path, *, splits: pd.DataFrame | None = None, cache_dir: str | Path | None = None, **settings: Any
) -> KenyaBirds:
    """Reads an archive and plans its clips, without cutting them (see `build_clips`).

    Args:
        data_dir: The archive (see `read_archive`).
        splits: `recording` and `split`, as `stratified_split` and `read_splits` return; by default `stratified_split`.
        cache_dir: Folder for the clips; by default the cache of `datasets`.
        **settings: The fields of `ClipsConfig`.

    Raises:
        UserError: If the archive or the splits cannot be used.
    """
    if splits is not None:
        check_splits(splits, set(splits["recording"]))
        settings["splits"] = dict(zip(splits["recording"], splits["split"], strict=True))
    with writing_cache(cache_dir):
        return KenyaBirds(
            data_dir=str(Path(data_dir).resolve()),
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            dataset_name="kenya_birds",
            **settings,
        )


def make_folds(builder: KenyaBirds, folds: int, seed: int, among: Collection[str] | None = None) -> pd.DataFrame:
    """Divides the recordings of an archive into folds, those of each archive of a joined one by itself.

    Args:
        builder: Plans the clips whose recordings are divided; those without clips are added.
        folds: Number of folds.
        seed: Seed of `stratified_folds`.
        among: The recordings to divide; by default all that may be in any split.

    Returns:
        `recording` and `fold`, in the order of recordings.

    Raises:
        UserError: If there are fewer recordings than folds.
    """
    clips, together = builder.divided, builder.same_sound
    table = divide_each(
        clips if among is None else clips[clips["recording"].isin(among)],
        builder.archive.archive_of,
        together,
        lambda part: stratified_folds(part, folds, seed=seed, same_sound=together),
        least=folds,
    )
    return with_others(table, builder.archive, together, among)


def build_clips(builder: KenyaBirds, num_proc: int | None = None) -> datasets.DatasetDict:
    """Cuts the clips of train, validation and test, or reads them from the cache.

    Clips whose sound cannot be read are skipped, counted and logged. Neighbouring clips are kept.

    Args:
        builder: Result of `clips_builder`.
        num_proc: Number of processes. Each works on its own recordings.

    Returns:
        The clips by split, with the columns of `KenyaBirds`. The audio is not decoded: `audio["bytes"]` is a WAV file
        that `decode_wav` reads without FFmpeg.

    Raises:
        UserError: If `num_proc` is below 1, or a split has no clip whose sound can be read.
    """
    _check_processes(num_proc)
    with writing_cache(builder.cache_root):
        builder.download_and_prepare(num_proc=num_proc)
    for split, info in builder.info.splits.items():
        if not info.num_examples:
            raise no_clips(builder, str(split), builder.splits)
    clips = builder.as_dataset()
    missed = missed_clips(builder, clips)
    if len(missed):
        logger.warning(
            "Skipped %d of %d clips, whose sound cannot be read: %s",
            len(missed),
            len(builder.clips),
            ", ".join(f"{n} of {name}" for name, n in missed["recording"].value_counts(sort=False).items()),
        )
    return clips


def no_clips(builder: KenyaBirds, split: str, splits: pd.DataFrame) -> UserError:
    """The error that no clip of a split can be read, with the reason and what to do.

    Args:
        builder: Result of `clips_builder`.
        split: The split.
        splits: `recording` and `split`.
    """
    channel, recordings = builder.config.channel, set(recordings_in(splits, split))
    lacking = len(recordings & lacking_channel(builder.archive, channel).keys())
    if lacking:
        return UserError(
            f"no clip of the {split} split can be read: {lacking} of its {len(recordings)} recordings have no channel "
            f"{channel}; give another --channel, or splits with recordings that have it"
        )
    return UserError(f"no clip of the {split} split can be read: download its recordings again, or make other splits")


def missed_clips(builder: KenyaBirds, clips: datasets.DatasetDict) -> pd.DataFrame:
    """Returns the rows of `builder.clips` that were skipped, because their sound cannot be read.

    Args:
        builder: Result of `clips_builder`.
        clips: Result of `build_clips`.
    """
    cut = [
        key
        for split in clips
        for key in zip(clips[split]["recording"], clips[split]["center_s"], clips[split]["label"], strict=True)
    ]
    planned = pd.MultiIndex.from_frame(builder.clips[["recording", "center_s", "label"]])
    return builder.clips[~planned.isin(cut)]


def load_no_call(builder: KenyaBirds, num_proc: int | None = None, **settings: Any) -> datasets.Dataset:
    """Cuts windows without annotations from the training recordings, or reads them from the cache.

    The clips of `builder` are not cut. Windows come from recordings of one split only.

    Args:
        builder: Result of `clips_builder`. Its sampling rate, clip length, context, splits and cache are used.
        num_proc: Number of processes. Each works on its own recordings.
        **settings: `no_call_split` ("train"), `no_call_per_recording` (20), `no_call_margin_s` (1.5),
            `no_call_order` ("quietest"), see `NoCallConfig`; and another `context_s`.

    Returns:
        The windows, with the columns of `KenyaBirds`: `label` is None, `labels` is empty and `center_s` is the centre
        of the window. Windows whose sound cannot be read are skipped.

    Raises:
        UserError: If a setting is out of range, or there is no such window.
    """
    _check_processes(num_proc)
    with writing_cache(builder.cache_root):
        no_call = NoCallWindows(builder, **settings)
        no_call.download_and_prepare(num_proc=num_proc)
    if not no_call.info.splits[NO_CALL].num_examples:
        config = no_call.config
        raise UserError(
            f"no recording of the {config.no_call_split} split has a readable window of "
            f"{config.clip_s + 2 * config.context_s:g} s that is {config.no_call_margin_s:g} s away from every "
            "annotation: lower no_call_margin_s, or train without such windows"
        )
    return no_call.as_dataset(NO_CALL)


@overload
def load_clips(data_dir: str | Path, *, split: None = None, **settings: Any) -> datasets.DatasetDict: ...


@overload
def load_clips(data_dir: str | Path, *, split: str, **settings: Any) -> datasets.Dataset: ...


def load_clips(
    data_dir: str | Path,
    *,
    split: str | None = None,
    problem_type: str | None = None,
    num_proc: int | None = None,
    **settings: Any,
) -> datasets.DatasetDict | datasets.Dataset:
    """Loads the clips of an archive: `clips_builder`, then `build_clips` or `load_no_call`.

    Args:
        data_dir: The archive (see `read_archive`).
        split: `train`, `validation`, `test`, or `no_call` (see `load_no_call`). By default the first three.
        problem_type: `single_label_classification` drops the columns `labels` and `unknown`;
            `multi_label_classification` drops `label`. By default all columns are kept. The cache is the same.
        num_proc: Number of processes.
        **settings: Other arguments of `clips_builder`: `splits`, `cache_dir`, `min_annotations`, `sampling_rate`, ...;
            with `no_call` also the arguments of `load_no_call`.

    Returns:
        The clips by split, or the clips of the requested split.

    Raises:
        UserError: If the archive or the splits cannot be used, or the split or problem type does not exist.
    """
    if split not in (None, NO_CALL, *SPLITS):
        raise UserError(f"no split {split!r}: expected one of {', '.join((*SPLITS, NO_CALL))}")
    if problem_type not in UNUSED_COLUMNS:
        raise UserError(f"no problem type {problem_type!r}: expected one of {', '.join(filter(None, UNUSED_COLUMNS))}")
    if split == NO_CALL:
        chosen = {name: settings.pop(name) for name in NoCallConfig.__annotations__ if name in settings}
        clips = load_no_call(clips_builder(data_dir, **settings), num_proc, **chosen)
    else:
        clips = build_clips(clips_builder(data_dir, **settings), num_proc)
        clips = clips if split is None else clips[split]
    return clips.remove_columns(UNUSED_COLUMNS[problem_type])


def _check_processes(num_proc: int | None) -> None:
    if num_proc is not None and num_proc < 1:
        raise UserError(f"num_proc is {num_proc}: expected 1 or more processes")
