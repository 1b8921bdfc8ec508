import logging
import os
import unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import HEADER, edit, noise, write_archive
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.data.archive import archive_fingerprint, check_several, read_archive, select_classes
from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import MASKED
from kenya_birds.evaluation.window_targets import WindowTargets

ROWS = [
    ("b.flac", 4.0, "owl1"),
    ("a.flac", (1.0, 2.5), "owl1"),
    ("a.flac", 3.25, "lark2"),
]


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "archive", ROWS)


def refused(data_dir, *words):
    """Reading the archive ends in an error with all of these words."""
    with pytest.raises(UserError) as caught:
        read_archive(data_dir)
    message = str(caught.value)
    assert all(word in message for word in words), message


def annotate(data_dir, *lines, header=HEADER):
    (data_dir / "annotations.csv").write_text("\n".join([header, *lines]) + "\n")


# What is read


def test_annotations_keep_their_order_and_get_the_middle_of_the_call(archive):
    assert read_archive(archive).annotations.drop(columns=["low_hz", "high_hz"]).to_dict("list") == {
        "recording": ["b.flac", "a.flac", "a.flac"],
        "start_s": [4.0, 1.0, 3.25],
        "end_s": [4.0, 2.5, 3.25],
        "center_s": [4.0, 1.75, 3.25],
        "species": ["owl1", "owl1", "lark2"],
        "weak": [False, False, False],
    }


def test_frequencies_are_read_where_an_archive_has_them(archive):
    rows = ["a.flac,1.0,1.0,owl1,300,5000.5", "b.flac,1.0,1.0,owl1,,", "b.flac,1.0,1.0,owl1,?,"]
    annotate(archive, *rows, header=f"{HEADER},Low Freq (Hz),High Freq (Hz)")
    read = read_archive(archive).annotations[["low_hz", "high_hz"]]
    np.testing.assert_array_equal(read, [[300, 5000.5], [np.nan, np.nan], [np.nan, np.nan]])


def test_headers_tell_length_rate_and_channels(archive):
    soundfile.write(archive / "soundscape_data" / "b.flac", noise(4.5, 44_100).repeat(2).reshape(-1, 2), 44_100)
    headers = read_archive(archive).headers
    assert sorted(headers) == ["a.flac", "b.flac"]
    assert (headers["a.flac"].frames, headers["a.flac"].sample_rate_hz, headers["a.flac"].channels) == (
        80_000,
        8_000,
        1,
    )
    assert (headers["b.flac"].duration_s, headers["b.flac"].channels) == (4.5, 2)


def test_recordings_without_annotations_are_not_read(archive):
    (archive / "soundscape_data" / "notes.txt").write_text("not audio")
    assert sorted(read_archive(archive).headers) == ["a.flac", "b.flac"]


def test_names_of_species_are_found_by_code(archive):
    names = read_archive(archive).species_names(["owl1"])
    assert names == {"owl1": {"scientific_name": "Avis owl1", "common_name": "Bird owl1"}}


def test_tables_may_have_other_columns_another_order_spaces_blank_lines_and_a_byte_order_mark(archive):
    plain = read_archive(archive)
    table = pd.read_csv(archive / "annotations.csv").assign(**{"Distance (m)": 300})
    text = table[table.columns[::-1]].to_csv(index=False).replace("owl1,", " owl1 ,").replace("\n", "\r\n")
    (archive / "annotations.csv").write_text(f"\ufeff{text}\r\n,,,,\r\n", newline="")
    edit(archive / "species.csv", "Scientific", "\ufeffScientific")
    pd.testing.assert_frame_equal(read_archive(archive).annotations, plain.annotations)


def test_a_species_called_na_is_a_species(tmp_path):
    archive = write_archive(tmp_path / "archive", [("a.flac", 1.0, "NA"), ("a.flac", 1.0, "null")])
    assert read_archive(archive).annotations["species"].tolist() == ["NA", "null"]


# What is refused


