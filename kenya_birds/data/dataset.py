"""The annotated clips of an archive as data sets, cut once and then found in the cache of `datasets`."""

import logging
from pathlib import Path
from typing import Any, overload

import datasets
import pandas as pd

from kenya_birds.data.builders import NO_CALL, KenyaBirds, NoCallConfig, NoCallWindows
from kenya_birds.data.splits import SPLITS, check_splits
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
    """Reads an archive and plans its clips; nothing is cut yet (see `build_clips`).

    Args:
        data_dir: The archive (see `read_archive`).
        splits: `recording` and `split`, as `stratified_split` and `read_splits` return; by default `stratified_split`.
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
    _check_processes(num_proc)
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
        for split in clips
        for key in zip(clips[split]["recording"], clips[split]["center_s"], clips[split]["label"], strict=True)
    ]
    planned = pd.MultiIndex.from_frame(builder.clips[["recording", "center_s", "label"]])
    return builder.clips[~planned.isin(cut)]


def load_no_call(builder: KenyaBirds, num_proc: int | None = None, **settings: Any) -> datasets.Dataset:
    """Cuts windows of the training recordings in which nothing is annotated, or finds them in the cache.

    The clips that `builder` makes are not cut for it, and no window is from a recording of another split.

    Args:
        builder: What `clips_builder` returns: rate, length, context, splits and cache are its own.
        num_proc: Number of processes; each works on recordings of its own.
        **settings: `no_call_split` ("train"), `no_call_per_recording` (20), `no_call_margin_s` (1.5),
            `no_call_order` ("quietest"), see `NoCallConfig`; and another `context_s`.

    Returns:
        The windows, with the columns of `KenyaBirds`: `label` is None, `labels` is empty and `center_s` is the
        window's own. A window whose sound cannot be read is left out.

    Raises:
        UserError: If a setting is out of range, or there is no such window.
    """
    _check_processes(num_proc)
    no_call = NoCallWindows(builder, **settings)
    no_call.download_and_prepare(num_proc=num_proc)
    if not no_call.info.splits[NO_CALL].num_examples:
        config = no_call.config
        raise UserError(
            f"no recording of the {config.no_call_split} split has a window of "
            f"{config.clip_s + 2 * config.context_s:g} s that can be read and is {config.no_call_margin_s:g} s away "
            "from every annotation: lower no_call_margin_s, or go without"
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
    """`clips_builder` with `build_clips` or `load_no_call`: an archive's clips.

    Args:
        data_dir: The archive (see `read_archive`).
        split: `train`, `validation`, `test`, or `no_call` (see `load_no_call`). By default the first three.
        problem_type: `single_label_classification` leaves out `labels` and `unknown`, `multi_label_classification`
            leaves out `label`; by default every column is there. What is cut and kept in the cache is the same.
        num_proc: Number of processes.
        **settings: What else `clips_builder` takes: `splits`, `cache_dir`, `min_annotations`, `sampling_rate`, ...;
            with `no_call` also what `load_no_call` takes.

    Returns:
        The clips by split, or those of the split that was asked for.

    Raises:
        UserError: If the archive or the splits cannot be used, or there is no such split or problem type.
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
