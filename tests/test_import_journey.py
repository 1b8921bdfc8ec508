"""From Raven tables and recordings in folders to a trained model, its detections and their score."""

import pandas as pd
import pytest
import soundfile
from running import train

from kenya_birds.cli import main
from kenya_birds.data.archive import read_archive
from kenya_birds.experiments.score import score_tables

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def project(small_archive, tmp_path_factory):
    """Recordings with equal names at eight sites, in several formats and at several rates, with a table each."""
    folder = tmp_path_factory.mktemp("project")
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
    archive = read_archive(small_archive)
    for number, (recording, calls) in enumerate(archive.annotations.groupby("recording")):
        place = folder / f"site{number}" / f"20211207_153852.{('wav', 'flac', 'ogg')[number % 3]}"
        place.parent.mkdir()
        sound, rate = soundfile.read(archive.recording_path(recording))
        sound, rate = (sound[::2], rate // 2) if number == 1 else (sound, rate)
        soundfile.write(place, sound, rate)
        lines = [
            f"{row}\tSpectrogram 1\t1\t{call.start_s - 0.3}\t{call.end_s + 0.3}\t500\t4000\t{call.species}\n"
            for row, call in enumerate(calls.itertuples(), 1)
        ]
        (place.parent / "20211207_153852.Table.1.selections.txt").write_text(header + "".join(lines))
    return folder


def test_an_imported_archive_is_trained_on_detected_on_and_scored(project, small_archive, tmp_path, capsys):
    archive, model = tmp_path / "archive", tmp_path / "model"
    main(["import", str(project), "--map", str(small_archive / "species.csv"), "--output", str(archive)])
    assert "in 8 recordings" in capsys.readouterr().out
    recordings = sorted(read_archive(archive).headers)
    assert recordings[:2] == ["site0/20211207_153852.wav", "site1/20211207_153852.flac"]
    train(archive, model, tmp_path / "cache", train_on="recordings", num_train_epochs=1, windows_per_epoch=48)
    splits = pd.read_csv(model / "splits.csv")
    assert sorted(splits["recording"]) == recordings
    test = splits.loc[splits["split"] == "test", "recording"].tolist()
    found = tmp_path / "found"
    options = ["--output", str(found), "--threshold", "0.05", "--formats", "csv"]
    with pytest.raises(SystemExit, match="0"):
        main(["detect", str(model), *(str(project / name) for name in test), *options])
    # The recordings have the same file name: their folders tell them apart.
    scores = score_tables(found / "detections.csv", archive)
    assert scores["recordings"] == len(test)
    assert scores["table"]["judged"] == len(pd.read_csv(found / "detections.csv"))