@pytest.mark.parametrize("name", ["annotations.csv", "species.csv"])
def test_a_missing_table_is_named(archive, name):
    (archive / name).unlink()
    refused(archive, name, str(archive))


def test_a_missing_archive_or_folder_of_recordings_is_named(archive, tmp_path):
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "annotations.csv", "soundscape_data")
    (archive / "soundscape_data").rename(archive / "recordings")
    refused(archive, "soundscape_data", str(archive))


@pytest.mark.parametrize("column", ["Filename", "Start Time (s)", "End Time (s)", "Species eBird Code"])
def test_a_missing_column_is_named_with_what_was_found(archive, column):
    edit(archive / "annotations.csv", column, "Other")
    refused(archive, "annotations.csv", column, "'Other'")


def test_a_missing_column_of_species_is_named(archive):
    edit(archive / "species.csv", "Common Name", "Name")
    refused(archive, "species.csv", "Common Name", "'Name'")


def test_missing_recordings_are_counted_and_named(archive):
    (archive / "soundscape_data" / "b.flac").unlink()
    refused(archive, "1 of 2 annotated recordings", "b.flac", str(archive / "soundscape_data"))


def test_a_table_without_rows_is_an_empty_archive(archive):
    annotate(archive)
    refused(archive, "annotations.csv has no annotations")
    (archive / "annotations.csv").write_text("")
    refused(archive, "annotations.csv")


def test_a_table_that_is_not_a_table_is_refused(archive):
    (archive / "annotations.csv").write_bytes(b"Filename,\xff\xfe\n")
    refused(archive, "annotations.csv", "UTF-8")
    annotate(archive, "a.flac,1.0,1.0,owl1", "a.flac,1.0,1.0,owl1,300,7000")
    refused(archive, "annotations.csv", "line 3")


def test_rows_longer_than_the_header_are_refused_and_not_read_one_column_off(archive):
    annotate(archive, "a.flac,1.0,1.0,owl1,300", "a.flac,1.0,1.0,owl1,300")
    refused(archive, "annotations.csv line 2 has 5 cells and the header has 4")


@pytest.mark.parametrize("time", ["", "nan", "inf", "-inf", "soon", "1:30", "1e999"])
@pytest.mark.parametrize("column", ["start_s", "end_s"])
def test_a_time_that_is_not_a_number_is_told_with_its_line_and_recording(archive, column, time):
    cells = {"start_s": "1.0", "end_s": "1.0", column: time}
    annotate(archive, "b.flac,1.0,1.0,owl1", "", f"a.flac,{cells['start_s']},{cells['end_s']},owl1")
    refused(archive, "annotations.csv line 4, a.flac", f"{column} is '{time}'", "expected seconds")


def test_a_species_code_that_the_list_lacks_is_told_with_its_line(archive):
    annotate(archive, "a.flac,1.0,1.0,owl1", "a.flac,1.0,1.0,dodo1", "a.flac,1.0,1.0,dodo1")
    refused(archive, "annotations.csv line 3", "'dodo1'", "2 such rows", "species.csv")
    annotate(archive, "a.flac,1.0,1.0,owl1", "a.flac,1.0,1.0,Owl1")
    refused(archive, "annotations.csv line 3", "'Owl1' is not in species.csv", "write 'owl1'")


def test_a_species_code_listed_twice_is_refused(archive):
    edit(archive / "species.csv", "Avis owl1", "Avis altera,owl1,Other Owl\nAvis owl1")
    refused(archive, "species.csv line 4", "'owl1'", "twice")


def test_species_codes_that_differ_in_case_only_are_refused(archive):
    edit(archive / "species.csv", "Avis owl1", "Avis altera,OWL1,Other Owl\nAvis owl1")
    refused(archive, "species.csv line 4", "'owl1' differs from 'OWL1' in upper and lower case only")


