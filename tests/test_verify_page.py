"""`kenya-birds verify page`: answers are on disk before the next detection is shown, and only the page gives them."""

import contextlib
import http.client
import io
import json
import os
import shlex
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import write_archive
from running import free_port
from verifying import RATE, SPECIES, answer, read_table, rows_of, write_run, write_table

from kenya_birds.cli import main
from kenya_birds.data import csv_table
from kenya_birds.errors import UserError
from kenya_birds.serving.verify_server import running_page
from kenya_birds.verification.answering import Answering, ChangedAnswerError, UnknownDetectionError
from kenya_birds.verification.check_folder import Answer
from kenya_birds.verification.sampling import SampleSettings, draw_sample

NOBODY = Answer()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), formats=("parquet",))


@pytest.fixture(scope="module")
def drawn(run):
    """A sample that tests copy: 7 clips of each of two species."""
    check = run.parent / "check"
    draw_sample(run, check, SampleSettings(per_species=7, pictures=False))
    return check


@pytest.fixture
def check(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "my check")


@pytest.fixture
def desk(check):
    return Answering(check, now=lambda: NOON)


def on_disk(check, name):
    return dict(read_table(check).loc[name])


def test_each_answer_is_on_disk_before_the_next_detection_is_shown(desk, check):
    ids = [row["id"] for row in rows_of(check / "verify.csv")]
    words = ["right", "wrong", "unsure", "other"] * 4
    question = desk.question()
    for n, (name, word) in enumerate(zip(ids, words, strict=False)):
        assert question.id == name
        assert (question.progress.place, question.progress.answered, question.progress.total) == (n + 1, n, 14)
        assert (question.progress.species_answered, question.progress.species_total) == (n % 7, 7)
        question = desk.record(name, Answer(word, verified_by="Wanjiru"), NOBODY)
        row = on_disk(check, name)
        assert (row["answer"], row["verified_by"]) == (word, "Wanjiru")
        assert datetime.fromisoformat(row["verified_at"]) == NOON
        assert (read_table(check)["answer"] != "").sum() == n + 1
    assert question is None
    assert desk.question() is None
    assert desk.last().id == ids[-1]


def test_the_page_starts_at_the_first_detection_without_an_answer(desk, check):
    table = answer(check, lambda row: "right")
    table.iloc[[5, 9], table.columns.get_loc("answer")] = ""
    write_table(table, check)
    first = desk.question()
    assert first.id == table["id"].iloc[5]
    assert first.upcoming == table["id"].iloc[9]
    assert desk.record(first.id, Answer("wrong"), NOBODY).id == table["id"].iloc[9]


def test_back_shows_the_answer_and_another_one_replaces_it(desk):
    first = desk.question()
    second = desk.record(first.id, Answer("right"), NOBODY)
    again = desk.question(second.previous)
    assert (again.id, again.answer.answer, again.previous) == (first.id, "right", None)
    assert desk.record(again.id, Answer("unsure"), again.answer).id == second.id
    assert desk.question(first.id).answer.answer == "unsure"


def test_a_note_is_saved_without_an_answer_and_stays_with_the_answer(desk, check):
    first = desk.question()
    noted = desk.record(first.id, Answer(note="  =faint\ncall\x07 "), NOBODY)
    assert (noted.id, noted.answer.note, noted.progress.answered) == (first.id, "=faint call", 0)
    assert on_disk(check, first.id)["note"] == "'=faint call"  # spreadsheets read no formula
    desk.record(first.id, replace(noted.answer, answer="right"), noted.answer)
    assert desk.question(first.id).answer.note == "=faint call"


@pytest.mark.parametrize("note", ["two birds\nfar away", "far away " * 300])
def test_a_note_of_a_spreadsheet_stays_as_it_is(desk, check, note):
    table = read_table(check)
    table.loc[table.index[0], "note"] = note
    write_table(table, check)
    first = desk.question()
    desk.record(first.id, Answer("right", note=first.answer.note), first.answer)
    row = on_disk(check, first.id)
    assert (row["answer"], row["note"]) == ("right", note.strip())


def test_another_species_is_one_of_the_table(desk, check):
    first = desk.question()
    with pytest.raises(UserError, match=r"'raven1' is no species of species\.csv"):
        desk.record(first.id, Answer("other", "raven1"), NOBODY)
    with pytest.raises(UserError, match=f"'{first.species}' is the detected species: answer right"):
        desk.record(first.id, Answer("other", first.species), NOBODY)
    with (check / "species.csv").open("a", encoding="utf-8") as file:
        file.write("Corvus corax,raven1,Raven\n")
    desk.record(first.id, Answer("other", "raven1"), NOBODY)
    again = desk.question(first.id)
    assert (again.answer.other_species, again.other_name) == ("raven1", "Raven")
    desk.record(first.id, Answer("right"), again.answer)
    assert on_disk(check, first.id)["other_species"] == ""


