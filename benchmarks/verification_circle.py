"""What answers to detections add to a model: detect, sample, answer, read, annotate, train again, compare.

    python benchmarks/verification_circle.py WORK_DIR [--archive ARCHIVE] [--per_species 60] [--flags FLAGS]

Without --archive, a synthetic one is made. Of six recordings in the order of their names, two are for training, two
are the field, one is for validation, one for the test. The old model is trained on the annotated recordings. It
detects in the field, whose annotations are used only to answer a sample of its detections, as a person would: right if
the species is annotated there, other if only another one is, wrong if none is, unsure if it is annotated within 0.25 s
of an edge of the detection. Then the old model is trained on, once with the annotated recordings alone and once with
the answers too, and all are compared on the test recordings. Every step is the command that a user types.
"""

import argparse
import contextlib
import io
import shlex
import sys
from pathlib import Path

import pandas as pd
from weak_labels import write_part

from kenya_birds.cli import main as kenya_birds
from kenya_birds.console import one_line_errors
from kenya_birds.data.archive import Archive, read_archive
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.evaluation.window_targets import DEFAULT_EDGE_MARGIN_S
from kenya_birds.files import read_json, write_table
from kenya_birds.verification.check_folder import ANSWERS, ANSWERS_FILE

sys.path.insert(0, str(Path(__file__).parent.parent))  # for train_hf.py
PARTS = ("train", "field", "validation", "train", "field", "test")
METRICS = ("best_f1", "precision", "recall", "cmap", "auroc")
FLAGS = (
    "--backbone tf_efficientnet_lite0 --n_mels 64 --hop_length 640 --noise_reduction none --num_train_epochs 8 "
    "--windows_per_epoch 600"
)


def main(arguments: list[str] | None = None) -> None:
    """Goes round the circle, and prints the answers, the thresholds and the comparison.

    Args:
        arguments: Command line; by default the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--recordings", type=int, default=36, help="of the synthetic archive")
    parser.add_argument("--duration_s", type=float, default=60.0)
    parser.add_argument("--species", type=int, default=6)
    parser.add_argument("--per_species", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", default=FLAGS, help="flags of train_hf.py for all models")
    parser.add_argument("--again", default="--num_train_epochs 4", help="more flags where the old model is trained on")
    options = parser.parse_args(arguments)
    folder = options.work_dir
    if options.archive is None:
        size = {"recordings": options.recordings, "duration_s": options.duration_s, "species": options.species}
        options.archive = synthesize_archive(folder / "archive", **size, seed=options.seed)
    archive = read_archive(options.archive)
    names = sorted(archive.headers)
    part_of = {name: PARTS[number % len(PARTS)] for number, name in enumerate(names)}
    known = [name for name in names if part_of[name] != "field"]
    write_part(archive, known, folder / "known")
    write_table(
        pd.DataFrame([(name, part_of[name]) for name in known], columns=["recording", "split"]), folder / "splits.csv"
    )
    words = [*shlex.split(options.flags), "--train_on", "recordings", "--seed", str(options.seed)]
    words += ["--cache_dir", str(folder / "cache")]
    old = train(folder, "old", words)
    field = [archive.recording_path(name) for name in names if part_of[name] == "field"]
    found = detect(folder, old, field, "field")
    check = folder / "check"
    quietly(["verify", "sample", found, "--output", check, "--per_species", options.per_species, "--no_pictures"])
    print(describe(answer(check, archive)), flush=True)
    print(quietly(["verify", "read", check, "--output", folder / "verified", "--no_pictures"]))
    quietly(["histories", found, "--unit", "day", "--verified", folder / "verified", "--output", folder / "histories"])
    print(quietly(["verify", "annotate", check, "--archive", folder / "checked"]))
    again = [*words, *shlex.split(options.again), "--init_from", str(old)]
    models = {
        "old": old,
        "trained on without answers": train(folder, "without", again),
        "trained on with answers": train(folder, "with", again, with_answers=True),
    }
    test = [archive.recording_path(name) for name in names if part_of[name] == "test"]
    tables = {name: detect(folder, model, test, f"test-{model.name}") for name, model in models.items()}
    print(compare(tables, folder / "known", folder))


def train(folder: Path, name: str, words: list[str], *, with_answers: bool = False) -> Path:
    """Trains a model on the annotated recordings, or on these and the answers."""
    import train_hf

    archives = [folder / "known", *([folder / "checked"] if with_answers else [])]
    splits = pd.read_csv(folder / "splits.csv")
    if with_answers:
        splits["recording"] = "known/" + splits["recording"]
    write_table(splits, folder / f"splits-{name}.csv")
    own = ["--splits_file", str(folder / f"splits-{name}.csv"), "--output_dir", str(folder / name)]
    train_hf.main([*words, "--data_dir", *map(str, archives), *own])
    return folder / name


def detect(folder: Path, model: Path, recordings: list[Path], name: str) -> Path:
    """Detects with low scores; returns the output folder."""
    output = folder / f"found-{name}"
    quietly(["detect", model, *recordings, "--output", output, "--threshold", "0.01", "--formats", "csv"])
    return output


def quietly(words: list[object]) -> str:
    """Runs a command of kenya-birds; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            kenya_birds(list(map(str, words)))
        except SystemExit as ended:  # detection always ends with its exit code
            if ended.code:
                raise
    return printed.getvalue().strip()


