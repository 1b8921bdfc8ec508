import hashlib
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from fake_hub import FakeHub
from fresh_python import run_fresh

from kenya_birds import cli
from kenya_birds.data.dataset import load_clips
from kenya_birds.errors import UserError
from kenya_birds.publishing import clips_dataset as publishing
from kenya_birds.publishing.clips_dataset import COLUMNS, KENYAN_SOURCE

FILES = ["README.md", *(f"data/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation"))]


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        server.redirect(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture(scope="module")
def saved(clips, tmp_path_factory):
    return publishing.save_clips(clips, tmp_path_factory.mktemp("saved") / "out", title="Synthetic clips")


def read_back(folder, cache, **options):
    """Loads a folder as its users do, with the audio left undecoded as it is in the clips."""
    loaded = datasets.load_dataset(str(folder), cache_dir=str(cache), **options)
    return loaded.cast_column("audio", datasets.Audio(sampling_rate=32_000, decode=False))


def tables(clips):
    return {split: rows.with_format("arrow")[:] for split, rows in clips.items()}


def file_names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def table_of(card, heading):
    """The cells of the table below a heading."""
    section = card.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[:1] + rows[2:]


def test_saved_clips_load_the_same(clips, saved, tmp_path):
    assert file_names(saved) == FILES
    loaded = read_back(saved, tmp_path)

    assert list(loaded) == list(clips)
    assert loaded["train"].features == clips["train"].features
    assert loaded["train"].features["label"].names == clips["train"].features["label"].names
    assert tables(loaded) == tables(clips)


def test_clips_of_resampled_recordings_are_saved_too(small_archive, tmp_path):
    resampled = load_clips(small_archive, cache_dir=tmp_path / "clips", min_annotations=8, sampling_rate=24_000)
    folder = publishing.save_clips(resampled, tmp_path / "out", title="Resampled")
    assert tables(
        datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache")).cast(resampled["train"].features)
    ) == tables(resampled)
    assert " 3 s" in (folder / "README.md").read_text(encoding="utf-8")


def test_saved_clips_stream_the_same(clips, saved, tmp_path):
    streamed = read_back(saved, tmp_path, streaming=True)

    assert streamed["test"].features["label"].names == clips["test"].features["label"].names
    assert list(streamed["test"]) == clips["test"].to_list()


def test_the_viewer_gets_audio_to_play_and_small_row_groups(clips, saved, tmp_path):
    loaded = datasets.load_dataset(str(saved), cache_dir=str(tmp_path))
    assert loaded["train"].features["audio"] == datasets.Audio(sampling_rate=32_000)
    for path in saved.glob("data/*"):
        file = pq.ParquetFile(path)
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
        assert features == loaded["train"].features
        groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        assert max(groups) <= publishing.ROWS_PER_GROUP == 100


def test_large_splits_are_sharded(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "MAX_SHARD_BYTES", 5_000_000)
    monkeypatch.setattr(publishing, "ROWS_PER_GROUP", 10)
    folder = publishing.save_clips(clips, tmp_path / "out", title="Clips")

    names = file_names(folder)
    assert [name for name in names if "train" in name] == [f"data/train-0000{n}-of-00003.parquet" for n in range(3)]
    sizes = [path.stat().st_size for path in folder.glob("data/*")]
    assert max(sizes) < 5_100_000
    assert pq.ParquetFile(folder / names[-1]).metadata.row_group(0).num_rows == 10
    assert tables(read_back(folder, tmp_path / "cache")) == tables(clips)


def test_chosen_rows_are_saved_in_their_order(clips, tmp_path):
    few = datasets.DatasetDict({"train": clips["train"].select([5, 2, 9]), "test": clips["test"].select(range(2))})
    folder = publishing.save_clips(few, tmp_path / "out", title="Clips")
    assert tables(read_back(folder, tmp_path / "cache")) == tables(few)


def test_clips_without_a_class_and_columns_of_others_are_kept(clips, tmp_path):
    table = clips["train"].select(range(3)).with_format("arrow")[:]
    table = table.set_column(1, table.schema.field("label"), pa.nulls(3, pa.int64()))
    more = datasets.DatasetDict({"train": clips["test"].select(range(4)), "no_call": datasets.Dataset(table)})
    more = datasets.DatasetDict({split: rows.add_column("snr_db", [1.5] * len(rows)) for split, rows in more.items()})
    folder = publishing.save_clips(more, tmp_path / "out", title="Clips")

    loaded = read_back(folder, tmp_path / "cache")
    assert tables(loaded) == tables(more)
    assert loaded["no_call"]["label"][:] == [None] * 3
    card = (folder / "README.md").read_text()
    assert {row[-1] for row in table_of(card, "Classes")[1:]} == {"0"}
    assert ["no_call", "1", "3"] in [[row[0], row[1], row[2]] for row in table_of(card, "Splits")]
    assert "\n| snr_db | float64 |" in card


def test_the_card_tells_what_is_in_the_clips(clips, saved):
    card = (saved / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])

    assert "license" not in header, "nobody has chosen one"
    assert header["task_categories"] == ["audio-classification"]
    assert header["pretty_name"] == "Synthetic clips"
    assert header["configs"][0]["data_files"][0] == {"split": "train", "path": "data/train-*"}
    assert {split["name"]: split["num_examples"] for split in header["dataset_info"]["splits"]} == clips.num_rows
    assert "# Synthetic clips\n" in card
    assert "A clip is 3 s of sound at 32000 Hz" in card
    assert "\n## Source" not in card
    assert "{%" not in card

    (_, *columns) = table_of(card, "Columns")
    assert [name for name, _, _ in columns] == clips["train"].column_names
    assert clips["train"].column_names == [name for name in COLUMNS if name in clips["train"].column_names]
    (_, *splits) = table_of(card, "Splits")
    assert splits == [[s, str(len(set(rows["recording"]))), str(len(rows))] for s, rows in clips.items()]
    (_, *classes) = table_of(card, "Classes")
    names = clips["train"].features["label"].names
    counts = {split: np.bincount(rows["label"], minlength=len(names)) for split, rows in clips.items()}
    assert classes == [
        [str(label), name, *(str(counts[split][label]) for split in clips)] for label, name in enumerate(names)
    ]