def test_a_second_species_that_a_spreadsheet_gave_is_kept(desk, check):
    table = read_table(check)
    table.iloc[0, [table.columns.get_loc(name) for name in ("answer", "other_species")]] = ["right", "bcdef1"]
    write_table(table, check)
    name = table["id"].iloc[0]
    desk.record(name, Answer("right", note="both"), desk.question(name).answer)
    assert on_disk(check, name)["other_species"] == "bcdef1"


def test_a_table_that_a_spreadsheet_has_changed_meanwhile_keeps_all_answers(desk, check):
    first = desk.question()
    second = desk.record(first.id, Answer("right"), NOBODY)
    table = read_table(check).iloc[::-1]
    table["colour"] = "blue"
    table.loc[table["id"].iloc[0], "answer"] = "wrong"  # the last row of the sample
    write_table(table, check, sep=";", encoding="utf-16")
    desk.record(second.id, Answer("unsure"), NOBODY)
    after = read_table(check)
    assert after["answer"].to_list() == ["right", "unsure", *[""] * 11, "wrong"]
    assert set(after["colour"]) == {"blue"}


def test_a_table_of_the_same_size_and_time_is_read_again(desk, check):
    path = check / "verify.csv"
    first = desk.question()
    second = desk.record(first.id, Answer("right"), NOBODY)
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b",right,", b",wrong,"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert desk.question(first.id).answer.answer == "wrong"
    desk.record(second.id, Answer("right"), NOBODY)
    assert read_table(check)["answer"].to_list()[:3] == ["wrong", "right", ""]


def test_a_table_with_the_same_text_is_parsed_once(desk, check, monkeypatch):
    parsed = []
    parse = csv_table.parse_table

    def count(text: str, path: Path, *others: str) -> csv_table.TextTable:
        parsed.append(Path(path).name)
        return parse(text, path, *others)

    monkeypatch.setattr(csv_table, "parse_table", count)
    first = desk.question()
    second = desk.record(first.id, Answer("right"), NOBODY)
    assert desk.question(second.id) == desk.question()
    desk.record(second.id, Answer("right"), NOBODY)
    assert parsed.count("verify.csv") <= 2  # at the beginning, and after the first answer


def test_answers_of_the_page_outlive_an_older_table_that_a_spreadsheet_saves(desk, check):
    old = (check / "verify.csv").read_bytes()
    first = desk.question()
    second = desk.record(first.id, Answer("right"), NOBODY)
    (check / "verify.csv").write_bytes(old)
    assert desk.question().id == second.id
    desk.record(second.id, Answer("wrong"), NOBODY)
    assert read_table(check)["answer"].to_list()[:3] == ["right", "wrong", ""]


@pytest.mark.parametrize(
    ("saved_at", "kept"),
    [("2026-03-01T11:59:00+00:00", "wrong"), ("2026-03-01T12:00:00+00:00", "unsure"), ("1/3/2026 11:59", "unsure")],
)
def test_the_later_of_two_answers_is_kept(desk, check, saved_at, kept):
    """A spreadsheet saves an older table after the page; or a person corrects there what the page has written."""
    first = desk.question()
    second = desk.record(first.id, Answer("wrong"), NOBODY)
    table = read_table(check)
    table.loc[first.id, ["answer", "verified_at"]] = ["unsure", saved_at]
    write_table(table, check)
    desk.record(second.id, Answer("right"), NOBODY)
    assert on_disk(check, first.id)["answer"] == kept


def test_a_table_that_cannot_be_read_is_not_replaced(desk, check):
    first = desk.question()
    (check / "verify.csv").write_text("id,answer\nabc,maybe\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2 has the answer 'maybe'"):
        desk.record(first.id, Answer("right"), NOBODY)
    assert (check / "verify.csv").read_text(encoding="utf-8") == "id,answer\nabc,maybe\n"


def test_clips_that_are_added_meanwhile_are_asked_too(desk, run, check):
    first = desk.question()
    desk.record(first.id, Answer("right"), NOBODY)
    draw_sample(run, check, SampleSettings(per_species=8, pictures=False))
    assert desk.question().progress.total == 16
    desk.record(desk.question().id, Answer("wrong"), NOBODY)
    assert len(read_table(check)) == 16


