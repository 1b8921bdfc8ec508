import logging
import shutil

import pandas as pd
import pytest
import soundfile
from archives import RATE, edit, noise, write_archive
from hypothesis import given
from hypothesis import strategies as st
from recorder_files import AUDIOMOTH, comment, guano, write_wav

from kenya_birds import cli
from kenya_birds.data.archive import read_archive
from kenya_birds.data.recording_groups import find_groups, find_places, merged
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import parse_time_zone
from kenya_birds.data.split_audit import audit_split
from kenya_birds.data.weak_recordings import warn_of_tested_groups
from kenya_birds.errors import UserError
from kenya_birds.exploration.measures import recording_rows

# Two sites in two nights; the second night lasts until the morning of 9 December.
NAMES = [
    "KEN_001_20211207_180000.wav",
    "KEN_001_20211208_053000.wav",
    "KEN_001_20211208_190000.wav",
    "KEN_002_20211207_180000.wav",
    "KEN_002_20211209_053000.wav",
]


def archive_of(folder, names, seconds=3.0):
    rows = [(name, 1.5, code) for name in names for code in ("abc", "def")]
    return write_archive(folder / "archive", rows, seconds=seconds)


def grouped(archive, group_by, **settings):
    return find_groups(archive, find_places(archive, **settings), group_by)


def test_sites_and_nights_are_those_of_names(tmp_path):
    archive = read_archive(archive_of(tmp_path, NAMES))
    assert grouped(archive, "site") == [NAMES[:3], NAMES[3:]]
    assert grouped(archive, "night") == [NAMES[:2], [NAMES[2]], [NAMES[3]], [NAMES[4]]]


def test_a_night_is_that_of_the_place_if_the_time_zone_is_known(tmp_path):
    names = ["X_001_20211207_080000Z.wav", "X_001_20211207_100000Z.wav"]
    archive = read_archive(archive_of(tmp_path, names))
    assert grouped(archive, "night") == [names]
    # At UTC+3 noon is between them.
    assert grouped(archive, "night", time_zone=parse_time_zone("+03:00")) == [[names[0]], [names[1]]]


def test_a_pattern_reads_other_names(tmp_path):
    archive = read_archive(archive_of(tmp_path, ["north a.wav", "north b.wav", "south a.wav"]))
    found = grouped(archive, "site", name_pattern=NamePattern("%site ?".replace("?", "*")))
    assert found == [["north a.wav", "north b.wav"], ["south a.wav"]]


def test_headers_tell_place_and_time_where_names_do_not(tmp_path, caplog):
    names = ["a.wav", "b.wav", "c.wav", "d.wav"]
    folder = archive_of(tmp_path, names)
    # The first two are 5 m apart, on both sides of the equator.
    places = ("-0.00002 36.8", "0.00002 36.80002", "-1.3 36.8")
    for name, place, hour in zip(names, places, (18, 19, 18), strict=False):
        moth = comment(AUDIOMOTH.format(time=f"{hour}:00:00 07/12/2021", zone=""))
        write_wav(folder / "soundscape_data" / name, moth, guano(Loc_Position=place), seconds=3)
    archive = read_archive(folder)
    with caplog.at_level(logging.WARNING):
        assert grouped(archive, "site") == [["a.wav", "b.wav"], ["c.wav"], ["d.wav"]]
    assert "The site of 1 of 4 recordings is unknown; each of them is alone (first: d.wav)" in caplog.text
    assert grouped(archive, "night") == [["a.wav", "b.wav"], ["c.wav"], ["d.wav"]]
    # The report and the audit of a split know them too.
    places = find_places(archive, time_zone=parse_time_zone("+03:00"))
    levels = pd.DataFrame(index=[])
    begins = [row["begins"] for row in recording_rows(archive, levels, places)]
    assert begins == ["2021-12-07 21:00", "2021-12-07 22:00", "2021-12-07 21:00", ""]
    splits = pd.DataFrame({"recording": names, "split": ["train", "test", "validation", "train"]})
    summary = audit_split(archive.annotations, splits, places=places).summary
    assert summary["near_recordings"] == [("a.wav", "b.wav")]
    assert summary["unparsed_recordings"] == ["d.wav"]


def test_a_pattern_that_fits_no_name_is_an_error(tmp_path):
    archive = read_archive(archive_of(tmp_path, NAMES))
    with pytest.raises(UserError, match="matches none of 5 recordings"):
        find_places(archive, name_pattern=NamePattern("%site %d%m%y %H"))


