"""Tables of events of many programs are read as one form."""

import numpy as np
import pandas as pd
import pytest

from kenya_birds import UserError
from kenya_birds.data.event_tables import read_events

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
# (file, content, recording, start, end, code, scientific name, common name, label, score)
FORMS = {
    "BirdNET CSV": (
        "BirdNET_CombinedTable.csv",
        "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
        "3.0,6.0,Turdus merula,Eurasian Blackbird,0.8,/data/site1/a.wav\n",
        ("/data/site1/a.wav", 3, 6, "", "Turdus merula", "Eurasian Blackbird", "", 0.8),
    ),
    "BirdNET CSV of one recording": (
        "a.BirdNET.results.csv",
        "Start (s),End (s),Scientific name,Common name,Confidence\n3.0,6.0,Turdus merula,Eurasian Blackbird,0.8\n",
        ("a", 3, 6, "", "Turdus merula", "Eurasian Blackbird", "", 0.8),
    ),
    "BirdNET Raven, times of joined files": (
        "BirdNET_SelectionTable.txt",
        "Selection\tBegin Time (s)\tEnd Time (s)\tCommon Name\tScientific Name\tSpecies Code\tConfidence\tView"
        "\tChannel\tFile Offset (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin Path\n"
        "1\t603.0\t606.0\tEurasian Blackbird\tTurdus merula\teurbla\t0.8\tSpectrogram 1\t1\t3.0\t0\t15000\t"
        "C:\\data\\a.wav\n",
        ("C:/data/a.wav", 3, 6, "eurbla", "Turdus merula", "Eurasian Blackbird", "", 0.8),
    ),
    "BirdNET Audacity": (
        "a.BirdNET.results.txt",
        "3.0\t6.0\tTurdus merula_Eurasian Blackbird\t0.8\n",
        ("a", 3, 6, "", "", "", "Turdus merula_Eurasian Blackbird", 0.8),
    ),
    "BirdNET Kaleidoscope": (
        "kaleidoscope.csv",
        "OFFSET,confidence,INDIR,FOLDER,IN FILE,DURATION,TOP1MATCH\n"
        "3.0,0.8,/data,site1,a.wav,3.0,Eurasian Blackbird\n",
        ("/data/site1/a.wav", 3, 6, "", "", "", "Eurasian Blackbird", 0.8),
    ),
    "Raven by hand": (
        "a.Table.1.selections.txt",
        f"{RAVEN}\tSpecies\n1\tSpectrogram 1\t1\t3.0\t6.0\t1000\t2000\tEUBL\n",
        ("a", 3, 6, "", "", "", "EUBL", 1),
    ),
    "ours, guarded against formulas": (
        "detections.csv",
        "recording,start_s,end_s,code,common_name,scientific_name,score,local_time,utc_time\n"
        "recordings/a.flac,3.000000,6.000000,eurbla,'=Blackbird,Turdus merula,0.8,,\n",
        ("recordings/a.flac", 3, 6, "eurbla", "Turdus merula", "=Blackbird", "", 0.8),
    ),
    "plain, semicolons": (
        "birds.csv",
        "filename;start;end;species\na.wav;3;6;Turdus merula\n",
        ("a.wav", 3, 6, "", "", "", "Turdus merula", 1),
    ),
    "plain, with the separator that Excel names": (
        "birds.csv",
        "sep=;\nfilename;start;end;species\na.wav;3;6;Turdus, merula, or another\n",
        ("a.wav", 3, 6, "", "", "", "Turdus, merula, or another", 1),
    ),
    "duration in place of an end": (
        "birds.csv",
        "file,offset,duration,label\na.wav,3,3,merle\n",
        ("a.wav", 3, 6, "", "", "", "merle", 1),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read(form, tmp_path):
    name, content, expected = FORMS[form]
    (tmp_path / name).write_text(content, encoding="utf-8")
    table = read_events(tmp_path / name)
    columns = ["recording", "start_s", "end_s", "code", "scientific_name", "common_name", "label", "score"]
    assert table.events[columns].to_numpy().tolist() == [list(expected)]
    assert table.recordings == {expected[0]}
    assert table.events["row"].str.fullmatch(rf"{name}, line \d").all()


def test_parquet_is_read(tmp_path):
    columns = {"File": ["x/a.wav"], "Start (s)": [3.0], "End (s)": [6.0], "Scientific name": ["Turdus merula"]}
    pd.DataFrame(columns | {"Confidence": [0.8]}).to_parquet(tmp_path / "t.parquet")
    event = read_events(tmp_path / "t.parquet").events.iloc[0]
    assert (event.recording, event.start_s, event.scientific_name, event.score) == ("x/a.wav", 3, "Turdus merula", 0.8)


def test_audacity_labels_have_frequencies_in_a_second_line(tmp_path):
    (tmp_path / "a.txt").write_text("0.5\t1.5\tSP\n\\\t2000.0\t3000.0\n2.0\t2.5\t\n", encoding="utf-8")
    events = read_events(tmp_path / "a.txt").events
    assert events["low_hz"].tolist()[0] == 2000
    assert np.isnan(events["low_hz"].tolist()[1])
    assert events["label"].tolist() == ["SP", ""]
    assert events["row"].tolist() == ["a.txt, line 1", "a.txt, line 3"]


def test_a_selection_that_raven_lists_for_two_views_is_one_event(tmp_path):
    rows = [f"{n}\t{view}\t1\t{n}\t{n + 1}\t0\t1\tEUBL" for n in (1, 2) for view in ("Waveform 1", "Spectrogram 1")]
    (tmp_path / "a.txt").write_text("\n".join([f"{RAVEN}\tSpecies", *rows]) + "\n", encoding="utf-8")
    assert read_events(tmp_path / "a.txt").events["start_s"].tolist() == [1, 2]


def test_rows_of_one_view_are_different_selections_whatever_their_numbers(tmp_path):
    header = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tSpecies\n"
    views = [
        ("2", "Spectrogram 1", "a"),
        ("2", "Waveform 1", "a"),
        ("2", "Spectrogram 1", "b"),
        ("", "Spectrogram 1", "c"),
    ]
    rows = (f"{number}\t{view}\t3\t4\t{name}\n" for number, view, name in views)
    (tmp_path / "a.txt").write_text(header + "".join(rows))
    assert read_events(tmp_path / "a.txt").events["label"].tolist() == ["a", "b", "c"]


def test_joined_tables_whose_selection_numbers_repeat_keep_all_events(tmp_path):
    rows = [f"{n}\tSpectrogram 1\t1\t{n}\t{n + 1}\t0\t1\tEUBL\t{name}" for name in ("a.wav", "b.wav") for n in (1, 2)]
    rows.append("1\tSpectrogram 1\t1\t7\t8\t0\t1\tEUBL\tb.wav")
    (tmp_path / "all.txt").write_text("\n".join([f"{RAVEN}\tSpecies\tFilename", *rows]) + "\n", encoding="utf-8")
    events = read_events(tmp_path / "all.txt").events
    assert events["recording"].tolist() == ["a.wav", "a.wav", "b.wav", "b.wav", "b.wav"]
    assert events["start_s"].tolist() == [1, 2, 1, 2, 7]


def test_tables_with_tabs_may_have_quotation_marks_around_cells(tmp_path):
    header = "\t".join(f'"{name}"' for name in (*RAVEN.split("\t"), "Common Name"))
    names = ('"Dove, Mourning"', '"Say ""hello"" bird"', '"R\\"s bird"', 'the "loud" one', '"a" or "b"')
    rows = [f'{n}\t"Spectrogram 1"\t1\t"{n}"\t{n + 1}\t0\t1\t{name}' for n, name in enumerate(names, 1)]
    (tmp_path / "a.txt").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    events = read_events(tmp_path / "a.txt").events
    assert events["start_s"].tolist() == [1, 2, 3, 4, 5]
    assert events["common_name"].tolist() == [
        *("Dove, Mourning", 'Say "hello" bird', 'R"s bird', 'the "loud" one', '"a" or "b"')
    ]


def test_a_folder_gives_all_its_tables_and_recordings_without_an_event(tmp_path):
    header = "Start (s),End (s),Scientific name,Common name,Confidence\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "a.BirdNET.results.csv").write_text(header + "0,3,Turdus merula,Blackbird,0.8\n")
    (tmp_path / "site" / "b.BirdNET.results.csv").write_text(header)
    (tmp_path / "BirdNET_analysis_params.csv").write_text("File splitting duration,600\n")
    table = read_events(tmp_path)
    assert len(table.events) == 1
    assert table.recordings == {"a", "b"}


def test_recorders_at_two_sites_that_give_the_same_name_have_two_events(tmp_path):
    header = "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
    for site in ("site1", "site2"):
        row = f"0,3,Turdus merula,Blackbird,0.8,/data/{site}/20210101_060000.WAV\n"
        (tmp_path / site).mkdir()
        (tmp_path / site / "20210101_060000.BirdNET.results.csv").write_text(header + row, encoding="utf-8")
    assert len(read_events(tmp_path).events) == 2
    # The same path with another root, or without one, may be the same recording.
    for name in ("site2/20210101_060000.wav", "20210101_060000"):
        other = f"file,start,end,scientific_name\n{name},0,3,Turdus merula\n"
        (tmp_path / "other.csv").write_text(other, encoding="utf-8")
        with pytest.raises(UserError, match="contain the same event"):
            read_events(tmp_path)


def test_several_formats_of_one_result_are_not_counted_twice(tmp_path):
    csv = "Start (s),End (s),Scientific name,Common name,Confidence\n0,3,Turdus merula,Blackbird,0.8\n"
    (tmp_path / "a.BirdNET.results.csv").write_text(csv, encoding="utf-8")
    raven = f"{RAVEN}\tCommon Name\n1\tSpectrogram 1\t1\t0\t3.0\t0\t1\tBlackbird\n"
    (tmp_path / "a.BirdNET.selection.table.txt").write_text(raven, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"a\.BirdNET\.results\.csv and .*a\.BirdNET\.selection\.table\.txt contain the same"
    ):
        read_events(tmp_path)
    # Two species in one window, each in a table of its own, are two events.
    (tmp_path / "a.BirdNET.selection.table.txt").write_text(raven.replace("Blackbird", "Robin"), encoding="utf-8")
    assert len(read_events(tmp_path).events) == 2
    # Of a folder of `kenya-birds detect` one table is read.
    own = (
        "recording,start_s,end_s,code,common_name,scientific_name,score\na.wav,0,3,eurbla,Blackbird,Turdus merula,1\n"
    )
    (tmp_path / "detections.csv").write_text(own, encoding="utf-8")
    assert read_events(tmp_path).events["code"].tolist() == ["eurbla"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", r"t\.csv has no start and end columns: .* found a, b"),
        ("", "is empty: expected a header"),
        ("file,start,end\na,one,2\n", r"line 2: 'start' is 'one', expected a number"),
        ('file,start,end\n"a\nb",1,2\na,inf,2\n', r"line 4: 'start' is 'inf'"),
        ("file,start,end,score\na,1,2,high\n", r"'score' is 'high'"),
        ("file,start,end\na,3,2\n", r"t\.csv line 2: ends before it starts \(3 s, 2 s\)"),
        ("file,start,end\na,1,2,3\n", r"line 2 has 4 cells and the header has 3"),
        ("sep=;\nfile;start;end\na;1;2;3\n", r"line 3 has 4 cells and the header has 3"),
    ],
)
def test_a_table_of_another_form_is_a_user_error(content, message, tmp_path):
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_events(tmp_path / "t.csv")


def test_a_table_that_is_not_there_or_not_text_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="there is no table"):
        read_events(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as a table"):
        read_events(tmp_path / "t.csv")
    (tmp_path / "t.docx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"expected one of \.csv"):
        read_events(tmp_path / "t.docx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no table of events"):
        read_events(tmp_path / "empty")