def test_an_answer_that_somebody_else_gave_meanwhile_is_not_replaced_unseen(check):
    mine, yours = Answering(check), Answering(check)
    first = mine.question()
    yours.record(first.id, Answer("wrong", verified_by="Otieno"), NOBODY)
    with pytest.raises(ChangedAnswerError, match="answered meanwhile by Otieno"):
        mine.record(first.id, Answer("right", verified_by="Wanjiru"), first.answer)
    assert on_disk(check, first.id)["answer"] == "wrong"
    mine.record(first.id, Answer("right"), mine.question(first.id).answer)
    assert on_disk(check, first.id)["answer"] == "right"


def test_people_who_answer_at_the_same_time_lose_nothing(check):
    ids = read_table(check)["id"].to_list()
    words = ("right", "wrong")

    def work(n):
        desk = Answering(check)  # as in a process of its own: they share only the lock of the folder
        for name in ids[n::2]:
            desk.record(name, Answer(words[n]), NOBODY)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_table(check)["answer"].to_list() == ["right", "wrong"] * 7


def test_only_ids_and_files_of_the_sample_are_known(desk, check):
    first = desk.question().id
    for name in ("../../etc/passwd", "", "verify.csv", first.upper()):
        for function in (desk.question, desk.clip, desk.picture):
            with pytest.raises(UnknownDetectionError):
                function(name)
        with pytest.raises(UnknownDetectionError):
            desk.record(name, Answer("right"), NOBODY)
    assert (check / "clips") in desk.clip(first).parents
    with pytest.raises(UnknownDetectionError):
        desk.picture(first)
    rows = pd.read_parquet(check / "sample.parquet")
    (check.parent / "secret.flac").write_bytes(b"secret")
    rows.loc[0, "clip"] = "clips/../../secret.flac"
    rows.loc[1, "clip"] = str(check.parent / "secret.flac")
    for row, name in enumerate(("evil.html", "evil.txt", "..\\secret.flac", "link.flac"), 2):
        rows.loc[row, "clip"] = f"clips/{name}"
        (check / "clips" / name).write_bytes(b"secret")
    (check / "clips" / "link.flac").unlink()
    (check / "clips" / "link.flac").symlink_to(check.parent / "secret.flac")
    rows.to_parquet(check / "sample.parquet", index=False)
    for name in rows["id"][:6]:
        with pytest.raises(UnknownDetectionError):
            desk.clip(name)
    assert (check / "clips") in desk.clip(rows.loc[6, "id"]).parents


def test_detections_without_a_clip_are_not_asked(desk, check):
    first = desk.question()
    desk.clip(first.id).unlink()
    assert desk.question().id == first.next
    assert desk.question().progress.total == 13
    # Nor those whose clip is not sent.
    second = desk.clip(desk.question().id)
    second.rename(check.parent / second.name)
    second.symlink_to(check.parent / second.name)
    assert desk.question().progress.total == 12
    (check / "clips").rename(check.parent / "elsewhere")
    (check / "clips").symlink_to(check.parent / "elsewhere")
    with pytest.raises(UserError, match="clips is a link to another folder"):
        Answering(check)


@pytest.fixture
def visitor(check):
    with running_page(check, by="Wanjiru", port=free_port()) as address, httpx.Client(base_url=address) as http:
        yield http


def given(name, word="right"):
    nobody = dict.fromkeys(("answer", "other_species", "note", "verified_by", "verified_at"), "")
    return {"id": name, "answer": {**nobody, "answer": word}, "seen": nobody}


def test_the_server_gives_the_page_the_detections_and_their_sound(visitor, check):
    for path in ("/", "/verify_page.js", "/verify_page.css"):
        reply = visitor.get(path)
        assert reply.status_code == 200
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    start = visitor.get("/start").json()
    assert (start["by"], start["references"]) == ("Wanjiru", [])
    assert shlex.split(start["command"]) == ["kenya-birds", "verify", "read", str(check), "--output", "verified"]
    assert {one["code"] for one in start["species"]} == {*SPECIES, "????"}
    question = start["question"]
    assert "score" not in json.dumps(question)
    sound = visitor.get(f"/clip/{question['id']}")
    assert sound.headers["content-type"] == "audio/flac"
    assert sound.content == (check / read_table(check).loc[question["id"], "clip"]).read_bytes()
    origin = {"Origin": str(visitor.base_url).rstrip("/")}
    reply = visitor.post("/answer", json=given(question["id"]), headers=origin)
    assert reply.json()["question"]["id"] == question["next"]
    assert visitor.post("/answer", json=given(question["id"], "wrong"), headers=origin).status_code == 409
    assert on_disk(check, question["id"])["answer"] == "right"