def test_folders_are_sites_where_names_have_none(tmp_path):
    # Folders of days are within that of a site.
    names = ["north/2021-12-07/20211207_180000.wav", "north/Data/20211208_180000.wav", "south/20211207_180000.wav"]
    folder = archive_of(tmp_path, [name.replace("/", "_") for name in names])
    sound = folder / "soundscape_data"
    for name in names:
        (folder / "sound" / name).parent.mkdir(parents=True, exist_ok=True)
        (sound / name.replace("/", "_")).rename(folder / "sound" / name)
        edit(folder / "annotations.csv", name.replace("/", "_"), name)
    sound.rmdir()
    lines = ["Filename,Folder", *(f"{name},{folder / 'sound'}" for name in names)]
    (folder / "recordings.csv").write_text("\n".join(lines), encoding="utf-8")
    assert grouped(read_archive(folder), "site") == [names[:2], names[2:]]


def test_recordings_for_training_alone_of_a_tested_site_are_told(caplog):
    groups = [["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]
    splits = pd.DataFrame({"recording": ["a1", "b1", "c1"], "split": ["test", "train", "validation"]})
    warn_of_tested_groups(splits, {"a2", "b2"}, groups)
    assert "1 recordings with weak labels or checked detections are of sites or nights that are tested" in caplog.text
    assert "(first: a2)" in caplog.text
    caplog.clear()
    warn_of_tested_groups(splits.iloc[1:], {"a2", "b2"}, groups)
    assert not caplog.text
    warn_of_tested_groups(splits.rename(columns={"split": "fold"}), {"a2", "b2"}, groups)
    assert "2 recordings" in caplog.text


def test_recordings_whose_groups_are_all_unknown_are_an_error(tmp_path):
    archive = read_archive(archive_of(tmp_path, ["a.wav", "b.wav"]))
    with pytest.raises(UserError, match="the night of no recording is known: expected names such as KEN_001"):
        grouped(archive, "night")


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=8))
def test_merged_groups_hold_each_recording_once_and_divide_no_group(groups):
    found = merged(groups)
    names = [name for group in found for name in group]
    assert sorted(names) == sorted({name for group in groups for name in group})
    for group in groups:
        assert sum(set(group) <= set(whole) for whole in found) == 1


def split(folder, tmp_path, *words):
    cli.main(["split", str(folder), "--output", str(tmp_path / "splits.csv"), "--min_annotations", "1", *words])
    return pd.read_csv(tmp_path / "splits.csv").set_index("recording").iloc[:, 0]


@pytest.mark.parametrize("words", [[], ["--strategy", "stratified"], ["--folds", "3"]])
def test_a_split_divides_no_site(tmp_path, words):
    names = [f"KEN_{site:03}_2021120{day}_180000.wav" for site in range(4) for day in (1, 2, 3)]
    part_of = split(archive_of(tmp_path, names), tmp_path, "--group_by", "site", *words)
    assert sorted(part_of.index) == names
    assert part_of.nunique() == 3
    assert part_of.groupby(part_of.index.str[:7]).nunique().max() == 1


def test_recordings_without_a_call_go_where_their_site_is(tmp_path):
    names = [f"KEN_{site:03}_20211201_180000.wav" for site in range(4)]
    folder = archive_of(tmp_path, names)
    silent = [f"KEN_{site:03}_20211202_180000.wav" for site in range(4)]
    for seed, name in enumerate(silent):
        soundfile.write(folder / "soundscape_data" / name, noise(3, seed=9 + seed), RATE)
    lines = ["Filename,Folder", *(f"{name},{folder / 'soundscape_data'}" for name in (*names, *silent))]
    (folder / "recordings.csv").write_text("\n".join(lines), encoding="utf-8")
    part_of = split(folder, tmp_path, "--group_by", "site")
    assert [part_of[name] for name in silent] == [part_of[name] for name in names]


def test_copies_of_a_recording_keep_their_sites_together(tmp_path):
    names = [f"KEN_{site:03}_20211201_180000.wav" for site in range(4)]
    folder = archive_of(tmp_path, names)
    shutil.copy(folder / "soundscape_data" / names[0], folder / "soundscape_data" / names[1])
    part_of = split(folder, tmp_path, "--group_by", "site")
    assert part_of[names[0]] == part_of[names[1]]


def test_too_few_sites_are_an_error_of_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        split(archive_of(tmp_path, NAMES), tmp_path, "--group_by", "site")
    assert "the annotated recordings are of 2 sites: expected 3 or more, because no site is divided" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "splits.csv").exists()
