"""Clips of an archive as a data set on the Hub, with its card."""

import io
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.compute as pc
import soundfile
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCard, DatasetCardData

from kenya_birds.data.builders import ClipsConfig, KenyaBirds
from kenya_birds.data.dataset import clips_builder
from kenya_birds.data.splits import read_folds, read_splits, splits_of_fold
from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.folders import is_new_or_empty, users_folder
from kenya_birds.publishing.hub import full_repo_id, upload_files
from kenya_birds.training.run_folder import FOLDS_FILE, SPLITS_FILE
from kenya_birds.training.settings import clip_settings


def markdown_cell(value: object) -> str:
    """Escapes a value for a cell of a Markdown table.

    Args:
        value: The content of the cell.
    """
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(value).split()))


KENYAN_LICENSE = "cc-by-4.0"
KENYAN_SOURCE = (
    "Recordings and annotations: S. Kahl, H. Reers, W. Cherutich, A. Jacot and H. Klinck (2024), annotated soundscape "
    "recordings from Kenya, Zenodo, https://doi.org/10.5281/zenodo.10943500, CC-BY-4.0. Cite them when you use the "
    "clips."
)
COLUMNS = {
    "audio": "the sound: a mono WAV file (int16 or float32), padded by reflection at the recording's ends",
    "label": "class of the annotation in the centre of the clip; none for a clip without annotated call",
    "labels": "classes of all annotations with their centre in the clip, without repetition",
    "unknown": "whether an annotation of an unidentified bird has its centre in the clip",
    "weak": "whether the species is known for the whole recording only, which has signal in the clip",
    "recording": "file name of the recording",
    "start_s": "start of the clip without its context, in seconds of the recording; may be negative",
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

clips = load_dataset("{{ repo_id }}")  # streaming=True downloads only what is read
clips = clips.cast_column("audio", Audio(decode=False))  # decoding by Audio() needs torchcodec and FFmpeg
clip = next(iter(clips["{{ splits[0].name }}"]))
waveform, sampling_rate = soundfile.read(io.BytesIO(clip["audio"]["bytes"]), dtype="float32")
names = clips["{{ splits[0].name }}"].features["label"].names
print(names[clip["label"]], "in", clip["recording"], waveform.shape, sampling_rate)
```

## Columns

| Column | Type | Content |
| --- | --- | --- |
{% for column in columns -%}
| {{ column.name }} | {{ column.type }} | {{ column.about }} |
{% endfor %}
## Clips

A clip is {{ clip_s }} s of sound at {{ sampling_rate }} Hz, including its context. Class ids are the same in all
splits. All clips of a recording are in one split.
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

Number of clips by the class of the annotation in their centre.

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


def source_and_license(source: str | None, license: str | None) -> tuple[str | None, str | None]:
    """Citation and licence of recordings, with those of the Kenyan archive where the source is `kenya`.

    Args:
        source: A citation, `kenya`, or None.
        license: The chosen licence, as the Hub spells it; None: by default none, and that of the Kenyan archive.
    """
    if source != "kenya":
        return source, license
    return KENYAN_SOURCE, license or KENYAN_LICENSE


@dataclass(frozen=True)
class ClipsCard:
    """What the card of a data set says, besides what its clips say.

    Attributes:
        title: The card's title; line breaks become spaces.
        repo_id: `owner/name`, for the example in the card.
        source: Credit and citation for the recordings and annotations (see `KENYAN_SOURCE`).
        license: Licence, by its identifier on the Hub; None if none has been chosen.
        settings: Further settings of the clips for the card, by name.
        species: `common_name` and `scientific_name` by class (see `Archive.species_names`).
        template: Jinja template of the card instead of `TEMPLATE`.

    Raises:
        UserError: If the template is missing.
    """

    title: str
    repo_id: str = "OWNER/NAME"
    source: str | None = None
    license: str | None = None
    settings: Mapping[str, Any] | None = None
    species: Mapping[str, Mapping[str, str]] | None = None
    template: Path | None = None

    def __post_init__(self) -> None:
        """Checks the template."""
        if self.template is not None and not self.template.is_file():
            raise UserError(f"there is no data set card template {self.template}: give an existing file")


def render_clips_card(
    card: ClipsCard,
    clips: datasets.DatasetDict,
    files: Mapping[str, str],
    sizes: list[SplitInfo],
    download_size: int,
) -> str:
    """The text of a data set's README.md.

    Args:
        card: What it says besides.
        clips: The clips, with the features of the files.
        files: Pattern of the files' names by split.
        sizes: Number of clips and of bytes of each split.
        download_size: Bytes of all files.
    """
    title = " ".join(card.title.split())
    metadata = DatasetCardData(
        license=card.license,
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
    # The clips' own DatasetInfo is not used, because it contains local paths.
    info = datasets.DatasetInfo(
        features=_features(clips),
        splits=SplitDict({split.name: split for split in sizes}),
        download_size=download_size,
        dataset_size=sum(split.num_bytes for split in sizes),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(metadata)
    text = DatasetCard.from_template(
        metadata,
        template_path=None if card.template is None else str(card.template),
        template_str=TEMPLATE,
        **_facts(clips),
        cell=markdown_cell,
        title=title,
        repo_id=card.repo_id,
        source=card.source,
        settings=card.settings,
        species=card.species,
    )
    return f"{str(text).rstrip()}\n"


def _features(clips: datasets.DatasetDict) -> datasets.Features:
    return next(iter(clips.values())).features


def _facts(clips: datasets.DatasetDict) -> dict[str, Any]:
    """Values for the card's template that come from the clips."""
    features = _features(clips)
    classes = features["label"].names
    tables: dict[str, pd.DataFrame] = {
        split: rows.select_columns(["label", "recording"]).to_pandas() for split, rows in clips.items()
    }
    counts = {split: table["label"].value_counts() for split, table in tables.items()}
    first = next(rows.data.column("audio")[0]["bytes"].as_py() for rows in clips.values() if len(rows))
    clip_s = soundfile.info(io.BytesIO(first)).duration
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
# A reader of one row, such as the Hub's viewer, has to read its whole row group: here about 20 MB.
ROWS_PER_GROUP = 100


def model_clips_builder(model_dir: Path, data_dir: Path) -> KenyaBirds:
    """Returns the builder of the clips on which a model was trained and tested. No clip is cut yet.

    A model of all recordings has the splits of the cross-validation's first fold.

    Args:
        model_dir: Output folder of training, with splits, classes and settings of the clips.
        data_dir: The archive.

    Raises:
        UserError: If a file of the folder is missing, or the archive does not have the same recordings and classes as
            in training.
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
            f"{data_dir} is not the archive that {model_dir} was trained on: its species differ "
            f"({', '.join(apart) or 'in their order'}); give that archive, or omit --with_dataset"
        )
    return builder


def cutting_facts(builder: KenyaBirds) -> dict[str, Any]:
    """Settings and species of an archive's clips, for `save_clips` and `push_clips`."""
    # The fields of datasets.BuilderConfig are excluded, because they contain local paths.
    settings = {name: getattr(builder.config, name) for name in ClipsConfig.__annotations__ if name != "splits"}
    return {"settings": settings, "species": builder.archive.species_names(builder.classes)}


def save_clips(clips: datasets.DatasetDict, folder: str | Path, *, title: str, **card: Any) -> Path:
    """Writes clips as Parquet files with a data set card, in a folder that `datasets.load_dataset` reads.

    The folder is written completely or not at all. The same clips and arguments give the same files, byte for byte.

    Args:
        clips: The result of `load_clips`.
        folder: Output folder, new or empty.
        title: The card's title.
        **card: Other fields of `ClipsCard`: `repo_id`, `source`, `license`, `settings`, `species`, `template`.

    Returns:
        The folder.

    Raises:
        UserError: If there are no clips, the clips have no audio, the template does not exist, or the
            folder is not empty or cannot be written.
    """
    folder = Path(folder).resolve()
    about = ClipsCard(title, **card)
    _check_clips(clips)
    # decode=True lets the Hub's viewer play the clips; the cast itself does not decode.
    audio = next(iter(clips.values())).features["audio"]
    clips = clips.cast_column("audio", replace(audio, decode=True))
    if not is_new_or_empty(folder):
        raise UserError(f"{folder} exists and is not an empty folder; give another one or remove it")
    with users_folder(folder, f"the folder of the clips {folder}") as partial:
        (partial / DATA).mkdir()
        sizes = [_write_split(split, rows, partial / DATA) for split, rows in clips.items()]
        download_size = sum(path.stat().st_size for path in (partial / DATA).iterdir())
        files = {split: f"{DATA}/{split}-*" for split in clips}
        text = render_clips_card(about, clips, files, sizes, download_size)
        (partial / CARD).write_text(text, encoding="utf-8")
    return folder


def push_clips(
    clips: datasets.DatasetDict,
    repo_id: str,
    *,
    title: str,
    private: bool = False,
    revision: str | None = None,
    **card: Any,
) -> str:
    """Uploads clips as Parquet to a data set repository in one commit.

    The repository is created if it does not exist. The same commit deletes other Parquet files of earlier uploads.

    Args:
        clips: The result of `load_clips`.
        repo_id: `owner/name`, or `name` for the logged-in account.
        title: The card's title.
        private: Whether a new repository is private.
        revision: Branch to commit to; it is created if it does not exist.
        **card: Other fields of `ClipsCard`: `source`, `license`, `settings`, `species`, `template`.

    Returns:
        The URL of the commit.

    Raises:
        UserError: See `save_clips` and `upload_files`.
    """
    repo_id = full_repo_id(repo_id, "dataset")
    with tempfile.TemporaryDirectory(prefix="kenya_birds_") as temporary:
        folder = save_clips(clips, Path(temporary) / "clips", title=title, repo_id=repo_id, **card)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        commit = upload_files(
            {path.relative_to(folder).as_posix(): path for path in files},
            repo_id,
            message="Upload the clips",
            repo_type="dataset",
            replaced=(f"{DATA}/*-of-*.parquet",),
            private=private,
            revision=revision,
        )
    return str(commit.commit_url)


def _check_clips(clips: datasets.DatasetDict) -> None:
    if not any(len(rows) for rows in clips.values()):
        raise UserError("there are no clips to save")
    for split, rows in clips.items():
        audio = rows.data.column("audio")
        paths, contents = pc.struct_field(audio, "path"), pc.struct_field(audio, "bytes")
        # A local path is private, and useless on another machine.
        if paths.null_count < len(audio) or contents.null_count:
            raise UserError(f"the {split} clips refer to audio files: expected clips with bytes, as from load_clips")


def _write_split(split: str, rows: datasets.Dataset, folder: Path) -> SplitInfo:
    bytes_per_row = rows.data.nbytes / max(1, rows.data.num_rows)
    shards = max(1, math.ceil(bytes_per_row * len(rows) / MAX_SHARD_BYTES))
    num_bytes = 0
    for index in range(shards):
        with open(folder / f"{split}-{index:05d}-of-{shards:05d}.parquet", "wb") as file:
            num_bytes += rows.shard(shards, index, contiguous=True).to_parquet(file, batch_size=ROWS_PER_GROUP)
    return SplitInfo(split, num_bytes=num_bytes, num_examples=len(rows))
