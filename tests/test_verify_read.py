"""`kenya-birds verify read`: answers as people and spreadsheets write them, and what follows from them."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from detecting import run_in_folder, save_model, write_recordings
from running import run as run_process
from verifying import LENGTH_S, answer, is_right, read_table, rows_of, truthful, write_run, write_table

from kenya_birds.cli import main
from kenya_birds.data.csv_table import read_csv
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.verification.check_folder import (
    Answer,
    read_answers,
    read_rows,
    read_species_table,
    write_answers,
    write_species,
)
from kenya_birds.verification.history_tables import apply_answers
from kenya_birds.verification.reading import read_checks
from kenya_birds.verification.sampling import SampleSettings, draw_sample

SETTINGS = SampleSettings(per_species=60, pictures=False, context_s=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def drawn(run):
    check = run.parent / "check"
    draw_sample(run, check, SETTINGS)
    shutil.rmtree(check / "clips")  # reading needs none
    answer(check, truthful)
    return check


@pytest.fixture(scope="module")
def verified(drawn):
    """The results of truthful answers."""
    read_checks([drawn], drawn.parent / "verified")
    return drawn.parent / "verified"


@pytest.fixture
def check(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "check")


def read(checks, output, capsys, **options):
    """Runs the command; returns its exit code, what it printed, and its errors."""
    words = ["--no_pictures", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    code = 0
    try:
        main(["verify", "read", *map(str, checks), "--output", str(output), *words])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_shares_and_precision_are_close_to_the_truth(run, drawn, verified):
    everything = pd.read_parquet(run / "detections.parquet").rename(columns={"code": "species"})
    everything["right"] = [is_right(row) for _, row in everything.iterrows()]
    for row in rows_of(verified / "verified_species.csv"):
        its = everything[everything["species"] == row["species"]]
        assert int(row["detections"]) == len(its)
        assert float(row["share_right_low"]) <= its["right"].mean() <= float(row["share_right_high"])
        assert int(row["right"]) + int(row["wrong"]) == 60
        for wanted in (0.9, 0.95):
            score = row[f"score_for_precision_{wanted}"]
            if score != "not reached":
                assert its.loc[its["score"] >= float(score), "right"].mean() > wanted - 0.15
    for row in rows_of(verified / "precision.csv"):
        its = everything[
            (everything["species"] == row["species"]) & (everything["score"] >= float(row["score"]) - 1e-7)
        ]
        assert int(row["detections"]) == len(its)
        assert float(row["precision_low"]) - 0.1 <= its["right"].mean() <= float(row["precision_high"]) + 0.1


def test_all_answers_and_pictures_are_in_the_results(drawn, verified):
    answers = rows_of(verified / "answers.csv")
    assert {row["id"]: row["answer"] for row in answers} == read_table(drawn)["answer"].to_dict()
    for name in ("precision_by_threshold.png", "probability/abcde1.png", "probability/bcdef1.png"):
        assert (verified / name).read_bytes().startswith(b"\x89PNG")


def test_answers_are_about_the_exact_times_of_their_detections(tmp_path):
    """The last window of a recording may begin at any sample."""
    found = write_run(tmp_path, formats=("csv",))
    table = pd.read_csv(found / "detections.csv", dtype=str, keep_default_na=False)
    table = table[table["start_s"].astype(float) < LENGTH_S - 1]
    for name in ("start_s", "end_s"):
        table[name] = [f"{float(text) + 0.123457:.6f}" for text in table[name]]
    table.to_csv(found / "detections.csv", index=False)
    check = tmp_path / "check"
    draw_sample(found, check, SampleSettings(per_species=7, pictures=False))
    answered = answer(check, lambda row: "wrong")
    read_checks([check], tmp_path / "verified", pictures=False)
    left = apply_answers(table.assign(confirmed=False), read_csv(tmp_path / "verified" / "answers.csv"))
    assert len(answered) == 14
    assert len(left) == len(table) - 14


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(check, tmp_path, monkeypatch):
    read_checks([check], tmp_path / "out", pictures=False)
    monkeypatch.chdir(tmp_path / "out")
    for name in (".", tmp_path / "out"):
        with pytest.raises(UserError, match="working directory, a mounted folder or a link"):
            read_checks([check], name, pictures=False, overwrite=True)


def test_spreadsheets_may_change_the_table_and_nothing_changes(verified, check, tmp_path):
    table = read_table(check)
    table["answer"] = [word.upper() if n % 2 else f" {word.title()} " for n, word in enumerate(table["answer"])]
    table["score"] = table["score"].str.replace(".", ",")
    table["start_s"] = "12.05.2021"  # what a spreadsheet may make of a number
    table = table.drop(columns=["stratum", "weight"]).assign(mood="fine; really")
    write_table(table.sample(frac=1, random_state=0), check, sep=";", encoding="utf-8-sig", lineterminator="\r\n")
    read_checks([check], tmp_path / "verified", pictures=False)
    for name in ("verified_species.csv", "precision.csv", "thresholds.json"):
        assert (tmp_path / "verified" / name).read_bytes() == (verified / name).read_bytes()


def test_any_note_can_be_written_and_read_again(check):
    notes = {
        "=1+1": "=1+1",
        "a, b; c": "a, b; c",
        'he said "crow"': 'he said "crow"',
        "two\nlines": "two\nlines",
        "\x00 bell \x07": "bell",
        "É — 鳥": "É — 鳥",
        "'quoted'": "'quoted'",
    }
    rows = read_rows(check)
    answers = {name: Answer("wrong", note=note) for name, note in zip(rows.index, notes, strict=False)}
    write_answers(check, rows, answers)
    found = read_answers(check, rows, read_species_table(check))
    assert [found[name].note for name in answers] == list(notes.values())


def test_excel_may_say_which_separator_it_used(check, tmp_path, verified):
    text = (check / "verify.csv").read_text(encoding="utf-8").replace("right", "RIGHT")
    (check / "verify.csv").write_bytes(("sep=,\r\n" + text).encode("utf-16"))
    read_checks([check], tmp_path / "verified", pictures=False)
    assert (tmp_path / "verified" / "verified_species.csv").read_bytes() == (
        verified / "verified_species.csv"
    ).read_bytes()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("answer", "yes", r"verify\.csv line 4 has the answer 'yes': expected right, wrong, other, unsure or nothing"),
        ("other_species", "zzz", r"verify\.csv line 4 has the other_species 'zzz', which is unknown"),
        (
            "other_species",
            "Bird, common",
            r"verify\.csv line 4 has the other_species 'abcde1', which is the detected one",
        ),
        ("other_species", "bcdef1", r"verify\.csv line 4 has an other_species with the answer 'wrong'"),
        ("id", "x", r"verify\.csv line 4 has the id 'x', which is not in the sample"),
    ],
)
def test_what_cannot_be_understood_ends_with_one_line(check, tmp_path, capsys, column, value, said):
    table = read_table(check)
    table.iloc[2, table.columns.get_loc("answer")] = "wrong" if value == "bcdef1" else "other"
    table.iloc[2, table.columns.get_loc(column)] = value
    write_table(table, check)
    before = (check / "verify.csv").read_bytes()
    code, _, error = read([check], tmp_path / "verified", capsys)
    (line,) = error.splitlines()
    assert code == 2
    assert pd.Series([line]).str.contains(said).all(), line
    assert not (tmp_path / "verified").exists()
    assert (check / "verify.csv").read_bytes() == before


def test_two_lines_with_different_answers_about_one_detection_are_refused(check, tmp_path):
    table = read_table(check)
    more = table.iloc[[0]].assign(answer="unsure")
    write_table(pd.concat([table, more]), check)
    with pytest.raises(UserError, match="line 122 has another answer"):
        read_checks([check], tmp_path / "verified", pictures=False)


def test_other_species_are_wrong_for_this_species_and_may_be_added(check, tmp_path):
    with (check / "species.csv").open("a", encoding="utf-8") as file:
        file.write("Avis nova,newbir1,New bird\n")
    table = read_table(check)
    table["answer"] = "other"
    table["other_species"] = ["Rare Bird", "newbir1", "avis NOVA", "????", *[""] * (len(table) - 4)]
    write_table(table, check)
    found = read_checks([check], tmp_path / "verified", pictures=False)
    assert [verified.counts["wrong"] for verified in found.all] == [60, 60]
    others = {row["id"]: row["other_species"] for row in rows_of(tmp_path / "verified" / "answers.csv")}
    assert [others[name] for name in table.index[:4]] == ["bcdef1", "newbir1", "newbir1", "????"]


def test_species_csv_may_lack_a_detected_species(check, verified, tmp_path):
    table = (check / "species.csv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in table if "abcde1" not in line]
    assert len(kept) == len(table) - 1
    (check / "species.csv").write_text("\n".join(kept), encoding="utf-8")
    read_checks([check], tmp_path / "verified", pictures=False)
    name = "verified_species.csv"
    assert (tmp_path / "verified" / name).read_bytes() == (verified / name).read_bytes()


def test_unsure_and_missing_answers_are_left_out_and_counted(check, tmp_path, capsys):
    table = read_table(check)
    table["answer"] = np.where(np.arange(len(table)) % 4 == 0, "unsure", table["answer"])
    table.loc[table.index[1::4], "answer"] = ""
    write_table(table.iloc[:-3], check)
    code, said, _ = read([check], tmp_path / "verified", capsys)
    assert code == 0
    assert "30 unsure" in said
    assert "32 unanswered" in said
    (first, second) = rows_of(tmp_path / "verified" / "verified_species.csv")
    assert (first["unsure"], first["unanswered"]) == ("15", "15")
    assert int(second["right"]) + int(second["wrong"]) == 60 - 15 - 17


def test_names_that_a_spreadsheet_would_run_are_guarded_and_read_back(tmp_path):
    species = {"=code": SpeciesNames("+Owl", "@Avis"), "owl1": SpeciesNames("'Ōwl'", "Avis -2")}
    write_species(tmp_path, species)
    lines = (tmp_path / "species.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["'@Avis,'=code,'+Owl", "Avis -2,owl1,'Ōwl'"]
    assert read_species_table(tmp_path).items() >= species.items()


def test_earlier_results_are_replaced_only_if_wanted_and_only_results(check, tmp_path, capsys):
    output = tmp_path / "verified"
    assert read([check], output, capsys)[0] == 0
    answer(check, lambda row: "right")
    (output / ".DS_Store").touch()  # which Finder makes
    code, _, error = read([check], output, capsys)
    assert code == 2
    assert "not an empty folder: give another --output, or --overwrite to replace earlier results" in error
    read_checks([check], output, pictures=False, overwrite=True)
    assert {row["wrong"] for row in rows_of(output / "verified_species.csv")} == {"0"}
    (output / "report.docx").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"has report\.docx, which is no result"):
        read_checks([check], output, pictures=False, overwrite=True)
    assert (output / "report.docx").is_file()


def test_a_table_alone_is_not_enough(check, tmp_path, capsys):
    code, _, error = read([check / "verify.csv"], tmp_path / "verified", capsys)
    assert code == 2
    assert "give the folder" in error


def test_further_clips_give_the_wanted_width(run, tmp_path):
    """As `verified_species.csv` says for a width: drawing so many more clips makes the interval about so narrow."""
    draw_sample(run, tmp_path / "check", SampleSettings(per_species=20, pictures=False, context_s=0))
    answer(tmp_path / "check", truthful)
    first = read_checks([tmp_path / "check"], tmp_path / "first", pictures=False).all[0]
    more = first.clips_for(0.15)
    assert 20 < more < 280
    draw_sample(run, tmp_path / "check", SampleSettings(per_species=20 + more, pictures=False, context_s=0))
    answer(tmp_path / "check", truthful)
    second = read_checks([tmp_path / "check"], tmp_path / "second", pictures=False).all[0]
    assert second.share.width == pytest.approx(0.15, abs=0.05)
    assert first.share.width > 0.2
    assert first.clips_for(0.15, score=0.9) > 0


def test_without_answers_nothing_is_computed(check, tmp_path, capsys):
    answer(check, lambda row: "")
    code, _, error = read([check], tmp_path / "verified", capsys)
    assert code == 2
    assert "no detection is answered" in error


def test_two_people_are_joined_with_their_agreement(drawn, check, tmp_path, capsys):
    other = shutil.copytree(drawn, tmp_path / "other")
    table = read_table(check)
    # Of 120 detections both answer 100; in 40 both say right, in 40 both wrong, in 12 and 8 they differ.
    pairs = (
        [("right", "right")] * 40 + [("wrong", "other")] * 40 + [("right", "wrong")] * 12 + [("wrong", "right")] * 8
    )
    pairs += [("unsure", "right")] * 10 + [("", "wrong")] * 5 + [("right", "")] * 5
    for place, folder in enumerate((check, other)):
        write_table(table.assign(answer=[pair[place] for pair in pairs]), folder)
    # The other person may send back the table alone.
    assert read([check, other / "verify.csv"], tmp_path / "sent", capsys)[0] == 0
    code, said, _ = read([check, other], tmp_path / "verified", capsys)
    assert code == 0
    assert (tmp_path / "sent" / "verified_species.csv").read_bytes() == (
        tmp_path / "verified" / "verified_species.csv"
    ).read_bytes()
    (row,) = rows_of(tmp_path / "verified" / "agreement.csv")
    chance = 0.52 * 0.48 + 0.48 * 0.52
    assert float(row["agreement"]) == pytest.approx(0.8)
    assert float(row["kappa"]) == pytest.approx((0.8 - chance) / (1 - chance), abs=1e-4)
    assert "100 in both, agreement 0.80, Cohen's kappa 0.60" in said
    totals = [sum(int(row[name]) for row in rows_of(tmp_path / "verified" / "verified_species.csv"))
              for name in ("right", "wrong", "unsure", "disagreed", "unanswered")]  # fmt: skip
    assert totals == [40 + 10 + 5, 40 + 5, 0, 20, 0]
    assert len(rows_of(tmp_path / "verified" / "answers.csv")) == 2 * 120 - 10
    for again in (check, check / "verify.csv"):
        code, _, error = read([check, again], tmp_path / "twice", capsys)
        assert code == 2
        assert "verify.csv is given twice: give the answers of each person once" in error


def test_samples_with_other_seeds_are_joined(run, drawn, tmp_path):
    second = tmp_path / "second"
    draw_sample(run, second, SampleSettings(per_species=60, pictures=False, context_s=0, seed=1))
    answer(second, truthful)
    one, both = (
        read_checks([drawn], tmp_path / "one", pictures=False),
        read_checks([drawn, second], tmp_path / "both", pictures=False),
    )
    for narrow, wide in zip(both.all, one.all, strict=True):
        assert len(narrow.heard) > len(wide.heard)
        assert narrow.share.width < wide.share.width
    assert both.agreement["agreement"].tolist() == [1.0]


def test_samples_of_other_tables_strata_or_models_are_not_joined(run, drawn, tmp_path):
    small = tmp_path / "small"
    draw_sample(run, small, SampleSettings(per_species=7, pictures=False, context_s=0))
    with pytest.raises(UserError, match="different strata"):
        read_checks([drawn, small], tmp_path / "verified", pictures=False)
    for name, said in (("table_sha256", "different tables"), ("model_sha256", "different models")):
        content = json.loads((drawn / "sample.json").read_text(encoding="utf-8"))
        (small / "sample.json").write_text(json.dumps({**content, name: "b"}), encoding="utf-8")
        with pytest.raises(UserError, match=said):
            read_checks([drawn, small], tmp_path / "verified", pictures=False)


def test_sites_have_results_of_their_own(run, tmp_path):
    check = tmp_path / "check"
    draw_sample(run, check, SampleSettings(per_species=20, by="site", pictures=False, context_s=0))
    answer(check, truthful)
    found = read_checks([check], tmp_path / "verified", pictures=False)
    rows = rows_of(tmp_path / "verified" / "verified_species.csv")
    assert [(row["species"], row["site"], row["detections"]) for row in rows] == [
        ("abcde1", "", "300"),
        ("bcdef1", "", "300"),
        ("abcde1", "KEN_001", "200"),
        ("abcde1", "KEN_002", "100"),
        ("bcdef1", "KEN_001", "200"),
        ("bcdef1", "KEN_002", "100"),
    ]
    whole, _, first, second, *_ = (verified.share.estimate for verified in found.all)
    assert whole == pytest.approx((200 * first + 100 * second) / 300)


def test_a_precision_that_is_not_reached_gives_no_threshold_and_is_told(check, tmp_path, capsys):
    answer(check, lambda row: "right" if row["species"] == "abcde1" else "wrong")
    code, said, _ = read([check], tmp_path / "verified", capsys, precision=0.9)
    assert code == 0
    assert "With thresholds.json, bcdef1 is never reported: a precision of 0.9 is not reached at any score" in said
    thresholds = Thresholds.read(tmp_path / "verified" / "thresholds.json")
    assert thresholds.species["abcde1"] < 0.01  # all are right: from the lowest score on
    assert thresholds.species["bcdef1"] is None
    assert list(thresholds.never_reported) == ["bcdef1"]
    assert "120 detections that a person checked" in thresholds.reason()
    assert [row["score_for_precision_0.9"] for row in rows_of(tmp_path / "verified" / "verified_species.csv")][
        1
    ] == "not reached"


def test_detect_uses_the_thresholds_of_its_own_model_only(tmp_path):
    model = save_model(tmp_path / "model")
    recordings = write_recordings(tmp_path / "recordings", (20.0,))
    found = tmp_path / "found"
    run_in_folder(model, [recordings], found, formats=("parquet",), settings={"threshold": 0.0})
    draw_sample(found, tmp_path / "check", SampleSettings(per_species=15, pictures=False))
    table = answer(tmp_path / "check", lambda row: "right" if float(row["score"]) > 0.6 else "wrong")
    assert set(table["answer"]) == {"right", "wrong"}
    read_checks([tmp_path / "check"], tmp_path / "verified", pictures=False)
    path = tmp_path / "verified" / "thresholds.json"
    species = json.loads(path.read_text(encoding="utf-8"))["species"]
    run_in_folder(model, [recordings], tmp_path / "again", formats=("csv",), thresholds=path)
    reported = pd.read_csv(tmp_path / "again" / "detections.csv")
    everything = pd.read_parquet(found / "detections.parquet")
    least = everything["code"].astype(str).map({code: np.inf if at is None else at for code, at in species.items()})
    assert len(reported) == (everything["score"] >= least).sum() > 0
    content = json.loads(path.read_text(encoding="utf-8"))
    content["verification"]["model_sha256"] = "b"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="checked detections of another model"):
        run_in_folder(model, [recordings], tmp_path / "third", thresholds=path)


def test_reading_and_histories_do_not_wait_for_torch():
    modules = "kenya_birds.verification.reading, kenya_birds.verification.histories"
    result = run_process(sys.executable, "-c", f"import sys, {modules}; sys.exit('torch' in sys.modules)")
    assert result.returncode == 0, result.stderr
