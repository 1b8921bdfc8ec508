"""Commands about models at work: detect, plot, activity, embed, search."""

import argparse
from pathlib import Path
from typing import Any

from kenya_birds.commands.parsing import add_name_pattern, new_command


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_detect, _add_plot, _add_activity, _add_embed, _add_search):
        add(commands)


def _add_detect(commands: Any) -> None:
    command = new_command(
        commands,
        "detect",
        "find birds in recordings of any length",
        "Finds birds in recordings of any length and writes tables for Raven, Audacity and others. A run that was "
        "stopped goes on when the same command is given again. The exit code is 0 if every recording was analysed "
        "from beginning to end, 3 if some were not (failed.csv says which, where and why), 2 if nothing could be "
        "done. To share the work: torchrun --nproc_per_node N -m kenya_birds detect ... (or accelerate launch on "
        "GPUs), on several machines too if they share the output folder; a launcher has an exit code of its own.",
    )
    command.add_argument("model", help="a model's folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hub")
    command.add_argument(
        "paths",
        nargs="+",
        metavar="path",
        help="a recording, a folder, a pattern, a list of paths (.txt, one a line), or a URL that fsspec knows",
    )
    command.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="folder to write: new, empty or an earlier run's"
    )
    command.add_argument("--overlap_s", type=float, default=0.0, help="overlap of neighbouring windows (s)")
    command.add_argument("--threshold", type=float, help="score from which on each species is reported, 0 to 1")
    command.add_argument("--min_confidence", type=float, default=0.0, help="least score besides the thresholds")
    command.add_argument("--top_k", type=int, help="most species that are reported in a window")
    command.add_argument(
        "--species", type=Path, metavar="FILE", help="report only these: one a line, by eBird code or name"
    )
    command.add_argument("--merge", action="store_true", help="join a species' detections in consecutive windows")
    command.add_argument("--merge_gap_s", type=float, default=0.0, help="join them across such gaps too (s)")
    command.add_argument("--merge_score", choices=("mean", "max"), default="mean", help="score of what was joined")
    command.add_argument("--smoothing", type=int, default=1, help="windows over which scores are averaged (odd)")
    command.add_argument(
        "--formats",
        default="raven,csv",
        help="tables to write, with commas between: raven, audacity, csv, parquet, json, kaleidoscope",
    )
    add_name_pattern(command)
    command.add_argument("--batch_size", type=int, help="windows scored together; by default 16, on a GPU 128")
    command.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU where there is one")
    command.add_argument("--num_workers", type=int, help="threads that read; by default 1, on a GPU up to 8")
    command.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="use what an earlier run finished"
    )
    command.set_defaults(run=_detect)


def _detect(options: argparse.Namespace) -> None:
    from kenya_birds.data.name_pattern import NamePattern
    from kenya_birds.inference.detection import SoundscapePipeline, names_in
    from kenya_birds.inference.finding import FindingSettings
    from kenya_birds.inference.run import run_detection
    from kenya_birds.inference.sharing import Team
    from kenya_birds.inference.species import read_species
    from kenya_birds.saved_models import find_model

    name_pattern = NamePattern.of(options.name_pattern)
    team = Team()
    saved = find_model(options.model)
    settings = FindingSettings(
        threshold=options.threshold,
        min_confidence=options.min_confidence,
        top_k=options.top_k,
        species=read_species(options.species, names_in(saved)) if options.species else None,
        merge=options.merge,
        merge_gap_s=options.merge_gap_s,
        merge_score=options.merge_score,
        smoothing=options.smoothing,
    )
    pipeline = SoundscapePipeline(
        saved,
        overlap_s=options.overlap_s,
        settings=settings,
        device=options.device or team.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )
    report = run_detection(
        pipeline,
        options.paths,
        options.output,
        formats=[name.strip() for name in options.formats.split(",") if name.strip()],
        resume=options.resume,
        name_pattern=name_pattern,
        team=team,
    )
    if report is not None:
        print(report)
        print(f"The tables are in {options.output}")
        raise SystemExit(report.exit_code)


def _add_plot(commands: Any) -> None:
    command = new_command(
        commands,
        "plot",
        "draw the spectrogram of a recording with what was detected in it",
        "Draws the spectrogram of a stretch of a recording with a labelled bar for each detection. Detections of one "
        "species that overlap share a bar, with the highest of their scores.",
    )
    command.add_argument("recording", type=Path, help="the recording")
    command.add_argument("detections", type=Path, help="table of detections: our CSV, Parquet or Raven's .txt")
    command.add_argument("--start_s", type=float, help="begin; by default a second before the first detection")
    command.add_argument("--duration_s", type=float, default=60.0, help="length in seconds, up to 600")
    _add_output(command, "spectrogram.png")
    command.set_defaults(run=_plot)