def test_the_card_tells_what_it_is_given(clips, tmp_path):
    few = datasets.DatasetDict({"train": clips["train"].select(range(5))})
    code = few["train"].features["label"].names[1]
    card = publishing.save_clips(
        few,
        tmp_path / "out",
        title="Clips:\na test",
        source=KENYAN_SOURCE,
        license="cc0-1.0",
        settings={"clip_s": 3.0, "context_s": 0.5},
        species={code: {"common_name": "Synthetic Buzzer", "scientific_name": "Avis stridens"}},
    ).joinpath("README.md")
    text = card.read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert (header["license"], header["pretty_name"]) == ("cc0-1.0", "Clips: a test")
    assert "\n# Clips: a test\n" in text
    assert f"## Source and citation\n\n{KENYAN_SOURCE}\n" in text
    assert ["context_s", "0.5"] in table_of(text, "Clips")
    assert table_of(text, "Classes")[2][:3] == ["1", code, "Synthetic Buzzer (*Avis stridens*)"]

    own = tmp_path / "card.md"
    own.write_text("---\n{{ card_data }}\n---\n{{ title }} has {{ clips }} clips")
    text = publishing.save_clips(few, tmp_path / "own", title="Mine", template=own).joinpath("README.md").read_text()
    assert text.endswith("---\nMine has 5 clips\n")
    with pytest.raises(UserError, match=r"there is no data set card template .*none\.md"):
        publishing.save_clips(few, tmp_path / "other", title="Mine", template=tmp_path / "none.md")
    assert not (tmp_path / "other").exists()


def test_nothing_saved_tells_where_it_was_made(clips, saved, small_archive):
    told = (saved / "README.md").read_text()
    for path in saved.glob("data/*"):
        table = pq.read_table(path)
        told += repr((pq.read_metadata(path).metadata, table.schema.metadata, table.drop(["audio"]).to_pylist()))
        told += repr(set(pc.struct_field(table["audio"], "path").to_pylist()))
    assert clips["train"]["recording"][0] in told
    for place in (small_archive, small_archive.parent.parent, saved, clips["train"].cache_files[0]["filename"]):
        assert str(place) not in told


def test_audio_that_is_not_in_the_clips_is_refused(clips, tmp_path):
    table = clips["train"].select(range(1)).with_format("arrow")[:]
    audio = [{"bytes": table["audio"][0]["bytes"].as_py(), "path": "/home/someone/secret.wav"}]
    table = table.set_column(0, table.schema.field("audio"), pa.array(audio, datasets.Audio.pa_type))
    with pytest.raises(UserError, match="the train clips refer to audio files"):
        publishing.save_clips(datasets.DatasetDict({"train": datasets.Dataset(table)}), tmp_path / "out", title="")
    with pytest.raises(UserError, match="no clips"):
        publishing.save_clips(datasets.DatasetDict(), tmp_path / "out", title="")


