"""The ecologist's journey: recordings in, tables out, whatever happens on the way."""

import csv
import errno
import json
import os
import random
import shutil
import time
from dataclasses import replace

import filelock
import fsspec
import numpy as np
import pytest
import soundfile
from detecting import CLIP_S, CODES, FORMATS, RATE, chirps, run_in_folder, save_model, tables, write_recordings
from fresh_python import run_fresh
from running import ROOT, free_port, start, wait_until

from kenya_birds.cli import main
from kenya_birds.console import one_line_errors
from kenya_birds.data.sound_files import Skip
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.fingerprints import DECODERS, MODEL, library_versions
from kenya_birds.inference import detect as run_module
from kenya_birds.inference import journal as journal_module
from kenya_birds.inference import pipeline as detection_module
from kenya_birds.inference.detect import settings_of, shares
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline, detect
from kenya_birds.inference.table_formats import Outputs

# Runs that are killed in the suite; for more: KENYA_BIRDS_KILLS=200 python -m pytest tests/test_detect.py -k killed
KILLS = int(os.environ.get("KENYA_BIRDS_KILLS", "6"))
LENGTHS_S = (7.3, 0.4, 12.0, 3.5, 5.0, 20.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "birds")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("sound") / "recordings", LENGTHS_S)


@pytest.fixture(scope="module")
def reference(model, recordings, tmp_path_factory):
    """The tables of a run without trouble."""
    output = tmp_path_factory.mktemp("reference") / "output"
    report = run_in_folder(model, [recordings], output)
    assert report.exit_code == 0
    return tables(output)


