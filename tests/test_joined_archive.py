"""Several archives as one: names, species, splits, and a model that is trained on them."""

import json
import shutil

import pandas as pd
import pytest
import torch
from archives import edit, write_archive
from running import flags, settings_of

import train_hf
from kenya_birds.cli import main
from kenya_birds.data.archive import read_archive
from kenya_birds.data.joined_archive import divide_each, join_archives, one_archive
from kenya_birds.data.splits import stratified_split
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.errors import UserError
from kenya_birds.training.archive_weights import weigh_recordings
from kenya_birds.training.training_run import Run

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture
def two(tmp_path):
    """`north` has larks and owls, `south` owls and doves; both have a recording a.wav."""
    north = write_archive(
        tmp_path / "north", [("a.wav", 1.0, "lark"), ("b.wav", (2.0, 3.0), "owl"), ("b.wav", 5.0, "????")]
    )
    south = write_archive(tmp_path / "south", [("a.wav", 4.0, "owl"), ("c.wav", 6.0, "dove")], seconds=12.0)
    return north, south


def test_recordings_keep_their_places_and_get_the_name_of_their_archive(two, tmp_path):
    joined = join_archives(two, tmp_path / "both")
    archive = read_archive(joined.path)
    assert sorted(archive.headers) == ["north/a.wav", "north/b.wav", "south/a.wav", "south/c.wav"]
    assert archive.recording_path("south/a.wav") == two[1] / "soundscape_data" / "a.wav"
    assert archive.headers["north/a.wav"].duration_s == 10.0
    assert archive.headers["south/a.wav"].duration_s == 12.0
    assert archive.archive_of == {name: name.split("/")[0] for name in archive.headers}
    assert archive.annotations[["recording", "start_s", "end_s", "species"]].to_numpy().tolist() == [
        ["north/a.wav", 1.0, 1.0, "lark"],
        ["north/b.wav", 2.0, 3.0, "owl"],
        ["south/a.wav", 4.0, 4.0, "owl"],
        ["south/c.wav", 6.0, 6.0, "dove"],
    ]
    assert archive.unknown["recording"].tolist() == ["north/b.wav"]
    assert sorted(path.name for path in joined.path.iterdir()) == ["annotations.csv", "recordings.csv", "species.csv"]
    assert (joined.annotations, joined.recordings) == ({"north": 3, "south": 2}, {"north": 2, "south": 2})


def test_tables_with_more_columns_and_remarks_below_the_rows_are_joined(two, tmp_path):
    table = two[0] / "annotations.csv"
    header, *rows = table.read_text().splitlines()
    lines = [f"{header},Note,Note,,", *(f"{row},loud,far,," for row in rows), ",,,,3 annotations in all,,,"]
    table.write_text("\n".join(lines) + "\n")
    joined = join_archives(two, tmp_path / "both")
    assert joined.annotations == {"north": 3, "south": 2}
    assert len(read_archive(joined.path).annotations) == 4
    assert pd.read_csv(joined.path / "annotations.csv")["Note"].dropna().tolist() == ["loud"] * 3


def test_species_are_one_by_code_or_by_scientific_name(two, tmp_path):
    edit(two[1] / "species.csv", "Avis owl,owl,", "Avis  LARK,woodlark,")  # the lark under another code
    edit(two[1] / "annotations.csv", ",owl", ",woodlark")
    edit(two[1] / "species.csv", "Avis dove,dove,", "Avis columba,Owl,")  # the code of the owl in other letters
    edit(two[1] / "annotations.csv", ",dove", ",Owl")
    joined = join_archives(two, tmp_path / "both")
    archive = read_archive(joined.path)
    assert archive.species.index.tolist() == ["lark", "owl"]
    by_recording = archive.annotations.set_index("recording")["species"]
    assert (by_recording["south/a.wav"], by_recording["south/c.wav"]) == ("lark", "owl")
    assert joined.renamed == [("south", "woodlark", "lark")]
    assert joined.renames == [("south", "Owl", "Avis columba", "Avis owl")]
    assert "south: woodlark is lark: same scientific name" in joined.format()