def answer(check: Path, archive: Archive) -> pd.DataFrame:
    """Answers all detections of a sample by the annotations of their recordings; returns the table."""
    table = pd.read_csv(check / ANSWERS_FILE, dtype=str, keep_default_na=False)
    names = {archive.recording_path(name).resolve(): name for name in archive.headers}
    known = set(table["species"])
    calls = archive.annotations
    answers = []
    for row in table.itertuples():
        there = calls[calls["recording"] == names[Path(str(row.recording)).resolve()]]
        inside_s = (there["center_s"] - float(row.start_s)).combine(float(row.end_s) - there["center_s"], min)
        near = there[inside_s >= -DEFAULT_EDGE_MARGIN_S]
        sure = there[inside_s >= DEFAULT_EDGE_MARGIN_S]
        others = sorted(set(sure["species"]) & known - {row.species})
        if row.species in set(sure["species"]):
            answers.append(("right", others[0] if others else ""))
        elif row.species in set(near["species"]):
            answers.append(("unsure", ""))
        else:
            answers.append(("other", others[0]) if others else ("wrong", ""))
    table[["answer", "other_species"]] = answers
    write_table(table, check / ANSWERS_FILE)
    return table


def describe(table: pd.DataFrame) -> str:
    """How many detections have each answer."""
    counts = table["answer"].value_counts()
    return f"{len(table)} detections: " + ", ".join(f"{counts.get(name, 0)} {name}" for name in ANSWERS)


def compare(tables: dict[str, Path], archive: Path, folder: Path) -> str:
    """A table of metrics on the test recordings, and of the differences to the model with the answers."""
    lines = ["| | " + " | ".join(METRICS) + " |", "| --- |" + " --- |" * len(METRICS)]
    *others, last = tables
    differences = []
    for name in others:
        output = folder / f"score-{tables[name].name}"
        words = ["score", tables[last] / "detections.csv", archive, "--beside", tables[name] / "detections.csv"]
        quietly([*words, "--output", output])
        content = read_json(output / "metrics.json")
        lines.append(f"| {name} | {cells(content['beside'])} |")
        differences.append(f"| {last} minus {name} | {cells(content['difference'])} |")
    lines.append(f"| {last} | {cells(content['table'])} |")
    recordings = f"{content['recordings']} test recordings, {content['hours']:.2f} h, {content['calls']} calls"
    return "\n".join([recordings, *lines, *differences])


def cells(content: dict) -> str:
    """The metrics with their intervals."""
    texts = []
    for name in METRICS:
        metric = content["metrics"][name]
        value, interval = metric["value"], metric["interval"]
        text = "-" if value is None else f"{value:.3f}"
        texts.append(text if interval is None else f"{text} ({interval[0]:.3f} to {interval[1]:.3f})")
    return " | ".join(texts)


if __name__ == "__main__":
    with one_line_errors("verification_circle.py"):
        main()