def test_a_row_without_a_code_is_an_unknown_bird_and_no_species(archive, caplog):
    edit(archive / "species.csv", "Avis owl1", "Genus sp.,,Unidentified\nFamilia, ,\nAvis owl1")
    annotate(archive, "a.flac,1.0,1.0,owl1", "a.flac,2.0,2.0,", "b.flac,3.0,3.0, ")
    with caplog.at_level(logging.WARNING, "kenya_birds"):
        read = read_archive(archive)
    assert "" not in read.species.index
    assert read.annotations["species"].tolist() == ["owl1"]
    assert read.unknown[["recording", "center_s"]].to_numpy().tolist() == [["a.flac", 2.0], ["b.flac", 3.0]]
    assert read.set_aside["reason"].tolist() == ["no species code"] * 2
    assert "species.csv has 2 rows without a species code, which are skipped: lines 3, 4" in caplog.messages
    assert any("Skipped 2 of 3 annotations: no species code (first: line 3" in line for line in caplog.messages)


# How tables are written


def test_lines_are_counted_as_they_are_in_the_file(archive):
    header = HEADER + ",Notes"
    for end in ("\n", "\r\n", "\r"):
        lines = [header, 'a.flac,1.0,1.0,owl1,"two', 'lines"', "", "a.flac,1.0,1.0,owl1,", "a.flac,soon,1.0,owl1,"]
        (archive / "annotations.csv").write_text(end.join(lines) + end, newline="")
        refused(archive, "annotations.csv line 6, a.flac", "start_s is 'soon'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER.replace(",", ";") + "\na.flac;1,5;1,5;owl1\n", ["semicolons between its columns", "expected commas"]),
        (HEADER.replace(",", "\t") + "\na.flac\t1.5\t1.5\towl1\n", ["tabs between its columns"]),
        (
            HEADER + "\na.flac,1,5,2,5,owl1\n",
            ["line 2 has 6 cells and the header has 4", "a point in decimal numbers"],
        ),
        (HEADER + '\na.flac,"1,5",2.5,owl1\n', ["line 2", "start_s is '1,5'", "with a decimal point"]),
        (HEADER + '\na.flac,1.5,2.5,owl1\n"a.flac,1.5,2.5,owl1\n', ["annotations.csv line 3"]),
        (HEADER + ",Filename\na.flac,1.5,2.5,owl1,b.flac\n", ["has the column 'Filename' twice"]),
        ("\n\n", ["is empty"]),
    ],
)
def test_a_table_in_another_form_is_refused_with_what_is_expected(archive, text, words):
    (archive / "annotations.csv").write_text(text)
    refused(archive, "annotations.csv", *words)


@pytest.mark.parametrize("end", ["le", "be"])
def test_a_table_in_utf_16_is_refused_with_the_way_to_save_it(archive, end):
    text = "\ufeff" + (archive / "annotations.csv").read_text()
    (archive / "annotations.csv").write_text(text, encoding=f"utf-16-{end}")
    refused(archive, "annotations.csv is in UTF-16", "save it as CSV UTF-8 (comma delimited)")


def test_cells_that_the_end_of_a_row_lacks_are_empty_and_empty_ones_too_many_do_not_matter(archive):
    annotate(archive, "a.flac,1.0,1.0,owl1,,", "b.flac,4.0,4.0")
    read = read_archive(archive)
    assert read.annotations["center_s"].tolist() == [1.0]
    assert read.unknown["center_s"].tolist() == [4.0]


# How names are spelled

NFC, NFD = "caf\u00e9.flac", "cafe\u0301.flac"


@pytest.mark.parametrize(("in_folder", "in_table"), [(NFD, NFC), (NFC, NFD), ("x.WAV", "x.wav"), ("x.wav", "x.WAV")])
def test_a_recording_is_found_under_another_spelling_of_its_name(archive, in_folder, in_table):
    soundfile.write(archive / "soundscape_data" / in_folder, noise(10), 8_000)
    annotate(archive, "a.flac,1.0,1.0,owl1", f"{in_table},2.0,2.0,owl1", f"{in_folder},3.0,3.0,owl1")
    read = read_archive(archive)
    name = unicodedata.normalize("NFC", in_folder)
    assert read.annotations["recording"].tolist() == ["a.flac", name, name]
    assert read.recording_path(name).is_file()
    assert read.headers[name].duration_s == 10


