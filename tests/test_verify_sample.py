"""`kenya-birds verify sample`: what is drawn, what is written, and that no answer is ever lost."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from verifying import LENGTH_S, NAMES, RATE, answer, read_table, truthful, write_run, write_table

from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.files import file_sha256
from kenya_birds.inference.run_report import STATE_FOLDER, TABLES_FILE
from kenya_birds.verification import found_tables, sampling
from kenya_birds.verification.check_folder import (
    Answer,
    read_answers,
    read_rows,
    read_species_table,
    write_answers,
)
from kenya_birds.verification.found_tables import table_in
from kenya_birds.verification.moved_recordings import find_recordings
from kenya_birds.verification.reading import read_checks
from kenya_birds.verification.sampling import SampleSettings, draw_sample

SMALL = SampleSettings(per_species=21, pictures=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def drawn(run):
    """A sample that tests copy."""
    check = run.parent / "check"
    draw_sample(run, check, SMALL)
    return check


@pytest.fixture
def check(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "check")


def test_a_sample_is_drawn_from_all_scores_and_rows_stand_for_all_detections(run, drawn):
    table = read_table(drawn)
    detections = pd.read_parquet(run / "detections.parquet")
    assert table.groupby("species").size().to_dict() == {"abcde1": 21, "bcdef1": 21}
    # 21 clips are three bins: half of the 300 detections, a quarter, a quarter.
    sizes = {stratum["name"]: stratum["detections"] for stratum in strata(drawn)}
    assert list(sizes.values()) == [150, 75, 75] * 2
    assert table.groupby("stratum").size().to_dict() == dict.fromkeys(sizes, 7)
    assert table["weight"].astype(float).sum() == pytest.approx(len(detections), rel=1e-5)
    assert table["stratum_detections"].astype(int).to_dict() == table["stratum"].map(sizes).to_dict()
    keys = ["recording", "start_s", "end_s", "code"]
    found = detections.astype({"recording": str, "code": str}).set_index(keys)["score"]
    for _, row in table.iterrows():
        where = (row["recording"], float(row["start_s"]), float(row["end_s"]), row["species"])
        assert float(row["score"]) == pytest.approx(found[where], abs=1e-6)


def strata(check):
    return json.loads((check / "sample.json").read_text(encoding="utf-8"))["strata"]


def test_the_rows_of_a_species_take_turns_between_its_bins(drawn):
    table = read_table(drawn)
    for _, its in table.groupby("species", sort=False):
        assert all(set(its["stratum"].iloc[n : n + 3]) == set(its["stratum"]) for n in range(0, 21, 3))


def test_sample_json_says_how_and_of_what_the_sample_was_drawn(run, drawn):
    content = json.loads((drawn / "sample.json").read_text(encoding="utf-8"))
    assert content["model_sha256"] == "a" * 64
    assert content["table"] == str(run / "detections.parquet")
    assert content["settings"]["per_species"] == 21
    assert content["settings"]["seed"] == 0
    for stratum in content["strata"]:
        assert sum(count for _, count in stratum["by_score"]) == stratum["detections"]


def test_clips_have_context_and_full_level_and_show_the_sound_of_the_detection(drawn):
    table = read_table(drawn)
    for _, row in table.iterrows():
        sound, rate = soundfile.read(drawn / row["clip"])
        start_s, end_s, first_s = (float(row[name]) for name in ("start_s", "end_s", "clip_start_s"))
        assert first_s == max(0, start_s - 2)
        assert len(sound) / rate == pytest.approx(min(end_s + 2, LENGTH_S) - first_s)
        assert np.abs(sound).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
        whole, _ = soundfile.read(row["recording"], start=round(first_s * RATE), frames=len(sound))
        assert np.corrcoef(sound, whole)[0, 1] > 0.999


def test_pictures_and_wav_are_written(run, tmp_path):
    settings = SampleSettings(per_species=1, clip_format="wav", context_s=0.5)
    draw_sample(run, tmp_path / "check", settings)
    table = read_table(tmp_path / "check")
    for _, row in table.iterrows():
        assert (tmp_path / "check" / row["picture"]).read_bytes().startswith(b"\x89PNG")
        assert soundfile.info(tmp_path / "check" / row["clip"]).format == "WAV"


def test_the_same_seed_draws_the_same_from_csv_and_parquet_and_in_parts(run, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(found_tables, "ROWS_AT_ONCE", 37)
    (tmp_path / "found").mkdir()
    for name in ("detections.csv", "run.json", "recordings.csv"):
        shutil.copy(run / name, tmp_path / "found")
    draw_sample(tmp_path / "found", tmp_path / "check", SMALL)
    assert (tmp_path / "check" / "verify.csv").read_bytes() == (drawn / "verify.csv").read_bytes()


def test_the_table_may_have_semicolons_and_decimal_commas(run, drawn, tmp_path):
    shutil.copytree(run, tmp_path / "found", ignore=shutil.ignore_patterns("*.parquet"))
    table = pd.read_csv(run / "detections.csv", dtype=str, keep_default_na=False)
    for name in ("start_s", "end_s", "score"):
        table[name] = table[name].str.replace(".", ",")
    table.to_csv(tmp_path / "found" / "detections.csv", sep=";", index=False, encoding="utf-8-sig")
    draw_sample(tmp_path / "found", tmp_path / "check", SMALL)
    assert (tmp_path / "check" / "verify.csv").read_bytes() == (drawn / "verify.csv").read_bytes()


def test_another_seed_draws_others_from_the_same_strata(run, drawn, tmp_path):
    draw_sample(run, tmp_path / "check", SampleSettings(per_species=21, pictures=False, seed=1))
    assert strata(tmp_path / "check") == strata(drawn)
    assert set(read_table(tmp_path / "check").index) != set(read_table(drawn).index)


def test_choose_random_draws_from_all_detections_of_a_species(run, tmp_path):
    draw_sample(run, tmp_path / "check", SampleSettings(per_species=9, pictures=False, choose="random"))
    assert [stratum["detections"] for stratum in strata(tmp_path / "check")] == [300, 300]


def test_an_interrupted_sample_resumes_and_keeps_answers(run, check):
    table = answer(check, truthful)
    before = (check / "verify.csv").read_bytes()
    lost = [check / name for name in table["clip"][:5]]
    kept = (check / table["clip"].iloc[7]).stat().st_mtime_ns
    for path in lost:
        path.unlink()
    drawing = draw_sample(run, check, SMALL)
    assert (drawing.new, drawing.answered) == (0, 42)
    assert all(path.is_file() for path in lost)
    assert (check / table["clip"].iloc[7]).stat().st_mtime_ns == kept
    assert (check / "verify.csv").read_bytes() == before


def test_a_sample_that_was_stopped_before_its_table_is_completed(run, drawn, check):
    (check / "verify.csv").unlink()
    draw_sample(run, check, SMALL)
    assert (check / "verify.csv").read_bytes() == (drawn / "verify.csv").read_bytes()


def stopped(*_):
    raise KeyboardInterrupt


def test_a_larger_sample_that_was_stopped_is_completed(run, check, monkeypatch):
    answer(check, truthful)
    larger = SampleSettings(per_species=30, pictures=False)
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "write_clips", stopped)
        with pytest.raises(KeyboardInterrupt):
            draw_sample(run, check, larger)
    assert len(read_table(check)) == 42
    assert draw_sample(run, check, larger).answered == 42
    table = read_table(check)
    assert table["answer"].ne("").sum() == 42
    assert len(table) == 60
    assert all((check / clip).is_file() for clip in table["clip"])


def test_a_larger_sample_adds_clips_and_keeps_answers_notes_and_added_columns(run, check):
    table = read_table(check)
    table["answer"] = "RIGHT"
    table["note"] = "=1+1, far away"
    write_table(table.assign(mood="good")[::-1], check, sep=";")
    drawing = draw_sample(run, check, SampleSettings(per_species=30, pictures=False))
    assert (drawing.clips, drawing.new, drawing.answered) == (60, 18, 42)
    now = read_table(check)
    assert set(table.index) < set(now.index)
    assert (now.loc[table.index, "answer"] == "right").all()
    assert (now.loc[table.index, "mood"] == "good").all()
    assert (now.loc[table.index, "note"] == "'=1+1, far away").all()  # no formula
    assert (now.loc[now.index.difference(table.index), ["answer", "mood"]] == "").all(axis=None)
    assert now["weight"].astype(float).sum() == pytest.approx(600, rel=1e-4)


@pytest.mark.parametrize("word", ["wrong", "rihgt"])
def test_answers_that_are_saved_while_clips_are_written_stay(run, check, monkeypatch, word):
    table, write_clips = read_table(check), sampling.write_clips

    def answered_meanwhile(*args):
        answer(check, lambda row: word)
        return write_clips(*args)

    monkeypatch.setattr(sampling, "write_clips", answered_meanwhile)
    larger = SampleSettings(per_species=30, pictures=False)
    if word == "wrong":
        assert draw_sample(run, check, larger).answered == 42
    else:
        with pytest.raises(UserError, match=r"line 2 has the answer 'rihgt'.* while clips were cut.* lacks the new"):
            draw_sample(run, check, larger)
    now = read_table(check)
    assert (now.loc[table.index, "answer"] == word).all()
    assert len(now) == (60 if word == "wrong" else 42)


@pytest.mark.parametrize(
    ("by", "groups"), [("site", {"KEN_001", "KEN_002"}), ("night", {"2021-12-07"})], ids=["site", "night"]
)
def test_sites_and_nights_are_strata(run, tmp_path, by, groups):
    draw_sample(run, tmp_path / "check", SampleSettings(per_species=7, by=by, pictures=False))
    table = read_table(tmp_path / "check")
    assert set(table[by]) == groups  # 15:38 and 9:00 on the next morning are one night
    assert table.groupby(["species", by]).size().eq(7).all()
    assert {stratum["group"] for stratum in strata(tmp_path / "check")} == groups


def test_an_edited_csv_that_is_not_read_is_told(run, tmp_path, caplog):
    found = shutil.copytree(run, tmp_path / "found")
    table = found / "detections.csv"
    (found / STATE_FOLDER).mkdir()
    (found / STATE_FOLDER / TABLES_FILE).write_text(json.dumps({table.name: file_sha256(table)}), encoding="utf-8")
    assert table_in(found).name == "detections.parquet"
    assert not caplog.messages
    table.write_text(table.read_text(encoding="utf-8").replace("abcde1", "bcdef1", 1), encoding="utf-8")
    assert table_in(found).name == "detections.parquet"
    assert "detections.csv was edited after the run" in caplog.text
    (found / "detections.parquet").unlink()
    assert table_in(found) == table


def test_recordings_without_a_site_are_a_group_of_their_own(tmp_path):
    found = write_run(tmp_path, names=(NAMES[0], "a"))
    check = tmp_path / "check"
    draw_sample(found, check, SampleSettings(per_species=5, by="site", pictures=False))
    table = answer(check, truthful)
    assert table.groupby(["species", "site"]).size().to_dict() == {
        (species, site): 5 for species in ("abcde1", "bcdef1") for site in ("", "KEN_001")
    }
    verified_species = read_checks([check], tmp_path / "verified", pictures=False).all
    assert [verified.group for verified in verified_species] == ["", "", "unknown", "KEN_001", "unknown", "KEN_001"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", None, "has no run.json"),
        ("run.json", "{}", "does not say which model"),
        ("run.json", '{"model_sha256": "a", "settings": {"merge": true}}', "are merged.*--no_merge"),
        ("detections.parquet", "x", "cannot be read as a table of detections"),
        ("detections.parquet", None, "has no detections.parquet or detections.csv"),
    ],
)
def test_a_folder_that_is_not_one_of_detect_is_refused(run, tmp_path, name, content, said):
    found = shutil.copytree(run, tmp_path / "found", ignore=shutil.ignore_patterns("*.csv"))
    (found / name).unlink()
    if content is not None:
        (found / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        draw_sample(found, tmp_path / "check", SMALL)
    assert not (tmp_path / "check" / "verify.csv").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_run_without_a_detection_is_refused(run, tmp_path, suffix):
    found = shutil.copytree(run, tmp_path / "found")
    table = pd.read_parquet(found / "detections.parquet")
    (found / "detections.parquet").unlink()
    header = (found / "detections.csv").read_text(encoding="utf-8").splitlines()[0]
    (found / "detections.csv").write_text(header + "\n", encoding="utf-8")
    if suffix == "parquet":
        table.iloc[:0].to_parquet(found / "detections.parquet")
    with pytest.raises(UserError, match=f"detections.{suffix} has no detections: run kenya-birds detect with a lower"):
        draw_sample(found, tmp_path / "check", SMALL)


def test_recordings_that_moved_are_asked_for_and_found_by_name_and_length(run, tmp_path, capsys):
    shutil.copytree(run.parent / "recordings", tmp_path / "recordings")
    found = write_run(tmp_path / "other", names=NAMES[:1])
    (tmp_path / "other" / "recordings").rename(tmp_path / "moved")
    words = [
        "verify",
        "sample",
        str(found),
        "--output",
        str(tmp_path / "check"),
        "--per_species",
        "3",
        "--no_pictures",
    ]
    with pytest.raises(SystemExit, match="2"):
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 recordings of the sample are not where they were analysed" in line
    assert "--recordings" in line
    main([*words, "--recordings", str(tmp_path / "moved")])
    assert len(read_table(tmp_path / "check")) == 6
    (path,) = (tmp_path / "moved").iterdir()
    # Another file with the same name is not taken for it, because of its length.
    (tmp_path / "moved" / "b").mkdir()
    soundfile.write(tmp_path / "moved" / "b" / path.name, np.zeros(RATE), RATE)
    (tmp_path / "moved" / "a").mkdir()
    path = path.rename(tmp_path / "moved" / "a" / path.name)
    shutil.rmtree(tmp_path / "check" / "clips")
    main([*words, "--recordings", str(tmp_path / "moved")])
    assert len(list((tmp_path / "check" / "clips").iterdir())) == 6
    path.unlink()
    shutil.rmtree(tmp_path / "check" / "clips")
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--recordings", str(tmp_path / "moved")])
    assert "is 1.000 s long" in capsys.readouterr().err


def write_silence(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(RATE), RATE)
    return str(path)


def test_a_moved_file_is_not_taken_for_two_recordings(tmp_path):
    names = pd.Series(["old/north/20211207_053000.wav", "old/east/20211207_053000.wav"])
    path = write_silence(tmp_path / "new" / "south" / "20211207_053000.wav")
    with pytest.raises(
        UserError, match=r"north/20211207_053000\.wav and old/east/20211207_053000\.wav cannot both be"
    ):
        find_recordings(names, tmp_path / "new")
    # Sites may have other names now, if no other recording has this one.
    assert find_recordings(names[1:], tmp_path / "new") == {names[1]: path}


@pytest.mark.parametrize("is_in_sample", [True, False])
@pytest.mark.parametrize("searched", ["new", "new/south"])
def test_a_file_of_another_site_with_the_same_name_is_not_taken(tmp_path, is_in_sample, searched):
    """The other recording is in the sample and at its place, or was analysed in the same detection run."""
    gone = str(tmp_path / "new" / "north" / "20211207_053000.wav")
    other = write_silence(tmp_path / "new" / "south" / "20211207_053000.wav")
    names = [gone, other] if is_in_sample else [gone]
    told = r"north/20211207_053000\.wav is not found .* is in the folder of .*south/20211207_053000\.wav\)"
    with pytest.raises(UserError, match=told):
        find_recordings(pd.Series(names), tmp_path / searched, {gone: 1.0, other: 1.0})


def test_a_file_between_folders_of_the_same_name_is_that_of_its_site(tmp_path):
    """As recorders write them: site1/Data/TIME.wav."""
    gone, other = (f"old/site{number}/Data/20211207_053000.WAV" for number in (1, 2))
    lengths_s = {gone: 1.0, other: 1.0}
    path = write_silence(tmp_path / "new" / "Site2" / "Data" / "20211207_053000.wav")
    with pytest.raises(
        UserError, match=r"site1/Data/20211207_053000\.WAV is not found .* is in the folder of old/site2"
    ):
        find_recordings(pd.Series([gone]), tmp_path / "new", lengths_s)
    assert find_recordings(pd.Series([other]), tmp_path / "new", lengths_s) == {other: path}
    # All in one folder, without other files of this name.
    flat = write_silence(tmp_path / "flat" / "20211207_053000.wav")
    assert find_recordings(pd.Series([gone]), tmp_path / "flat", lengths_s) == {gone: flat}


def test_answers_outlive_the_loss_of_the_record_of_the_rows(run, check):
    answer(check, truthful)
    given = read_table(check)["answer"].to_dict()
    (check / "sample.parquet").unlink()
    drawing = draw_sample(run, check, SampleSettings(per_species=28, pictures=False))
    assert drawing.answered == len(given)
    after = read_table(check)["answer"]
    assert len(after) == 56
    assert {name: after[name] for name in given} == given


def test_sound_that_cannot_be_decoded_has_no_clip_and_is_counted(tmp_path):
    found = write_run(tmp_path, names=NAMES[:1])
    path = tmp_path / "recordings" / f"{NAMES[0]}.wav"
    path.write_bytes(path.read_bytes()[: 44 + RATE * LENGTH_S])  # the second half is missing
    drawing = draw_sample(found, tmp_path / "check", SampleSettings(per_species=60, pictures=False))
    table = read_table(tmp_path / "check")
    is_there = [(tmp_path / "check" / clip).is_file() for clip in table["clip"]]
    assert drawing.lost == is_there.count(False) > 0
    # Sound around a detection that cannot be decoded is silence in its clip.
    assert is_there == [float(end) <= LENGTH_S / 2 for end in table["end_s"]]
    row = table[table["end_s"].astype(float).between(LENGTH_S / 2 - 1, LENGTH_S / 2)].iloc[0]
    sound, rate = soundfile.read(tmp_path / "check" / row["clip"])
    heard = round((LENGTH_S / 2 - float(row["clip_start_s"])) * rate)
    assert len(sound) == 5 * rate > heard
    assert np.abs(sound[:heard]).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    assert not sound[heard:].any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SampleSettings(per_species=20, pictures=False), "at least as many, found 20"),
        (SampleSettings(per_species=21, pictures=False, seed=3), "drawn with seed 0, and now it is 3"),
        (SampleSettings(per_species=21, pictures=False, by="site"), "drawn with by None, and now it is site"),
    ],
)
def test_a_sample_is_not_continued_with_other_settings(run, check, settings, said):
    with pytest.raises(UserError, match=said):
        draw_sample(run, check, settings)


def test_a_sample_is_not_continued_with_another_table_or_model(run, check, tmp_path):
    other = shutil.copytree(run, tmp_path / "found")
    (other / "detections.parquet").unlink()
    with pytest.raises(UserError, match="which differs from"):
        draw_sample(other, check, SMALL)
    (other / "run.json").write_text(json.dumps({"model": "b", "model_sha256": "b"}), encoding="utf-8")
    with pytest.raises(UserError, match="another model"):
        draw_sample(other, check, SMALL)


def test_an_answer_that_cannot_be_read_stops_the_sample_before_anything_is_written(run, check):
    answer(check, lambda row: "rihgt")
    before = (check / "verify.csv").read_bytes()
    with pytest.raises(UserError, match=r"verify\.csv line 2 has the answer 'rihgt'"):
        draw_sample(run, check, SampleSettings(per_species=30, pictures=False))
    assert (check / "verify.csv").read_bytes() == before


def test_a_name_that_two_species_share_is_not_guessed(run, check):
    with (check / "species.csv").open("a", encoding="utf-8") as file:
        file.write("Corvus albus,crow1,Crow\nCorvus capensis,crow2,Crow\nCorvus edithae,corvus albus,Raven\n")
    table, species = read_table(check), read_species_table(check)
    table.loc[table.index[:4], "answer"] = "other"
    table.loc[table.index[:4], "other_species"] = ["crow1", "Corvus capensis", "Raven", "Corvus Albus"]
    write_table(table, check)
    answers = read_answers(check, read_rows(check), species)
    assert [one.other_species for one in answers.values()] == ["crow1", "crow2", "corvus albus", "corvus albus"]
    table.loc[table.index[1], "other_species"] = "crow"
    write_table(table, check)
    with pytest.raises(
        UserError, match="line 3 has the other_species 'crow', which is the name of crow1 and crow2 in"
    ):
        read_answers(check, read_rows(check), species)


def test_low_scores_that_the_table_lacks_are_told(run, tmp_path, caplog):
    table = pd.read_csv(run / "detections.csv", dtype=str, keep_default_na=False)
    shutil.copytree(run, tmp_path / "found", ignore=shutil.ignore_patterns("*.parquet"))
    table[table["score"].astype(float) > 0.3].to_csv(tmp_path / "found" / "detections.csv", index=False)
    draw_sample(tmp_path / "found", tmp_path / "check", SampleSettings(per_species=2, pictures=False))
    assert "The lowest score in the table is 0.30" in caplog.text
    assert "--threshold 0" in caplog.text


def test_listed_species_without_a_detection_are_skipped_and_told(run, tmp_path, caplog):
    listed = tmp_path / "list.txt"
    listed.write_text("bcdef1\nrare warbler\n", encoding="utf-8")
    draw_sample(run, tmp_path / "check", SMALL, species=listed)
    assert set(read_table(tmp_path / "check")["species"]) == {"bcdef1"}
    assert "Skipped 1 name in " in caplog.text
    assert "rare warbler (line 2)" in caplog.text
    listed.write_text("rare warbler\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no detection of a species in .*: found rare warbler \(line 1\)"):
        draw_sample(run, tmp_path / "other", SMALL, species=listed)


def test_answers_are_written_into_a_column_in_any_case_and_added_columns_stay(check):
    table = read_table(check).rename(columns={"answer": "Answer"}).assign(level_db="-35")
    write_table(table, check)
    # Remarks without a heading, an empty column, and two columns of one name.
    path = check / "verify.csv"
    header, *lines = path.read_text().splitlines()
    lines = [f"{line},first {at},,ask Otieno,second {at}" for at, line in enumerate(lines)]
    path.write_text("\n".join([f"{header},seen,,,seen", *lines]) + "\n")
    rows = read_rows(check)
    for _ in range(2):
        write_answers(check, rows, {rows.index[0]: Answer("right")})
    now = read_table(check)
    header, *lines = path.read_text().splitlines()
    assert header.endswith(",level_db,seen,,seen")
    assert all(line.endswith(f",-35,first {at},ask Otieno,second {at}") for at, line in enumerate(lines))
    assert [name for name in now if name.lower() == "answer"] == ["answer"]
    assert now["answer"][rows.index[0]] == "right"
    assert (now["level_db"] == "-35").all()


def test_sites_must_be_known(tmp_path):
    found = write_run(tmp_path, names=("a",))
    with pytest.raises(UserError, match="has a known site"):
        draw_sample(found, tmp_path / "check", SampleSettings(per_species=2, by="site"))
