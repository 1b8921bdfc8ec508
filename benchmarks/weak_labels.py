"""What training gains from recordings of which only the species is known, beside a few annotated ones.

    python benchmarks/weak_labels.py ARCHIVE WORK_DIR [--weights 0.25 0.5 1] [--seeds 0 1] [--flags FLAGS]

The recordings of an annotated archive, in the order of their names, are divided into five parts. One part is for
training, one for validation, one for the test. Of the other two, an excerpt around each call is written into a folder
of its species, and `kenya-birds import` makes an archive of these folders. So it is known where the calls are that the
import has to find. Arms: the annotated part alone; with the folders of species, for each weight; and, as the most that
can be reached, with the annotations of their recordings. Metrics are means over seeds on the test recordings.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from kenya_birds.console import one_line_errors
from kenya_birds.data.archive import ANNOTATION_COLUMNS, SPECIES_COLUMNS, Archive, read_archive
from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.importing import ImportSettings, import_annotations
from kenya_birds.data.recording_places import Place, write_places
from kenya_birds.files import ANNOTATIONS_FILE, RECORDINGS_TABLE, SPECIES_FILE, read_json, write_table

sys.path.insert(0, str(Path(__file__).parent.parent))  # for train_hf.py
EXCERPT_S, NEAR_S = 16.0, 2.5
# Part of each of the five fifths of the recordings.
PARTS = ("train", "weak", "weak", "validation", "test")


def main(arguments: list[str] | None = None) -> None:
    """Makes the archives, trains the arms, and prints the table.

    Args:
        arguments: Command line; by default the process's own.
    """
    import train_hf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--flags", default="", help="flags of train_hf.py for all arms")
    options = parser.parse_args(arguments)
    archive, folder = read_archive(options.archive), options.work_dir
    names = sorted(archive.headers)
    parts = [PARTS[len(PARTS) * number // len(names)] for number in range(len(names))]
    part_of = dict(zip(names, parts, strict=True))
    with_known = [name for name in names if part_of[name] != "weak"]
    centers = write_excerpts(archive, [name for name in names if part_of[name] == "weak"], folder / "focal")
    found = import_annotations(folder / "weak", ImportSettings(folder / "focal", form="folders"))
    print(describe_signal(found.annotations, centers))
    write_part(archive, with_known, folder / "known")
    write_part(archive, names, folder / "all")
    splits = {name: part.replace("weak", "train") for name, part in part_of.items()}
    arms = {"annotated part alone": ([folder / "known"], with_known, [])}
    for weight in options.weights:
        arms[f"and folders of species, weight {weight:g}"] = (
            [folder / "known", folder / "weak"],
            with_known,
            ["--weak_weight", str(weight)],
        )
    arms["and annotations of the same recordings"] = ([folder / "all"], names, [])
    print("| Training | clips | macro F1 | cmAP | recordings: best F1 | recordings: cmAP |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for number, (name, (archives, recordings, flags)) in enumerate(arms.items()):
        prefix = f"{archives[0].name}/" if len(archives) > 1 else ""
        table = pd.DataFrame([(prefix + one, splits[one]) for one in recordings], columns=["recording", "split"])
        write_table(table, folder / f"splits-{number}.csv")
        rows = []
        for seed in options.seeds:
            model = folder / f"model-{number}-{seed}"
            words = ["--data_dir", *map(str, archives), "--output_dir", str(model), "--seed", str(seed)]
            words += ["--splits_file", str(folder / f"splits-{number}.csv"), "--cache_dir", str(folder / "cache")]
            train_hf.main([*words, *flags, *shlex.split(options.flags)])
            rows.append(metrics_of(model))
        clips, *means = np.mean(rows, axis=0)
        print(f"| {name} | {clips:.0f} | {' | '.join(f'{value:.3f}' for value in means)} |", flush=True)


def write_excerpts(archive: Archive, recordings: list[str], folder: Path) -> dict[str, float]:
    """Writes an excerpt around each call into a folder of its species; returns the centre of the call in each."""
    centers = {}
    calls = archive.annotations
    for recording in recordings:
        with RecordingReader(archive.recording_path(recording)) as reader:
            rows = calls[calls["recording"] == recording]
            for number, (center_s, species) in enumerate(zip(rows["center_s"], rows["species"], strict=True)):
                start_s = max(0.0, center_s - EXCERPT_S / 2)
                sound = reader.read(round(start_s * reader.sampling_rate), round(EXCERPT_S * reader.sampling_rate))
                name = f"{species}/{Path(recording).stem}-{number}.flac"
                (folder / species).mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / name, sound, reader.sampling_rate)
                centers[name] = center_s - start_s
    return centers


def describe_signal(parts: pd.DataFrame, centers: dict[str, float]) -> str:
    """How many calls the import has found, and how much of what it has found is near them."""
    center_s = parts["recording"].map(centers)
    near_s = np.minimum(parts["end_s"], center_s + NEAR_S) - np.maximum(parts["start_s"], center_s - NEAR_S)
    found = parts.loc[near_s > 0, "recording"].nunique()
    share = near_s.clip(lower=0).sum() / (parts["end_s"] - parts["start_s"]).sum()
    return (
        f"{found} of {len(centers)} calls have signal within {NEAR_S:g} s. {share:.0%} of the signal is there, and "
        f"{2 * NEAR_S / EXCERPT_S:.0%} of the excerpts."
    )


def write_part(archive: Archive, recordings: list[str], folder: Path) -> None:
    """Writes an archive of some recordings of another; they stay where they are."""
    folder.mkdir(parents=True)
    calls = archive.annotations[archive.annotations["recording"].isin(recordings)]
    species = archive.species.reset_index()
    for rows, columns, name in (
        (calls, ANNOTATION_COLUMNS, ANNOTATIONS_FILE),
        (species, SPECIES_COLUMNS, SPECIES_FILE),
    ):
        write_table(rows[list(columns.values())].set_axis(list(columns), axis=1), folder / name)
    paths = {name: archive.recording_path(name).resolve() for name in recordings}
    write_places([Place(name, path.parent, path.name) for name, path in paths.items()], folder / RECORDINGS_TABLE)


def metrics_of(model: Path) -> list[float]:
    """Training clips; macro F1 and cmAP of test clips; best F1 and cmAP of whole test recordings."""
    test = read_json(model / "metrics.json")["test"]
    whole = {name: test["whole_recordings"]["metrics"][name]["value"] for name in ("best_f1", "cmap")}
    clips = read_json(model / "training_summary.json")["clips_per_split"]["train"]
    return [clips, test["macro_f1"], test["cmap"], whole["best_f1"], whole["cmap"]]


if __name__ == "__main__":
    with one_line_errors("weak_labels.py"):
        main()