def test_pages_of_other_sites_can_neither_answer_nor_read(visitor, check):
    before = (check / "verify.csv").read_bytes()
    name = visitor.get("/start").json()["question"]["id"]
    own = str(visitor.base_url).rstrip("/")
    port = visitor.base_url.port
    for headers in (
        {},
        {"Origin": "null"},
        {"Origin": "https://birds.example"},
        {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Origin": f"http://birds.example:{port}", "Host": f"birds.example:{port}"},  # a name of theirs for 127.0.0.1
        {"Origin": own, "Sec-Fetch-Site": "cross-site"},
    ):
        assert visitor.post("/answer", json=given(name), headers=headers).status_code == 403, headers
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": f"birds.example:{port}"},
        {"Origin": "http://a.example"},
    ):
        assert visitor.get(f"/question/{name}", headers=headers).status_code == 403, headers
    form = {"Origin": own, "Content-Type": "text/plain"}
    assert visitor.post("/answer", content=json.dumps(given(name)), headers=form).status_code == 400
    assert (check / "verify.csv").read_bytes() == before


def test_what_is_no_route_or_no_answer_is_refused(visitor, check):
    before = (check / "verify.csv").read_bytes()
    name = visitor.get("/start").json()["question"]["id"]
    for path in (
        *("/verify.csv", "/clip/..%2fverify.csv", "/clip/../verify.csv", "/clip//etc/passwd", "/question/none"),
        *("/picture/none", "/reference/abcde1/sound", "/../verify_server.py", "/verify_server.py", "/start/?x"),
    ):
        assert visitor.get(path).status_code == 404, path
    headers = {"Origin": str(visitor.base_url).rstrip("/")}
    assert visitor.post("/answer", json=given("none"), headers=headers).status_code == 404
    assert visitor.post("/start", json={}, headers=headers).status_code == 404
    for content in (b"", b"[", b"[]", b"{}", b"[" * 50000, json.dumps(given([name])).encode(), b"\xff"):
        kind = {**headers, "Content-Type": "application/json"}
        assert visitor.post("/answer", content=content, headers=kind).status_code == 400, content[:20]
    large = {**given(name), "more": "x" * 2**16}
    assert visitor.post("/answer", json=large, headers=headers).status_code == 413
    for change, told in (
        ({"answer": "maybe"}, "the answer is 'maybe'"),
        ({"answer": "other", "other_species": "dodo"}, "'dodo' is no species of species.csv"),
        ({"note": "x" * 2001}, "the text has 2001 characters"),
    ):
        wrong = given(name)
        reply = visitor.post("/answer", json={**wrong, "answer": {**wrong["answer"], **change}}, headers=headers)
        assert (reply.status_code, told in reply.json()["message"]) == (400, True), change
    assert visitor.get("/start", headers={"Host": "[::1"}).status_code == 400
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", visitor.base_url.port)) as plain:
        plain.request("POST", "/answer", headers={**kind, "Content-Length": "9" * 5000})
        assert plain.getresponse().status == 413
    assert (check / "verify.csv").read_bytes() == before
    assert visitor.put("/answer").status_code == 501


def test_a_question_mark_in_an_address_changes_nothing(visitor):
    assert visitor.get("/?x=1", headers={"Sec-Fetch-Site": "cross-site"}).content == visitor.get("/").content
    assert visitor.get("/start?x=1").json() == visitor.get("/start").json()


def test_a_folder_that_cannot_be_read_is_an_error_of_the_server(visitor, check):
    (check / "sample.parquet").write_bytes(b"")
    assert visitor.get("/start").status_code == 500


def test_mistakes_end_with_one_line(check, tmp_path, capsys):
    port = free_port()
    with running_page(check, port=port), pytest.raises(SystemExit) as ended:
        main(["verify", "page", str(check), "--port", str(port)])
    assert ended.value.code == 2
    assert "cannot be listened on" in capsys.readouterr().err
    shutil.rmtree(check / "clips")
    with pytest.raises(UserError, match="has no clips: run kenya-birds verify sample again"):
        Answering(check)


def test_a_reference_call_is_a_clear_one_of_the_archive(check, tmp_path):
    archive = write_archive(tmp_path / "archive", [("a.wav", 5, "abcde1"), ("a.wav", 1, "bcdef1")])
    with running_page(check, archive=archive, port=free_port()) as address, httpx.Client(base_url=address) as http:
        assert http.get("start").json()["references"] == ["abcde1", "bcdef1"]
        sound, rate = soundfile.read(io.BytesIO(http.get("reference/abcde1/sound").content))
        assert (len(sound), rate) == (4 * RATE, RATE)
        assert np.abs(sound).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
        assert http.get("reference/abcde1/picture").content.startswith(b"\x89PNG")
        for path in ("bcdef1/sound", "cdefg1/sound", "abcde1/text", "..%2f..%2fa/sound"):
            assert http.get(f"reference/{path}").status_code == 404, path