def test_a_joined_archive_can_be_joined_again(two, tmp_path):
    first = join_archives(two, tmp_path / "both").path
    third = write_archive(tmp_path / "more" / "north", [("a.wav", 3.0, "swift")])
    archive = read_archive(join_archives([first, third, two[0]], tmp_path / "all").path)
    assert archive.archive_of["both/south/a.wav"] == "both/south"
    assert archive.recording_path("both/south/a.wav") == two[1] / "soundscape_data" / "a.wav"
    assert {"north/a.wav", "north-2/a.wav"} <= set(archive.headers)  # two folders of one name


def test_what_cannot_be_joined_is_one_line(two, tmp_path, capsys):
    for words, message in (
        (["join", two[0], "--output", tmp_path / "new"], "one archive is given: expected two or more"),
        (["join", two[0], two[0], "--output", tmp_path / "new"], "is given twice"),
        (["join", two[0], tmp_path / "nothing", "--output", tmp_path / "new"], "no archive at"),
        (["join", *two, "--output", two[0]], "not an empty folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(word) for word in words])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_one_line(two, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    move = shutil.move

    def fail(source, target):
        move(source, target)
        (tmp_path / "here" / "other").touch()  # of another program, meanwhile
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "move", fail)
    with pytest.raises(UserError, match=r"the archive \. cannot be written.*No space left"):
        join_archives(two, ".")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["other"]


def test_the_cache_keeps_a_joined_archive_until_one_of_them_changes(two, tmp_path):
    first = one_archive(two, tmp_path / "cache")
    assert one_archive(two, tmp_path / "cache") == first
    edit(two[0] / "annotations.csv", "b.wav,2.0", "b.wav,2.5")
    assert one_archive(two, tmp_path / "cache") != first
    assert one_archive(two[:1], tmp_path / "cache") == two[0]


def test_each_archive_is_divided_by_itself():
    rows = [
        (f"{name}/{number:02}.wav", "owl") for name, count in (("north", 40), ("south", 10)) for number in range(count)
    ]
    annotations = pd.DataFrame(rows, columns=["recording", "species"])
    archive_of = {recording: recording.split("/")[0] for recording, _ in rows}

    def test_shares(same_sound=(), least=10):
        table = divide_each(
            annotations, archive_of, same_sound, lambda part: stratified_split(part, same_sound=same_sound), least
        )
        assert table["recording"].tolist() == sorted(archive_of)
        return table[table["split"] == "test"]["recording"].str.split("/").str[0].value_counts().to_dict()

    assert test_shares() == {"north": 8, "south": 2}
    # Too few recordings, or the same sound in both: all are divided together.
    assert sum(test_shares(least=11).values()) == 10
    table = divide_each(
        annotations,
        archive_of,
        [["north/00.wav", "south/00.wav"]],
        lambda part: stratified_split(part, same_sound=[["north/00.wav", "south/00.wav"]]),
        10,
    ).set_index("recording")["split"]
    assert table["north/00.wav"] == table["south/00.wav"]


def test_recordings_that_stay_together_count_once(caplog):
    annotations = pd.DataFrame({"recording": ["n/1", "n/2", "n/3", "s/1", "s/2", "s/3"], "species": "owl"})
    archive_of = {name: name[0] for name in annotations["recording"]}
    divided = []
    divide_each(annotations, archive_of, [["s/1", "s/2"]], lambda part: divided.append(len(part)) or part, 3)
    assert divided == [6]
    assert "s has fewer than 3 that can be divided" in caplog.text


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Two archives with species in common, `north` and `south`."""
    folder = tmp_path_factory.mktemp("synthetic")
    return [
        synthesize_archive(
            folder / name, recordings=14, duration_s=12, species=species, annotations=84, scene="quiet", seed=seed
        )
        for name, species, seed in (("north", 2, 0), ("south", 3, 1))
    ]


def test_archives_have_weights_in_the_loss():
    archive_of = {"a/1": "a", "a/2": "a", "b/1": "b"}
    weights = weigh_recordings(["a=3"], archive_of, ["a/1", "b/1", "a/2", "b/1"])
    assert weights.tolist() == [1.5, 0.5, 1.5, 0.5]
    assert weigh_recordings(["a=2", "b=2"], archive_of, ["a/1", "b/1"]) is None
    for texts, message in (
        (["c=1"], "expected one of the archives a, b"),
        (["a=0"], "expected NAME=WEIGHT with a weight above 0"),
        (["a"], "expected NAME=WEIGHT"),
        (["a=1", "a=2"], "two weights of the archive 'a'"),
    ):
        with pytest.raises(UserError, match=message):
            weigh_recordings(texts, archive_of, ["a/1"])


@pytest.mark.parametrize("train_on", ["clips", "recordings"])
def test_training_weighs_what_it_learns_from_each_archive(synthetic, tmp_path, train_on):
    words = flags(synthetic[0], tmp_path / "birds", tmp_path / "cache", train_on=train_on)
    place = words.index("--output_dir")
    words[place:place] = [str(synthetic[1]), "--archive_weights", "north=4"]
    with Run(settings_of(words)) as run:
        trainer = run.make_trainer(run.cut_clips())
    data = trainer.train_dataset
    draws = list(trainer.train_sampler())
    weight = data.__getitems__(draws)["weight"]
    if train_on == "clips":
        names = [run.builder.archive.archive_of[name] for name in trainer_recordings(run)]
        of_draws = [names[draw.clip] for draw in draws]
    else:
        of_draws = [data.decoded.names[draw.recording].split("/")[0] for draw in draws]
    shares = {name: weight[[one == name for one in of_draws]].unique().tolist() for name in ("north", "south")}
    assert len(shares["north"]) == len(shares["south"]) == 1
    assert shares["north"][0] == pytest.approx(4 * shares["south"][0])
    batch = {**trainer.prepare(data.__getitems__(draws[:2])), "weight": torch.tensor([3.0, 0.0])}
    first = {name: value[:1] for name, value in batch.items() if name != "weight"}
    trainer.model.eval()
    count = (batch["labels"] != -100).sum()
    assert trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).item() == pytest.approx(
        3 * trainer.compute_loss(trainer.model, first, num_items_in_batch=count).item(), rel=1e-4
    )


def trainer_recordings(run):
    """The recording of each training clip."""
    return run.cut_clips()["train"]["recording"][:]


def test_a_model_of_two_archives_has_figures_of_each(synthetic, tmp_path, capsys):
    words = flags(synthetic[0], tmp_path / "birds", tmp_path / "cache", num_train_epochs=1)
    place = words.index("--output_dir")
    words[place:place] = [str(synthetic[1])]
    train_hf.main(words)
    test = json.loads((tmp_path / "birds" / "metrics.json").read_text())["test"]
    assert set(test["archives"]) == set(test["whole_recordings"]["archives"]) == {"north", "south"}
    assert sum(each["clips"] for each in test["archives"].values()) == test["clips"]
    splits = pd.read_csv(tmp_path / "birds" / "splits.csv")
    in_test = splits[splits["split"] == "test"]["recording"].str.split("/").str[0]
    assert set(in_test) == {"north", "south"}
    # The same archives are found again, by evaluate as well.
    capsys.readouterr()
    more = ["--cache_dir", tmp_path / "cache", "--output", tmp_path / "again"]
    main([str(word) for word in ("evaluate", tmp_path / "birds", *synthetic, *more)])
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())["test"]
    assert again["archives"].keys() == test["archives"].keys()
    for archive, figures in test["archives"].items():
        # Two processes may differ in the last digits of a float32.
        assert again["archives"][archive] == pytest.approx(figures, abs=1e-6)
    assert "archive south, " in capsys.readouterr().out


def test_tuning_joins_archives_in_the_cache_of_its_flags(two, tmp_path, monkeypatch):
    tuned = []
    monkeypatch.setattr("kenya_birds.training.tuning.tune", lambda archive, *_: tuned.append(archive))
    flags = ["--cache_dir", str(tmp_path / "cache")]
    main(["tune", *map(str, two), "--trials", "1", "--output", str(tmp_path / "out"), "--", *flags])
    assert tuned == [one_archive(two, tmp_path / "cache")]


def test_several_archives_are_checked_before_training(two, tmp_path):
    words = flags(two[0], tmp_path / "birds", tmp_path / "cache")
    place = words.index("--output_dir")
    words[place:place] = [str(tmp_path / "nothing")]
    with pytest.raises(UserError, match="no archive at"):
        settings_of(words)
