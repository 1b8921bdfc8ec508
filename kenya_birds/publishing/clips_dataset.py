"""An archive's clips as a data set on the Hub, and its card."""

import io
import math
import re
import tempfile
import wave
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.compute as pc
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCard, DatasetCardData

from kenya_birds.data.builders import ClipsConfig, KenyaBirds
from kenya_birds.data.dataset import clips_builder
from kenya_birds.data.splits import read_folds, read_splits, splits_of_fold
from kenya_birds.errors import UserError
from kenya_birds.experiments.cross_validation import FOLDS_FILE
from kenya_birds.files import is_new_or_empty, put_folder_in_place, read_json
from kenya_birds.publishing.hub import full_repo_id, upload_files
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.settings import clip_settings


def markdown_cell(value: object) -> str:
    """A value as text of a table's cell, in which no character is a sign of Markdown or HTML.

    Args:
        value: What the cell shows.
    """
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(value).split()))


KENYAN_LICENSE = "cc-by-4.0"
KENYAN_SOURCE = (
    "Recordings and annotations: S. Kahl, H. Reers, W. Cherutich, A. Jacot and H. Klinck (2024), annotated soundscape "
    "recordings from Kenya, Zenodo, https://doi.org/10.5281/zenodo.10943500, CC-BY-4.0. Cite them when you use the "
    "clips."
)
COLUMNS = {
    "audio": "the sound: a mono WAV file of 16-bit integers or 32-bit floats, mirrored past the recording's ends",
    "label": "class of the annotation round which the clip is cut; none where a clip holds no annotated call",
    "labels": "classes of every annotation whose centre lies in the clip, each once",
    "unknown": "whether a bird that the annotators could not name is centred in the clip",
    "recording": "file name of the recording",
    "start_s": "start of the clip without its context, in seconds of the recording; negative where it begins earlier",
    "center_s": "centre of the annotation, in seconds of the recording",
}
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ clips }} clips of sound in {{ classes | length }} classes, cut from {{ recordings }} annotated soundscape recordings
with `kenya_birds`. Classes are named by eBird codes.

## Use

```python
import io

import soundfile
from datasets import Audio, load_dataset

clips = load_dataset("{{ repo_id }}")  # with streaming=True nothing is downloaded before it is needed
clips = clips.cast_column("audio", Audio(decode=False))  # Audio() itself decodes with torchcodec, which needs FFmpeg
clip = next(iter(clips["{{ splits[0].name }}"]))
waveform, sampling_rate = soundfile.read(io.BytesIO(clip["audio"]["bytes"]), dtype="float32")
names = clips["{{ splits[0].name }}"].features["label"].names
print(names[clip["label"]], "in", clip["recording"], waveform.shape, sampling_rate)
```

## What a row is

| Column | Type | What it holds |
| --- | --- | --- |
{% for column in columns -%}
| {{ column.name }} | {{ column.type }} | {{ column.about }} |
{% endfor %}
## How it was cut

A clip is {{ clip_s }} s of sound at {{ sampling_rate }} Hz, context included where it has any. Class ids come from the
whole archive and mean the same in every split. Recordings stay whole: of train, validation and test, no two hold clips
of the same one.
{% if settings %}
| Setting | Value |
| --- | --- |
{% for name, value in settings.items() -%}
| {{ name }} | {{ cell(value) }} |
{% endfor -%}
{% endif %}
## Splits

| Split | Recordings | Clips |
| --- | --- | --- |
{% for split in splits -%}
| {{ split.name }} | {{ split.recordings }} | {{ split.clips }} |
{% endfor %}
## Classes

Clips by the class of the annotation round which they are cut.

| Class | Code |{% if species %} Species |{% endif %}{% for split in splits %} {{ split.name }} |{% endfor %}
| --- | --- |{% if species %} --- |{% endif %}{% for split in splits %} --- |{% endfor %}
{% for code in classes -%}
{% set label = loop.index0 -%}
| {{ label }} | {{ cell(code) }} |
{%- if species %} {% if code in species -%}
{{ cell(species[code].common_name) }} (*{{ cell(species[code].scientific_name) }}*){% endif %} |{% endif %}
{%- for split in splits %} {{ split.clips_per_class[label] }} |{% endfor %}
{% endfor %}
{%- if source %}
## Source and citation

