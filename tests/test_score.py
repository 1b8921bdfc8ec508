"""Any system's table of detections is judged on an archive's whole recordings."""

import json

import pandas as pd
import pytest
from archives import write_archive

from kenya_birds import UserError
from kenya_birds.cli import main
from kenya_birds.experiments.score import ScoreSettings, format_scores, score_tables

HEADER = "Start (s),End (s),Scientific name,Common name,Confidence,File"


@pytest.fixture
def archive(tmp_path):
    rows = [("a.wav", 1.0, "owl1"), ("a.wav", 7.0, "lark2"), ("b.wav", 4.0, "owl1"), ("c.wav", 2.0, "lark2")]
    return write_archive(tmp_path / "archive", [*rows, ("b.wav", 8.0, "????")])


def birdnet(path, *rows):
    """(recording, start, species, confidence) in BirdNET's form."""
    lines = [f"{start},{start + 3},Avis {code},Bird {code},{score},{name}" for name, start, code, score in rows]
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def value(content, metric, name="table"):
    return content[name]["metrics"][metric]["value"]


def test_a_table_is_judged_on_the_recordings_that_it_names(archive, tmp_path, caplog):
    table = birdnet(
        tmp_path / "t.csv",
        ("/x/a.wav", 0, "owl1", 0.9),
        ("/x/a.wav", 3, "owl1", 0.6),
        ("/x/b.wav", 3, "owl1", 0.5),
        ("/x/b.wav", 7, "lark2", 0.4),  # an unknown bird sings there
    )
    content = score_tables(table, archive)
    assert (content["recordings"], content["calls"], content["species"]) == (2, 3, 2)
    assert value(content, "precision") == pytest.approx(2 / 3)
    assert value(content, "recall") == pytest.approx(2 / 3)
    assert value(content, "false_per_h") == pytest.approx(1 / (20 / 3600))
    assert "1 other annotated recordings of the archive are skipped" in caplog.text
    assert "precision of events" in format_scores(content)


def test_species_without_a_call_in_the_scored_recordings_are_not_counted(archive, tmp_path):
    content = score_tables(birdnet(tmp_path / "t.csv", ("c.wav", 1, "lark2", 0.9)), archive)
    assert content["species"] == 1
    assert "1 recording, 0.00 h, 1 annotated call of 1 species" in format_scores(content)


def test_two_systems_are_compared_on_the_same_recordings(archive, tmp_path):
    good = birdnet(
        tmp_path / "good.csv", ("a.wav", 0, "owl1", 0.9), ("a.wav", 6, "lark2", 0.9), ("b.wav", 3, "owl1", 0.9)
    )
    (tmp_path / "poor").mkdir()
    # Raven tables, one a recording, that name species by code in another letter case; one of them is empty.
    header = "Selection\tBegin Time (s)\tEnd Time (s)\tSpecies\n"
    (tmp_path / "poor" / "a.Table.1.selections.txt").write_text(header + "1\t0\t3\tOWL1\n")
    (tmp_path / "poor" / "c.Table.1.selections.txt").write_text(header)
    content = score_tables(good, archive, beside=tmp_path / "poor", output_dir=tmp_path / "out")
    assert content["recordings"] == 3
    assert value(content, "recall") == pytest.approx(3 / 4)
    assert value(content, "recall", "beside") == pytest.approx(1 / 4)
    assert value(content, "recall", "difference") == pytest.approx(1 / 2)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")) == content
    calls = pd.read_csv(tmp_path / "out" / "beside_calls.csv")
    assert calls.loc[calls["is_found"], "species"].tolist() == ["owl1"]
    found = pd.read_csv(tmp_path / "out" / "table_detections.csv")
    assert found["is_right"].all()
    assert found["row"].tolist() == ["good.csv, line 2", "good.csv, line 3", "good.csv, line 4"]
    assert len(pd.read_csv(tmp_path / "out" / "table_species.csv")) == 2
    assert len(pd.read_csv(tmp_path / "out" / "table_recordings.csv")) == 3
    assert "table minus beside" in format_scores(content)