def _plot(options: argparse.Namespace) -> None:
    from kenya_birds.inference.plot import plot_recording

    start_s, end_s = plot_recording(
        options.recording,
        options.detections,
        options.output,
        start_s=options.start_s,
        duration_s=options.duration_s,
        overwrite=options.overwrite,
    )
    print(f"The spectrogram from {start_s:g} to {end_s:g} s is in {options.output}")


def _add_activity(commands: Any) -> None:
    command = new_command(
        commands,
        "activity",
        "draw which species were detected at which hour of the day",
        "Draws how often each species was detected at each hour of the day. The time comes from the recordings' "
        "names, such as KEN_001_20211207_153852.flac; with recordings.csv beside the table, it is per recorded hour.",
    )
    command.add_argument("detections", type=Path, help="table of detections: our CSV, Parquet or Raven's .txt")
    add_name_pattern(command)
    _add_output(command, "activity.png")
    command.set_defaults(run=_activity)


def _activity(options: argparse.Namespace) -> None:
    from kenya_birds.data.name_pattern import NamePattern
    from kenya_birds.inference.activity import plot_activity

    name_pattern = NamePattern.of(options.name_pattern)
    activity = plot_activity(
        options.detections, options.output, overwrite=options.overwrite, name_pattern=name_pattern
    )
    if activity.left_out:
        print(f"Left out: {activity.left_out} recordings without {activity.clock} in their names")
    print(f"The activity of {len(activity.counts)} species is in {options.output}")


def _add_output(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--output", type=Path, default=Path(name), help="PNG, SVG or PDF to write")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def _add_embed(commands: Any) -> None:
    command = new_command(
        commands,
        "embed",
        "turn recordings into embeddings of their windows",
        "Writes the embedding of every window of recordings, by a model of this package or any audio model of "
        "transformers, to a Parquet file. The exit code is 0 if every recording was embedded from beginning to end, 3 "
        "if some were not (NAME_failed.csv beside the file says which, where and why), 2 if nothing could be done.",
    )
    command.add_argument("model", help="a model's folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hub")
    command.add_argument(
        "paths",
        nargs="+",
        metavar="path",
        help="a recording, a folder, a pattern, a list of paths (.txt, one a line), or a URL that fsspec knows",
    )
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write, .parquet")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    command.add_argument("--overlap_s", type=float, default=0.0, help="overlap of neighbouring windows (s)")
    command.add_argument("--clip_s", type=float, help="length of a window (s); ours have their own, by default 3")
    command.add_argument("--batch_size", type=int, help="windows embedded together; by default 16, on a GPU 128")
    command.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU where there is one")
    command.add_argument("--num_workers", type=int, help="threads that read; by default 1, on a GPU up to 8")
    command.set_defaults(run=_embed)


def _embed(options: argparse.Namespace) -> None:
    from kenya_birds.inference.embedders import load_embedder
    from kenya_birds.inference.embedding import embed_recordings, format_embedding

    report = embed_recordings(
        load_embedder(options.model, clip_s=options.clip_s, device=options.device),
        options.paths,
        options.output,
        overlap_s=options.overlap_s,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        overwrite=options.overwrite,
    )
    print(format_embedding(report))
    print(f"The embeddings are in {options.output}")
    raise SystemExit(report.exit_code)


def _add_search(commands: Any) -> None:
    command = new_command(
        commands,
        "search",
        "find windows that are like an example call",
        "Prints, as CSV, the windows of a file of embeddings that are most like an example.",
    )
    command.add_argument("embeddings", type=Path, help="file that kenya-birds embed wrote")
    command.add_argument("examples", nargs="+", metavar="example", help="a recording of the call, cut to its length")
    command.add_argument("--top_k", type=int, default=20, help="how many windows")
    command.add_argument("--model", help="where the model is that made the file; by default where it was then")
    command.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU where there is one")
    command.set_defaults(run=_search)


def _search(options: argparse.Namespace) -> None:
    import csv
    import sys

    from kenya_birds.inference.search import search_embeddings

    hits = search_embeddings(
        options.embeddings, options.examples, top_k=options.top_k, model=options.model, device=options.device
    )
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("recording", "start_s", "end_s", "similarity"))
    table.writerows((hit.recording, f"{hit.start_s:.3f}", f"{hit.end_s:.3f}", f"{hit.similarity:.4f}") for hit in hits)