def test_of_two_spellings_the_one_in_the_table_counts(archive):
    for seed, name in enumerate(("x.WAV", "x.wav")):
        soundfile.write(archive / "soundscape_data" / name, noise(10 + seed), 8_000)
    if len(list((archive / "soundscape_data").glob("[xX]*"))) < 2:
        pytest.skip("this file system does not tell cases apart")
    annotate(archive, "x.wav,1.0,1.0,owl1", "x.WAV,10.5,10.5,owl1")
    headers = read_archive(archive).headers
    assert {name: header.duration_s for name, header in headers.items()} == {"x.wav": 11, "x.WAV": 10}
    annotate(archive, "x.Wav,1.0,1.0,owl1")
    refused(archive, "1 of 1 annotated recordings", "x.Wav")


def test_names_that_are_one_name_to_people_are_refused(archive):
    for name in (NFC, NFD):
        soundfile.write(archive / "soundscape_data" / name, noise(10), 8_000)
    if len(list((archive / "soundscape_data").glob("caf*"))) < 2:
        pytest.skip("this file system takes both for one name")
    annotate(archive, f"{NFC},1.0,1.0,owl1", f"{NFD},1.0,1.0,owl1")
    refused(archive, "differ only in the encoding of their accents", "caf\\xe9.flac", "cafe\\u0301.flac")


@pytest.mark.parametrize("name", ["../x.flac", "sub/x.flac", "/tmp/x.flac", "..", ".", "", "..\\x.flac"])
def test_a_recording_outside_its_folder_is_refused_even_if_it_exists(archive, name):
    for path in (archive / "x.flac", archive / "soundscape_data" / "sub" / "x.flac"):
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise(10), 8_000)
    annotate(archive, "a.flac,1.0,1.0,owl1", f"{name},1.0,1.0,owl1")
    refused(archive, "annotations.csv line 3", f"'{name}'", "not a plain file name")


def set_aside_as_unreadable(archive, caplog, name, reason):
    annotate(archive, "a.flac,1.0,1.0,owl1", f"{name},1.0,1.0,owl1", f"{name},2.0,2.0,owl1")
    with caplog.at_level(logging.WARNING, "kenya_birds"):
        read = read_archive(archive)
    assert read.annotations["recording"].tolist() == ["a.flac"]
    assert read.set_aside["reason"].tolist() == ["the recording cannot be read"] * 2
    assert name not in read.headers
    assert str(archive / "soundscape_data" / name) in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("name", ["x.flac", "x.wav", "x.raw", "x.txt"])
@pytest.mark.parametrize("content", [b"", b"this is not sound " * 100])
def test_annotations_of_a_recording_that_is_not_audio_are_set_aside(archive, caplog, name, content):
    (archive / "soundscape_data" / name).write_bytes(content)
    set_aside_as_unreadable(archive, caplog, name, "cannot be read as audio")


def test_annotations_of_a_recording_without_samples_are_set_aside(archive, caplog):
    soundfile.write(archive / "soundscape_data" / "x.wav", noise(0), 8_000)
    set_aside_as_unreadable(archive, caplog, "x.wav", "no samples")


def test_a_recording_that_does_not_say_how_long_it_is_is_counted(archive):
    path = archive / "soundscape_data" / "a.flac"
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the number of samples in FLAC's first block, of 36 bits
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert read_archive(archive).headers["a.flac"].duration_s == 10.0


# Skipped annotations