def rows(output, name="detections.csv"):
    with open(output / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def detect_command(model, *words, output):
    """Exit code of the command in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(["detect", str(model), *map(str, words), "--output", str(output), "--device", "cpu"])
    return stopped.value.code


# What is found


def test_windows_with_a_score_at_the_threshold_become_rows_and_others_do_not(model, recordings):
    name = str(sorted(recordings.iterdir())[0])
    pipeline = SoundscapePipeline(model, overlap_s=0.5, device="cpu", settings=FindingSettings(threshold=0.0))
    everything = pipeline(name)
    windows = 1 + int(np.ceil((LENGTHS_S[0] - CLIP_S) / 0.5))
    assert len(everything) == windows * len(CODES)
    assert {found.species for found in everything} == set(CODES)
    assert max(found.end_sample for found in everything) == round(LENGTHS_S[0] * RATE)
    found = SoundscapePipeline(model, overlap_s=0.5, device="cpu")(name)
    assert found == [one for one in everything if one.score >= 0.5 and one.species != CODES[-1]]
    assert 0 < len(found) < windows * (len(CODES) - 1)


def test_scores_are_those_of_the_model_on_each_window(model, recordings):
    from kenya_birds.evaluation.metrics import probabilities
    from kenya_birds.model_loading import load_classifier
    from kenya_birds.saved_models import find_model

    path = sorted(recordings.iterdir())[2]
    sound, _ = soundfile.read(path, dtype="int16")
    classifier, extractor = load_classifier(find_model(str(model)))
    classifier.eval()
    found = {}
    for detection in SoundscapePipeline(model, device="cpu", settings=FindingSettings(threshold=0.0))(path):
        found.setdefault(detection.start_sample, {})[detection.species] = detection.score
    for first, scores in found.items():
        features = extractor(sound[first : first + RATE], sampling_rate=RATE, return_tensors="pt")["input_features"]
        expected = probabilities(classifier(features).logits.detach().numpy(), multi_label=True)[0]
        np.testing.assert_allclose([scores[code] for code in CODES], expected, atol=1e-4)


def test_an_array_gives_what_its_file_gives(model, recordings):
    path = sorted(recordings.iterdir())[2]
    pipeline = SoundscapePipeline(model, device="cpu")
    from_file = pipeline(path)
    sound, rate = soundfile.read(path, dtype="float32")
    assert pipeline(sound, rate, name=str(path)) == from_file
    with pytest.raises(UserError, match="sampling_rate"):
        pipeline(sound)


def test_a_url_gives_what_its_file_gives(model, recordings):
    path = sorted(recordings.iterdir())[2]
    memory = fsspec.filesystem("memory")
    memory.pipe("/far/away.flac", path.read_bytes())
    pipeline = SoundscapePipeline(model, device="cpu")
    try:
        found = pipeline("memory://far/away.flac")
    finally:
        memory.rm("/far", recursive=True)
    assert [replace(one, recording="") for one in found] == [replace(one, recording="") for one in pipeline(path)]
    assert {one.recording for one in found} == {"memory:///far/away.flac"}
    assert pipeline(f"file://{path}") == pipeline(path)


def test_python_yields_what_the_command_writes(model, recordings, tmp_path):
    found = list(detect(str(model), [recordings], overlap_s=0.5, device="cpu"))
    words = ("--overlap_s", "0.5", "--formats", "csv", "--batch_size", "4")
    assert detect_command(model, recordings, *words, output=tmp_path / "output") == 0
    assert [(one.recording, f"{one.start_s:.6f}", one.species) for one in found] == [
        (row["recording"], row["start_s"], row["code"]) for row in rows(tmp_path / "output")
    ]


def test_a_species_list_and_top_k_limit_what_is_reported(model, recordings, tmp_path):
    (tmp_path / "wanted.txt").write_text(f"Bird {CODES[1]}\n")
    words = ("--species", tmp_path / "wanted.txt", "--threshold", "0.1", "--top_k", "1")
    assert detect_command(model, recordings, *words, output=tmp_path / "output") == 0
    assert {row["code"] for row in rows(tmp_path / "output")} == {CODES[1]}


# Nothing else than sound, model and settings decides


def test_what_shares_a_batch_does_not_change_a_byte(model, recordings, reference, tmp_path):
    run_in_folder(model, [recordings], tmp_path / "output", num_workers=5)
    assert tables(tmp_path / "output") == reference
    # Now each recording on its own, its last batch filled up with zeros.
    for path in sorted(recordings.iterdir()):
        run_in_folder(model, [path], tmp_path / path.stem)
        name = f"audacity/{path.stem}.txt"
        assert tables(tmp_path / path.stem)[name] == reference[name]
        assert rows(tmp_path / path.stem) == [
            row for row in rows(tmp_path / "output") if row["recording"] == str(path)
        ]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_size_of_a_batch_changes_the_last_digits_of_scores_at_most(model, recordings, batch_size):
    path = sorted(recordings.iterdir())[2]
    every = FindingSettings(threshold=0.0)
    found, others = (
        SoundscapePipeline(model, device="cpu", settings=every, batch_size=size)(path) for size in (4, batch_size)
    )
    one, other = ({(row.start_sample, row.species): row.score for row in rows} for rows in (found, others))
    assert one.keys() == other.keys()
    assert max(abs(one[key] - other[key]) for key in one) < 1e-4


def test_another_sampling_rate_gives_windows_at_the_same_times(model, tmp_path):
    folders = [write_recordings(tmp_path / str(rate), (6.0,), rate) for rate in (RATE, 44_100)]
    pipeline = SoundscapePipeline(model, device="cpu", settings=FindingSettings(threshold=0.0))
    plain, resampled = (pipeline(next(folder.iterdir())) for folder in folders)
    assert [(one.start_sample, one.end_sample) for one in plain] == [
        (one.start_sample, one.end_sample) for one in resampled
    ]


# Says at its very end whether it is still in a group with other processes. What it imports last would keep a group.
IN_A_GROUP = """
import atexit, pathlib, sys

def state():
    import torch
    threads = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    inside = torch.distributed.is_initialized() or any("gloo" in name for name in threads)
    print("still in a group" if inside else "left its group", file=sys.stderr)

atexit.register(state)
from kenya_birds.cli import main
try:
    main(sys.argv[1:])
finally:
    import torch.distributed.nn.functional
"""


def test_several_processes_give_the_same_bytes_and_leave_their_group(model, recordings, reference, tmp_path):
    # Otherwise a thread of the group may abort the process while Python ends.
    (tmp_path / "script.py").write_text(IN_A_GROUP)
    words = [str(model), str(recordings), "--output", str(tmp_path / "output"), "--overlap_s", "0.5"]
    words += ["--batch_size", "4", "--device", "cpu", "--formats", ",".join(FORMATS)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = run_fresh(*launcher, tmp_path / "script.py", "detect", *words, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "output" / "run.json").read_text())["this_run"]["processes"] == 2
    assert tables(tmp_path / "output") == reference
    assert (result.stderr.count("left its group"), result.stderr.count("still in a group")) == (2, 0)


def test_processes_share_bytes_evenly_and_files_of_unknown_size_count_as_the_mean():
    rng = random.Random(0)
    sizes = [rng.choice([None, 10**9, rng.randrange(10**8)]) for _ in range(200)]
    owners = shares(sizes, 7)
    mean = sum(size for size in sizes if size is not None) / sum(size is not None for size in sizes)
    loads = np.bincount(owners, [mean if size is None else size for size in sizes], minlength=7)
    assert loads.max() - loads.min() <= 10**9
    assert shares([5, 5], 1) == [0, 0]
    assert sorted(shares([None, None, None], 3)) == [0, 1, 2]


# Stopped, and started again


def _run_in_child(model, recordings, output, environment):
    os.environ.update(environment)
    with one_line_errors("detect"):
        run_in_folder(model, [recordings], output)


def test_a_run_ends_when_another_of_its_processes_is_killed(model, tmp_path):
    long = write_recordings(tmp_path / "recordings", (200.0, 200.0))
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    output = tmp_path / "output"
    children = [start(_run_in_child, model, long, output, {"RANK": str(rank), **address}) for rank in range(2)]
    journal = output / ".kenya_birds" / "journal"
    wait_until(lambda: len(list(journal.glob("*.partial"))) == 2 or not all(child.is_alive() for child in children))
    assert all(child.is_alive() for child in children)
    children[1].kill()
    children[0].join(300)
    assert children[0].exitcode == 2


def test_a_run_that_is_killed_anywhere_is_finished_by_the_next_byte_for_byte(model, recordings, reference, tmp_path):
    rng = random.Random(os.environ.get("KENYA_BIRDS_SEED", "0"))
    killed, unfinished, outputs = 0, 0, 1
    output = tmp_path / "1"
    while killed < KILLS:
        child = start(_run_in_child, model, recordings, output, {})
        # Anywhere: some time after a random one of the recordings, or before the first, or while tables are written.
        wanted = rng.randrange(len(LENGTHS_S) + 1)
        journal = output / ".kenya_birds" / "journal"
        while child.is_alive() and len(list(journal.glob("*.parquet"))) < wanted:
            time.sleep(0.001)
        child.join(rng.uniform(0, 0.1 if wanted else 0.4))
        if child.is_alive():
            child.kill()
            killed += 1
            unfinished += 0 < len(list(journal.glob("*.parquet"))) < len(LENGTHS_S)
        child.join()
        if rng.random() < 0.3:
            # Then another folder, so that kills fall on early and late points.
            run_in_folder(model, [recordings], output)
            assert tables(output) == reference
            assert not list(output.rglob("*.part*"))
            outputs += 1
            output = tmp_path / str(outputs)
    run_in_folder(model, [recordings], output)
    assert tables(output) == reference
    assert unfinished
    print(f"{killed} runs were killed, {unfinished} of them between two recordings, in {outputs} folders")


def test_recordings_that_are_finished_are_not_read_again(model, recordings, reference, tmp_path, monkeypatch):
    run_in_folder(model, [recordings], tmp_path / "output")
    monkeypatch.setattr(detection_module, "read_source", None)
    report = run_in_folder(model, [recordings], tmp_path / "output")
    assert report.content["this_run"]["recordings"] == 0
    assert tables(tmp_path / "output") == reference
    with pytest.raises(TypeError):
        run_in_folder(model, [recordings], tmp_path / "output", resume=False)


def test_a_changed_file_setting_or_model_is_analysed_anew(model, tmp_path):
    folder = write_recordings(tmp_path / "recordings", (4.0, 3.0))
    first, second = sorted(folder.iterdir())
    output = tmp_path / "output"

    def analysed(which=model, **options):
        return run_in_folder(which, [folder], output, **options).content["this_run"]["recordings"]

    assert analysed() == 2
    soundfile.write(second, chirps(3.0, 9), RATE)
    assert analysed() == 1
    assert analysed(settings={"threshold": 0.2}) == 2
    assert analysed(settings={"threshold": 0.2}, overlap_s=0.25) == 2
    assert analysed(settings={"threshold": 0.2}, overlap_s=0.25, batch_size=2, num_workers=2) == 0
    assert analysed(save_model(tmp_path / "other", seed=1), settings={"threshold": 0.2}, overlap_s=0.25) == 2
    assert {row["recording"] for row in rows(output, "recordings.csv")} == {str(first), str(second)}


def test_another_version_of_a_library_or_of_the_code_analyses_anew(model, tmp_path, monkeypatch, caplog):
    folder = write_recordings(tmp_path / "recordings", (2.0,))
    output = tmp_path / "output"

    def analysed():
        caplog.clear()
        return run_in_folder(model, [folder], output).content["this_run"]["recordings"]

    assert analysed() == 1
    versions = library_versions((*MODEL, *DECODERS))
    assert {"torch", "transformers", "timm", "soxr", "soundfile", "av"} <= set(versions)
    for name in ("torch", "av"):
        was = versions[name]
        monkeypatch.setattr(run_module, "library_versions", lambda names, n=name: {**versions, n: "9.9"})
        assert analysed() == 1, name
        assert f"{name} {was} -> 9.9" in caplog.text
        assert analysed() == 0
        assert "again" not in caplog.text
        versions[name] = "9.9"
    monkeypatch.setattr(run_module, "code_fingerprint", lambda module: "another" + module)
    before = tables(output)
    with monkeypatch.context() as patch:
        patch.setattr(detection_module, "read_source", None)
        with pytest.raises(TypeError):
            analysed()
        assert "code " in caplog.text
    assert tables(output) == before, "tables stay until there are new ones"
    assert analysed() == 1


def test_processes_that_differ_do_not_share_a_run(model, recordings, tmp_path):
    class Others(Team):
        def gather(self, message):
            return [message, {**message, "torch": "1.0"} if isinstance(message, dict) else message]

    with pytest.raises(UserError, match=r"differ in torch: torch is 1\.0 in process 1"):
        run_in_folder(model, [recordings], tmp_path / "output", team=Others())


def test_the_settings_of_a_run_are_those_that_detections_depend_on(model):
    pipeline = SoundscapePipeline(model, device="cpu", settings=FindingSettings(merge=True, smoothing=3))
    settings = settings_of(pipeline)
    assert settings["smoothing"] == 3
    assert settings["thresholds"] == [0.5, 0.5, 0.5, None]
    assert "batch_size" not in settings


def test_a_second_run_into_the_same_folder_stops(model, recordings, tmp_path, capsys):
    output = tmp_path / "output"
    (output / ".kenya_birds").mkdir(parents=True)
    with filelock.FileLock(output / ".kenya_birds" / "lock"):
        assert detect_command(model, recordings, output=output) == 2
    assert "another run" in capsys.readouterr().err


def test_tables_that_somebody_changed_are_not_replaced(model, recordings, tmp_path):
    output = tmp_path / "output"
    run_in_folder(model, [recordings], output, formats=("raven", "csv"))
    table = next((output / "raven").iterdir())
    table.write_text(table.read_text() + "checked by me\n")
    with pytest.raises(UserError, match=r"was edited after an earlier run"):
        run_in_folder(model, [recordings], output, formats=("csv",))
    table.unlink()
    run_in_folder(model, [recordings], output, formats=("csv",))
    assert not (output / "raven").exists()


def test_folders_of_a_format_that_is_no_longer_written_are_removed(model, tmp_path):
    for site in ("north", "south"):
        write_recordings(tmp_path / "recordings" / site, (3.0,))
    run_in_folder(model, [tmp_path / "recordings"], tmp_path / "output", formats=("raven", "csv"))
    assert (tmp_path / "output" / "raven" / "north").is_dir()
    run_in_folder(model, [tmp_path / "recordings"], tmp_path / "output", formats=("csv",))
    assert not (tmp_path / "output" / "raven").exists()


def test_recordings_that_leave_the_tables_are_told_before_the_analysis(model, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recordings(tmp_path / "+a", (1.0,) * 4)
    write_recordings(tmp_path / "b", (1.0,))
    run_in_folder(model, ["+a"], tmp_path / "output", formats=("csv", "raven"))
    run_in_folder(model, [tmp_path / "+a", "b"], tmp_path / "output", formats=("csv", "raven"))
    assert "this run removes" not in caplog.text
    monkeypatch.setattr(run_module, "_analyse", None)
    with pytest.raises(TypeError):
        run_in_folder(model, ["b"], tmp_path / "output", formats=("csv", "raven"))
    (warning,) = (line for line in caplog.messages if "this run removes" in line)
    assert warning.startswith(f"4 of the 5 recordings in the tables of {tmp_path / 'output'} are not at the given")
    assert warning.count(".flac") == 3
    assert "give another --output" in warning


def test_a_write_that_fails_leaves_the_tables_guarded_against_replacement(model, recordings, tmp_path, monkeypatch):
    """On Windows, a table that is open in a spreadsheet cannot be replaced."""
    output = tmp_path / "output"
    run_in_folder(model, [recordings], output, formats=("csv",))
    commit = Outputs.commit

    def fail(outputs, after):
        if after:
            commit(outputs)
        raise PermissionError(13, "in use")

    for after in (True, False):  # the tables of a write that failed after it has replaced them are not edited
        with monkeypatch.context() as patch:
            patch.setattr(Outputs, "commit", lambda outputs, after=after: fail(outputs, after))
            with pytest.raises(UserError, match="cannot be written"):
                run_in_folder(model, [recordings], output, formats=("csv",))
        if after:
            run_in_folder(model, [recordings], output, formats=("csv",))
    table = output / "detections.csv"
    table.write_text(table.read_text(encoding="utf-8") + "corrected by me\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"was edited after an earlier run"):
        run_in_folder(model, [recordings], output, formats=("csv",))


def test_a_pattern_for_names_fills_site_date_and_hour(model, tmp_path, capsys):
    folder = write_recordings(tmp_path / "recordings", (2.0, 2.0))
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"north {number + 1}.12.2021 {6 + number}h.flac")
    output = tmp_path / "output"
    pattern = r"(?P<site>\w+) (?P<day>\d+)\.(?P<month>\d+)\.(?P<year>\d{4}) (?P<hour>\d+)h"
    assert detect_command(model, folder, "--formats", "csv", "--name_pattern", pattern, output=output) == 0
    assert [(row["site"], row["date"], row["hour"]) for row in rows(output, "recordings.csv")] == [
        ("north", "2021-12-01", "6"),
        ("north", "2021-12-02", "7"),
    ]
    capsys.readouterr()
    assert detect_command(model, folder, "--name_pattern", "%site_%Y%m%d_%H%M%S", output=output) == 2
    assert "matches none of 2 recordings, such as north 1.12.2021 6h.flac" in capsys.readouterr().err
    assert detect_command(model, folder, "--name_pattern", "%site_%Q", output=output) == 2
    assert "'%Q' is unknown" in capsys.readouterr().err


def test_recordings_that_miss_a_part_of_the_spectrum_are_counted_once(model, tmp_path, caplog):
    folder = write_recordings(tmp_path / "recordings", (2.0, 2.0))
    for rate in (8_000, 11_025):
        soundfile.write(folder / f"low_{rate}.wav", chirps(2.0, 1, rate), rate)
    run_in_folder(model, [folder], tmp_path / "output", formats=("csv",))
    (line,) = [record.getMessage() for record in caplog.records if "sampling rate below" in record.getMessage()]
    assert "2 of 4 recordings have a sampling rate below 15000 Hz" in line
    assert f"the lowest rate is 8000 Hz ({folder / 'low_8000.wav'})" in line
    for paths, number in (([folder], 1), ([folder / "low_8000.wav"], 1), (sorted(folder.glob("*.flac")), 0)):
        caplog.clear()
        list(detect(model, paths, device="cpu"))
        assert caplog.text.count("sampling rate below") == number


# Faults


def test_recordings_that_cannot_be_read_are_listed_and_the_others_go_on(model, tmp_path):
    folder = write_recordings(tmp_path / "recordings", (5.0,))
    good = next(folder.iterdir())
    (folder / "empty.wav").touch()
    (folder / "text.flac").write_text("no sound\n" * 100)
    (folder / "wrong suffix.mp3").write_bytes(good.read_bytes())
    (folder / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    soundfile.write(folder / "Ünï 鳥, „x“.flac", chirps(3, 3), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(2 * RATE, dtype=np.int16), RATE)
    soundfile.write(folder / "nan.wav", np.full(2 * RATE, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    soundfile.write(folder / "cut.flac", chirps(8, 4), RATE)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:60_000])
    huge = bytearray((folder / "silent.wav").read_bytes()[:44])
    huge[40:44] = (2**31 - 10_000).to_bytes(4, "little")
    (folder / "huge.wav").write_bytes(bytes(huge) + chirps(3, 5).tobytes())
    output = tmp_path / "output"
    assert detect_command(model, folder, "--formats", "csv,raven", output=output) == 3
    failed = {}
    for row in rows(output, "failed.csv"):
        failed.setdefault(os.path.basename(row["recording"]), (row["status"], row["reason"]))
    assert {name: status for name, (status, _) in failed.items()} == {
        "cut.flac": "partly read",
        "empty.wav": "failed",
        "gone.wav": "failed",
        "huge.wav": "partly read",
        "nan.wav": "failed",
        "silent.wav": "failed",
        "text.flac": "failed",
    }
    for name, reason in {
        "empty.wav": "empty",
        "gone.wav": "No such",
        "nan.wav": "numbers",
        "silent.wav": "sil",
    }.items():
        assert reason in failed[name][1]
    analysed = {os.path.basename(row["recording"]) for row in rows(output, "recordings.csv")}
    assert analysed == {good.name, "wrong suffix.mp3", "Ünï 鳥, „x“.flac", "cut.flac", "huge.wav"}
    report = json.loads((output / "run.json").read_text())
    assert (report["recordings"], report["failed"], report["partly_read"]) == (10, 5, 2)


def test_digital_silence_and_what_is_too_short_are_counted_and_said(model, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    gaps = chirps(6)
    gaps[RATE : 2 * RATE] = 0
    gaps[round(4.5 * RATE) :] = 0
    gaps[5 * RATE : 5 * RATE + 30] = 20_000
    soundfile.write(folder / "gaps.wav", gaps, RATE)
    report = run_in_folder(model, [folder], tmp_path / "output", formats=("csv",))
    assert report.exit_code == 0
    assert report.content["digital_silence"] == {"recordings": 1, "hours": pytest.approx(2.5 / 3600)}
    assert report.content["hours"] == report.content["this_run"]["hours"] == pytest.approx(3.5 / 3600)
    assert (report.content["failed"], report.content["partly_read"]) == (0, 0)
    assert "digital silence was not scored: 0.00 h in 1 recording: failed.csv" in str(report)
    assert [tuple(row.values())[1:] for row in rows(tmp_path / "output", "failed.csv")] == [
        ("silent", "1.000000", "2.000000", "digital silence"),
        ("silent", "4.500000", "6.000000", "digital silence, with too little sound to be scored"),
    ]
    soundfile.write(folder / "short.wav", chirps(0.2), RATE)
    report = run_in_folder(model, [folder], tmp_path / "output", formats=("csv",))
    assert (report.exit_code, report.content["failed"]) == (3, 1)
    assert (report.content["hours"], report.content["this_run"]["hours"]) == (pytest.approx(3.5 / 3600), 0)
    assert str(report).startswith("1 of 2 recordings, 0.00 h: ")
    assert "1 recording failed, 0 partly read; " in str(report)
    assert tuple(rows(tmp_path / "output", "failed.csv")[-1].values())[1:4] == ("failed", "0.000000", "0.200000")


def test_what_was_not_scored_is_what_the_table_says(model, tmp_path):
    path = write_recordings(tmp_path / "recordings", (20.0,)).joinpath("KEN_000_20211207_153852.flac")
    data = bytearray(path.read_bytes())
    for place in (0.3, 0.55, 0.6):
        data[int(len(data) * place)] ^= 4
    path.write_bytes(data)
    options = {"settings": {"threshold": 0.0}, "overlap_s": 0.0, "formats": ("csv",)}
    assert run_in_folder(model, [path], tmp_path / "output", **options).exit_code == 3
    parts = [(float(row["start_s"]), float(row["end_s"])) for row in rows(tmp_path / "output")]
    lost = [(float(row["start_s"]), float(row["end_s"])) for row in rows(tmp_path / "output", "failed.csv")]
    assert len(lost) == 3
    assert sum(end - begin for begin, end in lost) < 1, "no more than the damaged frames"
    reached = 0.0
    for begin, end in sorted(parts + lost):
        assert begin <= reached
        reached = max(reached, end)
    assert reached == 20
    assert not any(begin < until and end > since for begin, end in parts for since, until in lost)


def test_what_a_search_left_out_is_in_the_account(model, tmp_path, monkeypatch):
    folder = write_recordings(tmp_path / "recordings", (2.0,))
    for name in (".Trash/x.wav", "=locked/y.wav", "bat.wac"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"RIFF")
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    monkeypatch.chdir(folder)
    output = tmp_path / "output"
    report = run_in_folder(model, ["*"], output, formats=("csv",))
    assert report.exit_code == 3
    assert "skipped: 1 folders that cannot be read, 1 recordings in a format that cannot be read" in str(report)
    assert [(row["recording"], row["status"]) for row in rows(output, "failed.csv")] == [
        ("./=locked", "skipped"),
        ("bat.wac", "skipped"),
    ]
    account = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert account["skipped"] == {
        "folders that cannot be read": {"count": 1, "first": "=locked"},
        "recordings in a format that cannot be read": {"count": 1, "first": "bat.wac"},
        "recordings that are hidden or in a recycle bin": {"count": 1, "first": ".Trash"},
    }
    (folder / "bat.wac").unlink()
    monkeypatch.undo()
    shutil.rmtree(folder / "=locked")
    report = run_in_folder(model, [folder], output, formats=("csv",))
    assert (report.exit_code, list(report.content["skipped"])) == (0, [Skip.HIDDEN])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_recording_that_may_not_be_read_is_listed(model, tmp_path):
    folder = write_recordings(tmp_path / "recordings", (2.0, 3.0))
    next(folder.iterdir()).chmod(0)
    report = run_in_folder(model, [folder], tmp_path / "output")
    assert "Permission denied" in report.failures[0][-1]


def test_a_full_disk_stops_with_a_line_and_the_next_run_goes_on(model, recordings, reference, tmp_path, monkeypatch):
    output = tmp_path / "output"
    fsync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            run_in_folder(model, [recordings], output)
    assert not list(output.rglob("*.partial"))
    report = run_in_folder(model, [recordings], output)
    assert report.content["this_run"]["recordings"] == len(LENGTHS_S) - 2
    assert tables(output) == reference


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--overlap_s", "1.0"], "overlap"),
        (["--threshold", "1.5"], "threshold"),
        (["--formats", "raven,excel"], "excel"),
        (["--smoothing", "2"], "smoothing"),
        (["--batch_size", "0"], "batch_size"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--device", "abacus"], "abacus"),
        (["--species", "nowhere.txt"], r"nowhere\.txt"),
        (["nowhere.flac"], r"nowhere\.flac"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(model, recordings, tmp_path, capsys, words, reason):
    with pytest.raises(SystemExit) as stopped:
        main(["detect", str(model), str(recordings), "--output", str(tmp_path / "output"), *words])
    assert stopped.value.code == 2
    assert reason.replace("\\", "") in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "output").exists()


def test_a_folder_with_other_things_in_it_is_refused(model, recordings, tmp_path, capsys):
    (tmp_path / "detections.csv").write_text("mine\n")
    assert detect_command(model, recordings, output=tmp_path) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "detections.csv").read_text() == "mine\n"


def test_a_model_without_thresholds_needs_one(recordings, tmp_path, capsys):
    model = save_model(tmp_path / "birds", threshold=None)
    assert detect_command(model, recordings, output=tmp_path / "output") == 2
    assert "--threshold" in capsys.readouterr().err
    assert detect_command(model, recordings, "--threshold", "0.9", output=tmp_path / "output") == 0


def test_the_account_says_what_was_done(model, recordings, tmp_path, capsys):
    output = tmp_path / "output"
    assert detect_command(model, recordings, "--time_zone", "Africa/Nairobi", output=output) == 0
    report = json.loads((output / "run.json").read_text())
    assert report["time_zone"] == "Africa/Nairobi"
    assert (set(report["detections"]), report["undetected"]) == (set(CODES[:3]), {})
    assert report["hours"] == pytest.approx(sum(LENGTHS_S) / 3600)
    assert report["detections"] == {
        code: sum(row["code"] == code for row in rows(output)) for code in report["detections"]
    }
    assert sum(report["this_run"]["share_of_busy_time"].values()) == pytest.approx(1)
    assert report["this_run"]["times_real_time"] > 0
    said = capsys.readouterr().out
    assert "times real time" in said
    assert f"{sum(report['detections'].values())} detections" in said
    # Not the species that has no threshold.
    assert detect_command(model, recordings, "--min_confidence", "1", output=tmp_path / "none") == 0
    report = json.loads((tmp_path / "none" / "run.json").read_text())
    assert report["undetected"] == {
        code: [f"Bird {code}", f"Avis {code}"] for code in CODES[:3] if code not in report["detections"]
    }