{{ source }}
{% endif %}"""


def render_clips_card(
    clips: datasets.DatasetDict,
    files: Mapping[str, str],
    sizes: list[SplitInfo],
    download_size: int,
    *,
    title: str,
    repo_id: str = "OWNER/NAME",
    source: str | None = None,
    license: str | None = None,
    settings: Mapping[str, Any] | None = None,
    species: Mapping[str, Mapping[str, str]] | None = None,
    template: Path | None = None,
) -> str:
    """The text of a data set's README.md.

    Args:
        clips: The clips, with the features that the files have.
        files: Pattern of the files' names by split.
        sizes: Number of clips and of bytes of each split.
        download_size: Bytes of all files.
        title: The card's title.
        repo_id: `owner/name` that the card tells how to load.
        source: Whom to credit and cite for the recordings and annotations (see `KENYAN_SOURCE`).
        license: Name of the licence, as the Hub spells it; None if none has been chosen.
        settings: What else the card tells of how the clips were cut, by name.
        species: `common_name` and `scientific_name` by class, as `Archive.species_names` gives them.
        template: Jinja template of the card instead of `TEMPLATE`.

    Raises:
        UserError: If the template is missing.
    """
    if template is not None and not template.is_file():
        raise UserError(f"no data set card template at {template}")
    metadata = DatasetCardData(
        license=license,
        pretty_name=title,
        task_categories=["audio-classification"],
        tags=["bioacoustics", "birds", "soundscape"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": pattern} for split, pattern in files.items()],
            }
        ],
    )
    # Not the clips' own DatasetInfo, which says where on this machine they were made.
    info = datasets.DatasetInfo(
        features=_features(clips),
        splits=SplitDict({split.name: split for split in sizes}),
        download_size=download_size,
        dataset_size=sum(split.num_bytes for split in sizes),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(metadata)
    card = DatasetCard.from_template(
        metadata,
        template_path=None if template is None else str(template),
        template_str=TEMPLATE,
        **_facts(clips),
        cell=markdown_cell,
        title=title,
        repo_id=repo_id,
        source=source,
        settings=settings,
        species=species,
    )
    return f"{str(card).rstrip()}\n"


def _features(clips: datasets.DatasetDict) -> datasets.Features:
    return next(iter(clips.values())).features


def _facts(clips: datasets.DatasetDict) -> dict[str, Any]:
    """What the clips themselves say, for the card's template."""
    features = _features(clips)
    classes = features["label"].names
    tables: dict[str, pd.DataFrame] = {
        split: rows.select_columns(["label", "recording"]).to_pandas() for split, rows in clips.items()
    }
    counts = {split: table["label"].value_counts() for split, table in tables.items()}
    first = next(rows.data.column("audio")[0]["bytes"].as_py() for rows in clips.values() if len(rows))
    with wave.open(io.BytesIO(first)) as wav:
        clip_s = wav.getnframes() / wav.getframerate()
    return {
        "classes": classes,
        "clips": sum(map(len, tables.values())),
        "recordings": pd.concat(tables)["recording"].nunique(),
        "clip_s": f"{clip_s:g}",
        "sampling_rate": features["audio"].sampling_rate,
        "columns": [
            {"name": name, "type": _type_name(feature), "about": COLUMNS.get(name, "")}
            for name, feature in features.items()
        ],
        "splits": [
            {
                "name": split,
                "clips": len(table),
                "recordings": table["recording"].nunique(),
                "clips_per_class": [int(counts[split].get(index, 0)) for index in range(len(classes))],
            }
            for split, table in tables.items()
        ],
    }


def _type_name(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return "class id"
    if isinstance(feature, datasets.List):
        return f"list of {_type_name(feature.feature)}"
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__


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
