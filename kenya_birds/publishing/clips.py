"""Gives clips to the Hugging Face Hub: in Parquet, which `datasets.load_dataset` reads, with a data set card."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from datasets.splits import SplitInfo

from kenya_birds.data.builders import ClipsConfig, KenyaBirds
from kenya_birds.data.dataset import clips_builder
from kenya_birds.data.splits import read_folds, read_splits, splits_of_fold
from kenya_birds.errors import UserError
from kenya_birds.experiments.cross_validation import FOLDS_FILE
from kenya_birds.json_files import read_json
from kenya_birds.output_files import is_new_or_empty, put_folder_in_place
from kenya_birds.publishing.clips_card import render_clips_card
from kenya_birds.publishing.hub import full_repo_id, upload_files
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.settings_record import clip_settings

CARD = "README.md"
DATA = "data"
MAX_SHARD_BYTES = 500_000_000
# Who wants one row, as the Hub's viewer does, has to fetch its whole group: here about 20 MB.
ROWS_PER_GROUP = 100


def model_clips_builder(model_dir: Path, data_dir: Path) -> KenyaBirds:
    """Plans the clips that a model was trained and tested on; nothing is cut yet.

    Of a model of all recordings the splits are those of the cross-validation's first fold.

    Args:
        model_dir: Folder that training wrote: its splits, its classes and how its clips were cut count.
        data_dir: The archive.

    Raises:
        UserError: If a file of the folder is missing, or the archive is not the one that the model was trained on: a
            recording of its splits or a class is missing, or there is one more.
    """
    config = read_json(model_dir / "config.json")
    folds = model_dir / FOLDS_FILE
    builder = clips_builder(
        data_dir,
        splits=splits_of_fold(read_folds(folds), 0) if folds.is_file() else read_splits(model_dir / SPLITS_FILE),
        **clip_settings(model_dir),
    )
    if builder.classes != (classes := list(config["id2label"].values())):
        apart = sorted(set(builder.classes) ^ set(classes))
        raise UserError(
            f"{data_dir} is not the archive that {model_dir} was trained on, its species differ "
            f"({', '.join(apart) or 'in their order'}): give that one, or leave out --with_dataset"
        )
    return builder


def cutting_facts(builder: KenyaBirds) -> dict[str, Any]:
    """How an archive's clips are cut and which species are in them, for `save_clips` and `push_clips`."""
    # The fields of its own: those of datasets.BuilderConfig name folders of this machine.
    settings = {name: getattr(builder.config, name) for name in ClipsConfig.__annotations__ if name != "splits"}
    return {"settings": settings, "species": builder.archive.species_names(builder.classes)}


def save_clips(clips: datasets.DatasetDict, folder: str | Path, *, title: str, **card: Any) -> Path:
    """Writes clips as Parquet files with a data set card: a folder that `datasets.load_dataset` reads.

    The folder appears whole or not at all. The same clips and arguments give the same files, byte for byte.

    Args:
        clips: What `load_clips` returns.
        folder: Folder to make; may exist if it is empty.
        title: The card's title.
        **card: What else `render_clips_card` takes: `repo_id`, `source`, `license`, `settings`, `species`, `template`.

    Returns:
        The folder.

    Raises:
        UserError: The clips are none or do not hold their audio, the template is missing, or the folder is not empty
            or cannot be written.
    """
    folder = Path(folder).resolve()
    _check_clips(clips)
    # With decode=True the Hub's viewer plays the feature; the cast itself decodes nothing.
    audio = next(iter(clips.values())).features["audio"]
    clips = clips.cast_column("audio", replace(audio, decode=True))
    try:
        if not is_new_or_empty(folder):
            raise UserError(f"{folder} exists and is not an empty folder; give another one or remove it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            (partial / DATA).mkdir(parents=True)
            sizes = [_write_split(split, rows, partial / DATA) for split, rows in clips.items()]
            download_size = sum(path.stat().st_size for path in (partial / DATA).iterdir())
            files = {split: f"{DATA}/{split}-*" for split in clips}
            text = render_clips_card(clips, files, sizes, download_size, title=title, **card)
            (partial / CARD).write_text(text, encoding="utf-8")
            put_folder_in_place(partial, folder)
    except OSError as error:
        raise UserError(f"the clips cannot be written to {folder}: {error.strerror or error}") from None
    return folder


def push_clips(
    clips: datasets.DatasetDict,
    repo_id: str,
    *,
    title: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    **card: Any,
) -> str:
    """Uploads clips as Parquet to a data set repository, which is made if need be, in one commit.

    Parquet files of an earlier upload that are not in this one are deleted by the same commit.

    Args:
        clips: What `load_clips` returns.
        repo_id: `owner/name`, or `name` alone for the account that is logged in.
        title: The card's title.
        private: Whether the repository is made private.
        revision: Branch to commit to, which is made if need be.
        token: Access token; by default the one of the Hub's login or of HF_TOKEN.
        **card: What else `render_clips_card` takes: `source`, `license`, `settings`, `species`, `template`.

    Returns:
        The address of the commit.

    Raises:
        UserError: See `save_clips` and `upload_files`.
    """
    repo_id = full_repo_id(repo_id, repo_type="dataset", token=token)
    with tempfile.TemporaryDirectory(prefix="kenya_birds_") as temporary:
        folder = save_clips(clips, Path(temporary) / "clips", title=title, repo_id=repo_id, **card)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        commit = upload_files(
            {path.relative_to(folder).as_posix(): path for path in files},
            repo_id,
            message="Upload the clips",
            repo_type="dataset",
            replaced=f"{DATA}/*-of-*.parquet",
            private=private,
            revision=revision,
            token=token,
        )
    return str(commit.commit_url)


def _check_clips(clips: datasets.DatasetDict) -> None:
    if not any(len(rows) for rows in clips.values()):
        raise UserError("there are no clips to save")
    for split, rows in clips.items():
        audio = rows.data.column("audio")
        paths, contents = pc.struct_field(audio, "path"), pc.struct_field(audio, "bytes")
        # A path would tell everyone about this machine, and lead nowhere on another.
        if paths.null_count < len(audio) or contents.null_count:
            raise UserError(f"the {split} clips refer to audio files: expected their bytes, as load_clips gives them")


def _write_split(split: str, rows: datasets.Dataset, folder: Path) -> SplitInfo:
    bytes_per_row = rows.data.nbytes / max(1, rows.data.num_rows)
    shards = max(1, math.ceil(bytes_per_row * len(rows) / MAX_SHARD_BYTES))
    num_bytes = 0
    for index in range(shards):
        with open(folder / f"{split}-{index:05d}-of-{shards:05d}.parquet", "wb") as file:
            num_bytes += rows.shard(shards, index, contiguous=True).to_parquet(file, batch_size=ROWS_PER_GROUP)
    return SplitInfo(split, num_bytes=num_bytes, num_examples=len(rows))