def test_recordings_that_a_run_analysed_count_without_a_detection(archive, tmp_path):
    table = birdnet(tmp_path / "detections.csv", ("a.wav", 0, "owl1", 0.9))
    (tmp_path / "recordings.csv").write_text("recording,duration_s,detections\nx/a.wav,10,1\nx/c.wav,10,0\n")
    assert score_tables(table, archive)["recordings"] == 2


@pytest.mark.parametrize(("mark", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16"), (",", "cp1252")])
def test_the_list_of_analysed_recordings_may_come_from_a_spreadsheet(mark, encoding, archive, tmp_path):
    table = birdnet(tmp_path / "detections.csv", ("a.wav", 0, "owl1", 0.9))
    rows = [("recording", "duration_s", "detections"), ("forêt/a.wav", "10", "1"), (r"forêt\c.wav", "10", "0")]
    text = "\n".join(map(mark.join, rows)) + "\n"
    for first in ("", f"sep={mark}\n"):
        (tmp_path / "recordings.csv").write_text(first + text, encoding=encoding)
        assert score_tables(table, archive)["recordings"] == 2


def test_a_list_of_recordings_that_cannot_be_used_is_reported(archive, tmp_path, caplog):
    table, beside = birdnet(tmp_path / "detections.csv", ("a.wav", 0, "owl1", 0.9)), tmp_path / "recordings.csv"
    beside.write_text("name,minutes\nc.wav,10\n")
    assert score_tables(table, archive)["recordings"] == 1
    assert f"{beside} is skipped: expected the columns recording and detections, found name, minutes" in caplog.text
    for content in (b"", b"recording,\0detections\nab", b'recording,detections\n"c.wav,0\n'):
        beside.write_bytes(content)
        with pytest.raises(UserError, match=r"recordings\.csv"):
            score_tables(table, archive)


def test_names_without_suffix_are_matched_and_that_is_said(archive, tmp_path, caplog):
    table = birdnet(tmp_path / "t.csv", ("A.flac", 0, "owl1", 0.9))
    assert value(score_tables(table, archive), "precision") == 1
    assert "1 recordings are matched by their names without suffix" in caplog.text


def test_recordings_of_another_site_with_the_same_names_are_not_those_of_the_archive(archive, tmp_path, caplog):
    here = [("soundscape_data/a.wav", 0, "owl1", 0.9), ("soundscape_data/b.wav", 3, "owl1", 0.9)]
    other = [("site2/a.wav", 3, "owl1", 0.8), ("site2/b.wav", 6, "owl1", 0.8)]
    content = score_tables(birdnet(tmp_path / "t.csv", *here, *other), archive)
    assert (content["recordings"], value(content, "precision")) == (2, 1.0)
    assert "2 recordings are in other folders than those of the archive with the same file names" in caplog.text
    # If the table has no other path of it, the recording may have been moved.
    assert score_tables(birdnet(tmp_path / "u.csv", *other), archive)["recordings"] == 2


def test_what_does_not_count_is_counted(archive, tmp_path, caplog):
    table = birdnet(
        tmp_path / "t.csv",
        ("a.wav", 0, "owl1", 0.9),
        ("a.wav", 0, "robin", 0.9),
        ("z.wav", 0, "owl1", 0.9),
        ("a.wav", 6, "owl1", 0.1),
    )
    content = score_tables(table, archive, settings=ScoreSettings(min_score=0.5))
    assert content["table"]["judged"] == 1
    assert content["table"]["not_judged"] == {"other_recordings": 1, "other_species": 1, "below_min_score": 1}
    assert "1 detections of species that are not annotated" in caplog.text
    assert "1 of 2 recordings are not annotated in the archive" in caplog.text


def test_scores_above_one_rank_as_those_below(archive, tmp_path):
    rows = [("a.wav", 0, "owl1", 0.9), ("a.wav", 3, "owl1", 0.6), ("b.wav", 3, "owl1", 0.5), ("b.wav", 0, "lark2", 0)]
    higher = [(*row, 10 * score) for *row, score in rows]
    below, above = (score_tables(birdnet(tmp_path / "t.csv", *each), archive)["table"] for each in (rows, higher))
    assert above == below


def test_recordings_can_be_chosen(archive, tmp_path):
    table = birdnet(tmp_path / "t.csv", ("a.wav", 0, "owl1", 0.9))
    content = score_tables(table, archive, settings=ScoreSettings(recordings=("c.wav",)))
    assert (content["recordings"], value(content, "recall")) == (1, 0)


def test_chosen_recordings_that_a_run_did_not_analyse_are_reported_and_count_as_missed(archive, tmp_path, caplog):
    table = birdnet(tmp_path / "detections.csv", ("a.wav", 0, "owl1", 0.9))
    (tmp_path / "recordings.csv").write_text("recording,duration_s,detections\nx/a.wav,10,1\nx/c.wav,10,0\n")
    score_tables(table, archive, settings=ScoreSettings(recordings=("a.wav", "c.wav")))
    assert "count as missed" not in caplog.text
    content = score_tables(table, archive, settings=ScoreSettings(recordings=("a.wav", "b.wav", "c.wav")))
    assert (content["recordings"], content["calls"], value(content, "recall")) == (3, 4, 1 / 4)
    assert f"1 of 3 recordings to score are not in {table} or its recordings.csv (b.wav)" in caplog.text


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("z.wav", 0, "owl1", 1)], {}, r"has 1 recordings, but none of the archive's 3 .*'z\.wav', not 'a\.wav'"),
        ([("a.wav", 0, "robin", 1)], {}, "has 1 species, but none of the archive's 2 annotated ones"),
        ([("a.wav", 30, "owl1", 1)], {}, r"t\.csv, line 2 starts at 30 s, but a\.wav is 10 s long"),
        (
            [("a.wav", 0, "owl1", 1), ("z.wav", 0, "owl1", -0.5)],
            {},
            r"t\.csv, line 3 has the score -0\.5: expected scores of 0 or more; convert logits",
        ),
        ([("a.wav", 0, "owl1", 1)], {"recordings": ("z.wav",)}, "1 of the recordings to score are not in the archive"),
        ([("a.wav", 0, "owl1", 1)], {"tolerance_s": -1.0}, "tolerance_s is -1.0: expected 0 or more"),
        ([("a.wav", 0, "owl1", 1)], {"window_s": 0.0}, "window_s is 0.0: expected more than 0"),
        ([("a.wav", 0, "owl1", 1)], {"min_score": float("nan")}, "min_score is nan"),
    ],
)
def test_what_cannot_be_judged_is_a_user_error(rows, settings, message, archive, tmp_path):
    table = birdnet(tmp_path / "t.csv", *rows)
    with pytest.raises(UserError, match=message):
        score_tables(table, archive, settings=ScoreSettings(**settings))


