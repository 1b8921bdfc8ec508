"""Writes the card of a data set of clips: what the Hub's page of it says, and what `load_dataset` reads first."""

import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCard, DatasetCardData

from kenya_birds.errors import UserError
from kenya_birds.publishing.markdown import markdown_cell

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