def test_what_cannot_be_used_is_set_aside_counted_and_told(archive, caplog):
    annotate(
        archive,
        "a.flac,1.0,1.0,owl1",
        "a.flac,9.0,12.0,owl1",
        "a.flac,10.0,10.0,owl1",
        "b.flac,-1.0,0.5,lark2",
        "b.flac,3.0,2.0,lark2",
        "b.flac,3.0,3.0,????",
    )
    with caplog.at_level(logging.WARNING, "kenya_birds"):
        read = read_archive(archive)
    assert read.annotations["species"].tolist() == ["owl1"]
    assert read.set_aside.to_dict("list") == {
        "row": [3, 4, 5, 6, 7],
        "recording": ["a.flac", "a.flac", "b.flac", "b.flac", "b.flac"],
        "reason": [
            "past the end of the recording",
            "past the end of the recording",
            "before the start of the recording",
            "ends before it starts",
            "unknown bird",
        ],
    }
    assert "Skipped 2 of 6 annotations: past the end of the recording (first: line 3 of annotations.csv, a.flac)" in (
        caplog.messages
    )
    assert len(caplog.messages) == 4


def test_a_call_of_which_the_smaller_part_is_in_the_recording_is_an_unknown_bird(archive):
    annotate(
        archive,
        "a.flac,1.0,1.0,owl1",
        "a.flac,9.0,12.0,owl1",
        "a.flac,10.0,12.0,owl1",  # begins where the recording ends
        "b.flac,-1.0,0.5,lark2",
        "b.flac,-1.0,-0.5,lark2",
        "damaged.flac,-1.0,0.5,lark2",
    )
    (archive / "soundscape_data" / "damaged.flac").write_bytes(b"no sound")
    read = read_archive(archive)
    assert len(read.annotations) == 1
    assert read.unknown[["recording", "start_s", "end_s"]].to_numpy().tolist() == [
        ["a.flac", 9.0, 12.0],
        ["b.flac", -1.0, 0.5],
    ]
    targets = WindowTargets.of(
        read.annotations,
        read.unknown,
        {"a.flac": 1000, "b.flac": 1000},
        ["lark2", "owl1"],
        sampling_rate=100,
        window=300,
    )
    starts = np.array([400, 700])
    assert targets(np.zeros(2, dtype=int), starts).tolist() == [[0, 0], [MASKED, MASKED]]
    assert targets.is_empty(np.ones(2, dtype=int), np.array([0, 300])).tolist() == [False, True]


def test_a_call_over_an_edge_is_used_when_its_centre_is_in_the_recording(archive):
    annotate(archive, "a.flac,-1.0,1.0,owl1", "a.flac,9.0,10.9,owl1")
    read = read_archive(archive)
    assert read.annotations["center_s"].tolist() == [0.0, 9.95]
    assert read.set_aside.empty


def test_an_archive_of_which_nothing_can_be_used_is_refused(archive):
    annotate(archive, "a.flac,11.0,11.0,owl1", "a.flac,1.0,1.0,????")
    refused(archive, "annotations.csv", "none of its 2 annotations")


@pytest.fixture(scope="module")
def changing_archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("changing") / "archive", ROWS)


TIMES = st.floats(-5, 15, allow_nan=False).map(lambda time: round(time, 2))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["a.flac", "b.flac"]), TIMES, TIMES, st.sampled_from(["owl1", "????"]))))
def test_every_row_is_either_used_or_set_aside(changing_archive, rows):
    rows = [("a.flac", 1.0, 1.0, "owl1"), *rows]
    annotate(changing_archive, *(",".join(map(str, row)) for row in rows))
    read = read_archive(changing_archive)
    used = [
        (recording, (start + end) / 2, code)
        for recording, start, end, code in rows
        if code == "owl1" and start <= end and 0 <= (start + end) / 2 < 10
    ]
    columns = ["recording", "center_s", "species"]
    assert list(read.annotations[columns].itertuples(index=False, name=None)) == used
    assert len(read.annotations) + len(read.set_aside) == len(rows)


# Classes


def table_of(**counts):
    return pd.DataFrame({"species": [code for code, count in counts.items() for _ in range(count)]})


def test_rare_classes_are_dropped_and_told(caplog):
    with caplog.at_level(logging.WARNING, "kenya_birds"):
        assert select_classes(table_of(owl=10, wren=9, lark=30, auk=2), 10) == ["lark", "owl"]
    assert caplog.messages == [
        "Dropped 2 of 4 species with fewer than 10 annotations (11 annotations): auk (2), wren (9)"
    ]