def test_an_output_folder_that_is_not_empty_is_a_user_error(archive, tmp_path):
    table = birdnet(tmp_path / "t.csv", ("a.wav", 0, "owl1", 1))
    with pytest.raises(UserError, match="not an empty folder"):
        score_tables(table, archive, output_dir=tmp_path)


def test_recordings_that_trained_the_model_are_refused(archive, tmp_path):
    model, found = tmp_path / "birds", tmp_path / "found"
    for folder in (model, found):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    (model / "splits.csv").write_text("recording,split\na.wav,train\nb.wav,validation\nc.wav,test\n")
    table = birdnet(found / "detections.csv", ("a.wav", 0, "owl1", 0.9), ("c.wav", 0, "lark2", 0.9))
    (found / "run.json").write_text(json.dumps({"model": str(model)}))
    with pytest.raises(
        UserError, match=r"trained on 1 of the 2 recordings .*a\.wav.*--splits_file .*birds/splits\.csv"
    ):
        score_tables(table, archive)
    chosen = ScoreSettings(recordings=("c.wav",))
    assert value(score_tables(table, archive, settings=chosen), "recall") == 1


def test_the_command_prints_the_table_and_takes_a_split(archive, tmp_path, capsys):
    table = birdnet(tmp_path / "t.csv", ("a.wav", 0, "owl1", 0.9), ("c.wav", 0, "lark2", 0.9))
    (tmp_path / "splits.csv").write_text("recording,split\na.wav,train\nb.wav,validation\nc.wav,test\n")
    main(["score", str(table), str(archive), "--splits_file", f"{tmp_path}/splits.csv", "--output", f"{tmp_path}/out"])
    assert "1 recording, 0.00 h, 1 annotated call of" in capsys.readouterr().out
    assert (tmp_path / "out" / "metrics.json").is_file()
