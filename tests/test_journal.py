import os
from dataclasses import replace

import numpy as np
import pytest

from kenya_birds.inference.audio_stream import Reading, UnscoredSound
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.journal import ROWS_AT_ONCE, Journal, hash_files, journal_key
from kenya_birds.inference.sources import FileState

STATE = FileState("/somewhere/a b 鳥.flac", 1234, "1637000000123456789")
READING = Reading(
    64_000, 32_000, 3, (UnscoredSound(0.1, 0.2, "damaged; „there“"), UnscoredSound(1.5, None, "gone")), True, STATE
)
MADE_WITH = {"model_sha256": "1" * 64, "overlap_s": 0.0, "thresholds": [0.5] * 20, "torch": "2.12.1"}
NAME = "a b 鳥.flac"


def some(number, name=NAME):
    scores = np.random.default_rng(0).random(number)
    return [Detection(name, 10 * n, 10 * n + 20, 32_000, f"bird{n % 3}", float(scores[n])) for n in range(number)]


def record(journal, detections, reading=READING, name=NAME):
    writer = journal.begin(name, 32_000)
    for first in range(0, len(detections), 7_000):
        writer.add(detections[first : first + 7_000])
    writer.finish(reading)


@pytest.mark.parametrize("number", [0, 1, 2 * ROWS_AT_ONCE + 17])
def test_a_record_gives_back_what_was_put_in(tmp_path, number):
    journal = Journal(tmp_path, MADE_WITH)
    record(journal, some(number))
    assert journal.find(NAME, STATE) == READING
    assert list(journal.detections(NAME)) == some(number)


@pytest.mark.parametrize("change", [{"size_bytes": 1}, {"version": "2"}, {"path": "/elsewhere/a.flac"}])
def test_a_changed_file_has_no_record(tmp_path, change):
    journal = Journal(tmp_path, MADE_WITH)
    record(journal, some(3))
    assert journal.find(NAME, replace(STATE, **change)) is None
    assert journal.find("b.flac", STATE) is None


def test_another_model_or_setting_does_not_use_a_record_and_replaces_it(tmp_path):
    record(Journal(tmp_path, MADE_WITH), some(3))
    other = Journal(tmp_path, {**MADE_WITH, "torch": "2.13.0"})
    assert other.find(NAME, STATE) is None
    record(other, some(2))
    assert other.find(NAME, STATE) == READING
    assert Journal(tmp_path, MADE_WITH).find(NAME, STATE) is None


def test_a_recording_that_failed_is_tried_again(tmp_path):
    journal = Journal(tmp_path, MADE_WITH)
    record(journal, [], Reading.failed("permission denied"))
    assert journal.find(NAME, STATE) is None
    assert journal.read(NAME) == Reading.failed("permission denied")


def test_a_record_that_is_not_finished_is_not_there_and_the_old_one_stays(tmp_path):
    journal = Journal(tmp_path, MADE_WITH)
    record(journal, some(3))
    writer = journal.begin(NAME, 32_000)
    writer.add(some(ROWS_AT_ONCE))
    assert list(journal.detections(NAME)) == some(3)
    writer.close()
    assert not list(tmp_path.rglob("*.partial"))
    assert list(journal.detections(NAME)) == some(3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_of_a_record_on_a_full_disk_nothing_stays(tmp_path):
    journal = Journal(tmp_path, MADE_WITH)
    record(journal, [])
    (path,) = tmp_path.rglob("*.parquet")
    path.unlink()
    path.with_suffix(".partial").symlink_to("/dev/full")
    writer = journal.begin(NAME, 32_000)
    writer.add(some(3))
    with pytest.raises(OSError, match="No space left"):
        writer.finish(READING)
    writer.close()
    assert not list(tmp_path.rglob("*.p*"))


def test_a_damaged_record_is_not_used(tmp_path, caplog):
    journal = Journal(tmp_path, MADE_WITH)
    record(journal, some(3))
    (path,) = tmp_path.rglob("*.parquet")
    for data in (b"", path.read_bytes()[:-5], b"{}" * 100):
        path.write_bytes(data)
        assert journal.find(NAME, STATE) is None
    assert "cannot be read" in caplog.text


def test_the_key_is_of_everything_and_of_no_order():
    assert journal_key(MADE_WITH) == journal_key(dict(reversed(MADE_WITH.items())))
    for name in MADE_WITH:
        assert journal_key({**MADE_WITH, name: None}) != journal_key(MADE_WITH)


def test_what_changed_since_records_were_written_is_told(tmp_path):
    journal = Journal(tmp_path, MADE_WITH)
    assert journal.changes() == []
    journal.sign()
    record(journal, [])
    assert journal.changes() == []
    other = {**MADE_WITH, "thresholds": [0.6] * 20, "torch": "2.13.0", "av": "18.1.0"}
    assert Journal(tmp_path, {**MADE_WITH, "thresholds": tuple(MADE_WITH["thresholds"])}).changes() == []
    assert Journal(tmp_path, other).changes() == ["thresholds", "torch 2.12.1 -> 2.13.0", "av null -> 18.1.0"]
    (tmp_path / "made_with.json").unlink()
    assert Journal(tmp_path, MADE_WITH).changes() == ["the version of kenya_birds"]


def test_a_model_s_hash_is_of_names_and_contents(tmp_path):
    for name, text in (("a", "x"), ("b", "y")):
        (tmp_path / name).write_text(text)
    both = hash_files([tmp_path / "a", tmp_path / "b"])
    assert hash_files([tmp_path / "a", tmp_path / "b", tmp_path / "missing"]) == both
    (tmp_path / "b").write_text("z")
    assert hash_files([tmp_path / "a", tmp_path / "b"]) != both