def test_codes_that_are_columns_of_predictions_are_refused_before_training():
    with pytest.raises(UserError, match="label, unknown cannot be eBird codes"):
        select_classes(table_of(unknown=10, label=10, owl=10), 10)
    select_classes(table_of(unknown=3, label=3, owl=10, lark=30), 10)  # too rare to be a class


def test_nothing_is_told_where_nothing_is_dropped(caplog):
    select_classes(table_of(owl=10, lark=30), 10)
    assert not caplog.messages


def test_class_ids_do_not_depend_on_the_order_of_the_table():
    table = table_of(wren=12, owl=11, lark=30)
    assert (
        select_classes(table, 10)
        == select_classes(table.sample(frac=1, random_state=0), 10)
        == ["lark", "owl", "wren"]
    )


def test_one_class_is_enough_for_recordings_and_not_for_clips():
    assert select_classes(table_of(owl=10, wren=9), 10) == ["owl"]
    with pytest.raises(UserError, match="owl is the only species with at least 10 annotations, and clips can only be"):
        check_several(["owl"], 10)
    with pytest.raises(UserError, match="none of the 2 species has at least 11 annotations"):
        select_classes(table_of(owl=10, wren=9), 11)


# Fingerprint


def test_the_fingerprint_is_the_same_while_the_archive_is(archive):
    before = archive_fingerprint(archive)
    (archive / "recording_location.txt").write_text("Baringo")
    assert archive_fingerprint(archive) == before


def test_the_fingerprint_does_not_change_with_hidden_files_of_finder_and_explorer(archive):
    before = archive_fingerprint(archive)
    for name in (".DS_Store", "._a.flac", "Thumbs.db"):
        (archive / "soundscape_data" / name).write_bytes(b"x")
    assert archive_fingerprint(archive) == before
    (archive / "soundscape_data" / ".a.flac").write_bytes(b"x")  # may be annotated
    assert archive_fingerprint(archive) != before


def test_the_fingerprint_changes_with_tables_and_recordings(archive):
    path = archive / "soundscape_data" / "a.flac"
    seen = [archive_fingerprint(archive)]
    changes = [
        lambda: edit(archive / "annotations.csv", "3.25", "3.26"),
        lambda: edit(archive / "species.csv", "Bird owl1", "Bird owl2"),
        lambda: soundfile.write(path, noise(9), 8_000),
        lambda: os.utime(path, ns=(0, 0)),
        lambda: path.rename(path.with_name("c.flac")),
        lambda: path.with_name("c.flac").unlink(),
    ]
    for change in changes:
        change()
        seen.append(archive_fingerprint(archive))
    assert len(set(seen)) == len(changes) + 1


def test_a_stray_file_may_have_any_name(archive):
    before = archive_fingerprint(archive)
    try:
        (archive / "soundscape_data" / os.fsdecode(b"stray\xff\n.flac")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert archive_fingerprint(archive) != before
    assert sorted(read_archive(archive).headers) == ["a.flac", "b.flac"]


def test_a_recording_whose_name_is_too_long_is_missing(archive):
    annotate(archive, f"{'x' * 3000}.flac,1.0,1.0,owl1", "b.flac,4.0,4.0,owl1")
    refused(archive, "1 of 2 annotated recordings are not in")


def test_the_fingerprint_of_an_archive_with_a_missing_table_is_refused(archive):
    (archive / "species.csv").unlink()
    with pytest.raises(UserError, match=r"species\.csv"):
        archive_fingerprint(archive)


def test_a_link_to_nothing_is_a_missing_recording(archive):
    (archive / "soundscape_data" / "b.flac").unlink()
    (archive / "soundscape_data" / "b.flac").symlink_to(archive / "elsewhere.flac")
    archive_fingerprint(archive)
    refused(archive, "b.flac", "1 of 2 annotated recordings")
