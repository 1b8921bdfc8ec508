"""`kenya-birds verify annotate`: answers become annotations to learn from, and never to be tested on."""

import shutil
import sys

import pandas as pd
import pytest
from archives import write_archive
from running import run as run_process
from verifying import SPECIES, answer, read_table, rows_of, write_run, write_table

from kenya_birds.cli import main
from kenya_birds.data.annotation_export import export_annotations
from kenya_birds.data.archive import read_archive
from kenya_birds.data.dataset import clips_builder
from kenya_birds.data.joined_archive import join_archives
from kenya_birds.data.planning import plan_clips, plan_no_call
from kenya_birds.errors import UserError
from kenya_birds.experiments.score import score_tables
from kenya_birds.training.arguments import AugmentationArguments
from kenya_birds.training.settings import training_summary
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments
from kenya_birds.verification.sampling import SampleSettings, draw_sample

COMMON, RARE = SPECIES
CLIPS = {"sampling_rate": 8000, "clip_s": 1.0, "min_annotations": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def drawn(run):
    check = run.parent / "check"
    draw_sample(run, check, SampleSettings(per_species=12, pictures=False, context_s=0))
    shutil.rmtree(check / "clips")
    return check


@pytest.fixture
def check(drawn, tmp_path):
    """Every kind of answer: the first rows of the common species, others by turns."""
    check = shutil.copytree(drawn, tmp_path / "check")
    table = read_table(check)
    table["answer"] = ["right", "wrong", "other", "unsure"] * (len(table) // 4)
    table["other_species"] = ["", "", RARE, ""] * (len(table) // 4)
    table.loc[table["species"] == RARE, "other_species"] = ["", "", "????", ""] * 3
    table["verified_by"] = "Wanjiru"
    write_table(table, check)
    return check


@pytest.fixture
def known(tmp_path):
    """A complete archive of both species in six recordings, one of them without a call in the table."""
    rows = [(f"{one}.wav", at, code) for one in "abcdef" for at, code in ((2.0, COMMON), (7.0, RARE))]
    return write_archive(tmp_path / "known", rows)


def annotate(check, archive, capsys, *words):
    """Runs the command; returns its exit code, what it printed, and its errors."""
    code = 0
    try:
        main(["verify", "annotate", str(check), "--archive", str(archive), *map(str, words)])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


def change(check, name, **cells):
    table = read_table(check)
    table.loc[name, list(cells)] = list(cells.values())
    write_table(table, check)


def test_answers_become_annotations_of_a_new_archive_whose_other_sound_is_unknown(check, tmp_path, capsys):
    code, said, _ = annotate(check, tmp_path / "archive", capsys)
    assert code == 0
    assert "24 checked detections (6 right, 6 wrong, 6 other, 6 unsure) in 3 recordings; 24 are new" in said
    archive, table = read_archive(tmp_path / "archive"), read_table(check)
    assert archive.verified == dict.fromkeys(archive.headers, f"birds {'a' * 16}")
    assert archive.silent == []
    its = {state: table[table["answer"] == state] for state in ("right", "wrong", "other", "unsure")}
    spans = ["species", "start_s", "end_s"]

    def of(rows):
        return sorted((code, float(start), float(end)) for code, start, end in rows[spans].itertuples(index=False))

    named = its["other"][its["other"]["other_species"] == RARE].assign(species=RARE)
    assert of(archive.annotations) == of(pd.concat([its["right"], named]))
    assert of(archive.absent) == of(pd.concat([its["wrong"], its["other"]]))
    assert len(named) == 3
    assert not (tmp_path / "archive" / "soundscape_data").exists()
    clips = plan_clips(archive, sorted(SPECIES), 8000, 1.0)
    assert len(clips) == 9  # the right and the named ones
    assert clips["unknown"].all()
    assert plan_no_call(archive, sorted(archive.headers), 8000, 1.0, 0.0).empty


def test_more_answers_are_added_and_changed_ones_replace_the_earlier(check, tmp_path, capsys):
    full = read_table(check)
    part = full.copy()
    part.loc[part.index[6:], ["answer", "other_species"]] = ""
    write_table(part, check)
    archive = tmp_path / "archive"
    assert "6 checked detections" in annotate(check, archive, capsys)[1]
    first = (archive / "annotations.csv").read_bytes()
    assert "0 are new, 0 have another answer than before, 0 others are kept" in annotate(check, archive, capsys)[1]
    assert (archive / "annotations.csv").read_bytes() == first
    full.iloc[:6, full.columns.get_loc("answer")] = ["wrong", "right", "unsure", "", "right", "wrong"]
    full.iloc[:6, full.columns.get_loc("other_species")] = ""
    write_table(full, check)
    said = annotate(check, archive, capsys)[1]
    assert "23 checked detections" in said
    assert "18 are new, 3 have another answer than before, 1 others are kept" in said
    annotated = read_archive(archive)
    assert len(annotated.annotations) == 2 + (5 - 1) + 2  # right: two and four; named: two of the common species
    assert len({row["Detection"] for row in rows_of(archive / "annotations.csv")}) == 24


@pytest.mark.parametrize("word", ["wrong", "unsure"])
def test_answers_without_a_right_one_are_an_archive_too(check, known, tmp_path, capsys, word):
    table = read_table(check)
    table[["answer", "other_species"]] = ""
    table.loc[table.index[:3], "answer"] = word
    write_table(table, check)
    archive = tmp_path / "checked"
    annotate(check, archive, capsys)
    checked = read_archive(archive)
    assert checked.annotations.empty
    assert len(checked.absent) == (3 if word == "wrong" else 0)
    assert checked.verified
    join_archives([known, archive], tmp_path / "both")
    assert read_archive(tmp_path / "both").verified
    with pytest.raises(SystemExit):
        main(["report", str(archive), "--output", str(tmp_path / "checked.html")])
    assert "none is right; a report needs an annotation" in capsys.readouterr().err
    answer(check, lambda row: "right")
    assert annotate(check, archive, capsys)[0] == 0
    assert len(read_archive(archive).annotations) == len(table)


def test_a_complete_archive_keeps_its_annotations_and_its_recordings_get_no_answers(
    run, check, known, tmp_path, capsys
):
    before = read_archive(known)
    # One of the detected recordings is annotated there, under another name.
    copy = known / "soundscape_data" / "copy.wav"
    shutil.copy(run.parent / "recordings" / "KEN_002_20211207_153852.wav", copy)
    with (known / "annotations.csv").open("a") as file:
        file.write(f"copy.wav,3.0,3.0,{RARE}\n")
    its = read_table(check)
    number = its["recording"].str.contains("KEN_002").sum()
    code, said, _ = annotate(check, known, capsys)
    assert code == 0
    assert f"{number} answers are not taken: their 1 recordings, such as copy.wav, are annotated in" in said
    after = read_archive(known)
    checked = {"KEN_001_20211207_153852.wav", "KEN_001_20211208_090000.wav"}
    assert set(after.headers) == {*before.headers, "copy.wav", *checked}
    complete = after.without_partial()
    assert complete.annotations[:12].equals(before.annotations)
    assert len(complete.annotations) == 13
    assert complete.silent == []
    assert set(after.verified) == checked


def test_checked_recordings_are_learned_from_and_never_tested_on(check, known, tmp_path, capsys):
    annotate(check, tmp_path / "checked", capsys)
    join_archives([known, tmp_path / "checked"], tmp_path / "both")
    checked = {f"checked/{name}" for name in read_archive(tmp_path / "checked").headers}
    for weak_labels in ("train", "every_split", "leave_out"):
        builder = clips_builder(tmp_path / "both", cache_dir=tmp_path, weak_labels=weak_labels, **CLIPS)
        assert set(builder.splits.loc[builder.splits["recording"].isin(checked), "split"]) == {"train"}
    assert builder.archive.verified.keys() == checked
    args = KenyaBirdsTrainingArguments(str(tmp_path / "birds"), use_cpu=True)
    about = training_summary(builder, builder.splits, {}, args, AugmentationArguments(), "scratch")
    assert about["archive"]["checked_recordings"] == 3
    tested = clips_builder(tmp_path / "both", cache_dir=tmp_path, one_split="test", **CLIPS)
    assert not checked & set(tested.splits["recording"])
    wrong = builder.splits.assign(
        split=builder.splits["split"].mask(builder.splits["recording"].isin(checked), "test")
    )
    with pytest.raises(UserError, match="has checked detections and is in the test split"):
        clips_builder(tmp_path / "both", splits=wrong, cache_dir=tmp_path, **CLIPS)
    with pytest.raises(UserError, match=r"all 3 recordings of .*models chose the detections"):
        clips_builder(tmp_path / "checked", cache_dir=tmp_path, **CLIPS)
    main(["split", str(tmp_path / "both"), "--output", str(tmp_path / "s.csv"), "--min_annotations", "1"])
    assert "3 recordings with checked detections are not in the table" in capsys.readouterr().out
    assert not checked & {row["recording"] for row in rows_of(tmp_path / "s.csv")}
    table = tmp_path / "found.csv"
    table.write_text(f"file,start,end,species,score\na.wav,1.5,2.5,{COMMON},0.9\n")
    scores = score_tables(table, tmp_path / "both")
    assert scores["recordings"] == 1
    assert (
        f"3 recordings with checked detections are not scored, because birds {'a' * 16} chose"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"all recordings of .* which are for training only"):
        score_tables(table, tmp_path / "checked")
    export_annotations(tmp_path / "both", tmp_path / "tables", "raven")
    assert not any("KEN" in path.name for path in (tmp_path / "tables").rglob("*"))


def test_species_get_the_codes_and_names_of_the_archive(check, tmp_path, capsys):
    rows = [("a.wav", 2.0, COMMON.upper()), ("a.wav", 3.0, "other1")]
    archive = write_archive(tmp_path / "archive", rows)
    text = (archive / "species.csv").read_text()
    (archive / "species.csv").write_text(text.replace("Avis other1", SPECIES[RARE].scientific_name))
    assert "new species" not in annotate(check, archive, capsys)[1]
    assert set(read_archive(archive).annotations["species"]) == {COMMON.upper(), "other1"}


def test_moved_recordings_are_found_and_others_are_refused_in_one_line(run, check, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.move(run.parent / "recordings", moved)
    try:
        code, _, error = annotate(check, tmp_path / "archive", capsys)
        assert code == 2
        assert "are not where they were analysed" in error
        assert not (tmp_path / "archive").exists()
        assert annotate(check, tmp_path / "archive", capsys, "--recordings", moved)[0] == 0
        assert set(pd.read_csv(tmp_path / "archive" / "recordings.csv")["Folder"]) == {str(moved)}
    finally:
        shutil.move(moved, run.parent / "recordings")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"answer": "maybe"}, "verify.csv line 2 has the answer 'maybe'"),
        (
            {"answer": "other", "other_species": "moa"},
            "verify.csv line 2 has the other_species 'moa', which is unknown",
        ),
    ],
)
def test_a_wrong_cell_ends_the_command_in_one_line_and_changes_nothing(check, tmp_path, capsys, cells, message):
    annotate(check, tmp_path / "archive", capsys)
    before = (tmp_path / "archive" / "annotations.csv").read_bytes()
    change(check, read_table(check).index[0], **cells)
    code, _, error = annotate(check, tmp_path / "archive", capsys)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert (tmp_path / "archive" / "annotations.csv").read_bytes() == before


def test_what_cannot_be_annotated_is_said_in_one_line(drawn, check, tmp_path, capsys):
    for words, message in (
        ((drawn, tmp_path / "new"), "has no answer"),
        ((tmp_path, tmp_path / "new"), "sample.json"),
        ((check, check), "no annotations.csv"),
        ((check, tmp_path / "new", "--recordings", tmp_path / "lost"), "there is no folder"),
    ):
        code, _, error = annotate(words[0], words[1], capsys, *words[2:])
        assert code == 2
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
    answer(check, lambda row: "right")
    annotate(check, tmp_path / "new", capsys)
    path = tmp_path / "new" / "annotations.csv"
    path.write_text(path.read_text().replace(",present,", ",perhaps,", 1))
    with pytest.raises(UserError, match=r"line 2: Verified is 'perhaps': expected present, absent, unsure or nothing"):
        read_archive(tmp_path / "new")


def test_annotating_does_not_wait_for_torch():
    program = "import sys, kenya_birds.verification.annotating; sys.exit('torch' in sys.modules)"
    result = run_process(sys.executable, "-c", program)
    assert result.returncode == 0, result.stderr