@pytest.mark.usefixtures("no_private_folders")
def test_an_existing_folder_is_refused_unless_it_is_empty(clips, tmp_path):
    few = datasets.DatasetDict({"train": clips["train"].select(range(2))})
    folder = tmp_path / "out"
    folder.mkdir()
    assert publishing.save_clips(few, folder, title="Clips") == folder
    before = {name: (folder / name).read_bytes() for name in file_names(folder)}
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        publishing.save_clips(clips, folder, title="Clips")
    assert {name: (folder / name).read_bytes() for name in file_names(folder)} == before

    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        publishing.save_clips(few, tmp_path / "file", title="Clips")
    with pytest.raises(UserError, match="cannot be written"):
        publishing.save_clips(few, tmp_path / "file" / "below", title="Clips")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(clips, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(publishing, "render_clips_card", fail)
    with pytest.raises((UserError, KeyboardInterrupt), match=r"No space left on device|^$"):
        publishing.save_clips(clips, tmp_path / "out", title="Clips")
    assert list(tmp_path.iterdir()) == []


def test_a_push_is_one_commit_of_what_is_saved(clips, fake_hub, tmp_path):
    url = publishing.push_clips(clips, "ann/clips", title="Clips", source="Ann")

    assert list(fake_hub.repos) == ["datasets/ann/clips"]
    assert not fake_hub.repos["datasets/ann/clips"]["private"]
    (commit,) = fake_hub.repos["datasets/ann/clips"]["commits"]
    assert url == f"{fake_hub.endpoint}/datasets/ann/clips/commit/{commit['oid']}"
    saved = publishing.save_clips(clips, tmp_path / "out", title="Clips", source="Ann", repo_id="ann/clips")
    assert commit["files"] == {name: (saved / name).read_bytes() for name in FILES}


def test_a_push_replaces_the_clips_of_an_earlier_one(clips, fake_hub, monkeypatch):
    few = datasets.DatasetDict({"train": clips["train"].select(range(9)), "test": clips["test"].select(range(3))})
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "MAX_SHARD_BYTES", 500_000)
        publishing.push_clips(few, "clips", title="Clips")
    commits = fake_hub.repos["datasets/ann/clips"]["commits"]
    assert len(commits[0]["tree"]) == 1 + 4 + 2
    commits[0]["tree"] |= {"LICENSE": b"kept", "data/mine.parquet": b"kept"}

    publishing.push_clips(few, "clips", title="Clips")
    publishing.push_clips(few, "clips", title="Clips")
    assert len(commits) == 2
    assert sorted(commits[1]["tree"]) == ["LICENSE", "README.md", "data/mine.parquet", *FILES[1:3]]


def test_a_private_push_is_private(clips, fake_hub):
    few = datasets.DatasetDict({"train": clips["train"].select(range(2))})
    publishing.push_clips(few, "ann/clips", title="Clips", private=True)
    assert fake_hub.repos["datasets/ann/clips"]["private"]

    fake_hub.repos["datasets/ann/public"] = {"private": False, "commits": []}
    with pytest.raises(UserError, match="ann/public exists and is public"):
        publishing.push_clips(few, "ann/public", title="Clips", private=True)
    assert fake_hub.repos["datasets/ann/public"]["commits"] == []


@pytest.mark.parametrize(
    ("repo_id", "trouble", "told"),
    [
        ("ann/clips", "refuse_token", r"HTTP 401\); log in"),
        ("clips", "refuse_token", r"HTTP 401\); log in"),
        ("ann/clips", "read_only", r"may not write to ann/clips \(HTTP 403\)"),
        ("bob/clips", None, r"may not write to bob/clips \(HTTP 403\)"),
        ("ann/my clips", None, "'ann/my clips' is not a valid name of a dataset"),
    ],
)
def test_what_the_hub_refuses_is_told(clips, fake_hub, repo_id, trouble, told):
    if trouble:
        setattr(fake_hub, trouble, True)
    few = datasets.DatasetDict({"train": clips["train"].select(range(2))})
    with pytest.raises(UserError, match=told) as caught:
        publishing.push_clips(few, repo_id, title="Clips")
    assert fake_hub.token not in str(caught.value)
    assert "\n" not in str(caught.value)


JOURNEY = """
import hashlib
from datasets import Audio, load_dataset
for streaming in (False, True):
    clips = load_dataset("ann/clips", split="test", streaming=streaming).cast_column("audio", Audio(decode=False))
    rows = repr(list(clips)).encode()
    print("rows", clips.features["label"].names, hashlib.sha256(rows).hexdigest())
"""


def test_a_fresh_process_loads_by_name_as_the_card_says(clips, fake_hub, tmp_path):
    publishing.push_clips(clips, "ann/clips", title="Clips", private=True)
    card = fake_hub.repos["datasets/ann/clips"]["commits"][0]["files"]["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)

    done = run_fresh("-c", code + JOURNEY, cwd=tmp_path, env=fake_hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    example, *loaded = done.stdout.splitlines()
    names = clips["train"].features["label"].names
    first = clips["train"][0]
    assert example == f"{names[first['label']]} in {first['recording']} (96000,) 32000"
    rows = repr(clips["test"].to_list()).encode()
    assert loaded == [f"rows {names} {hashlib.sha256(rows).hexdigest()}"] * 2
    assert fake_hub.token not in done.stdout + done.stderr


def test_the_licence_has_the_name_that_it_has_beside_a_model():
    words = ["push-clips", "archive", "--repo_id", "ann/clips"]
    assert [
        cli._parser().parse_args([*words, flag, "cc0-1.0"]).license for flag in ("--license", "--data_license")
    ] == ["cc0-1.0"] * 2
