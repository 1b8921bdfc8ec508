"""Commands that run models on recordings: detect, plot, activity, embed, search."""

import argparse
from pathlib import Path
from typing import Annotated, Any

from kenya_birds.commands.common import (
    DETECTIONS,
    MODEL,
    RECORDINGS,
    RUN_AGAIN,
    add_name_pattern,
    add_overwrite,
    add_speed,
    check_overlap,
    log_loading,
    read_name_pattern,
)
from kenya_birds.parsing import add_field, add_general, add_option, new_command
from kenya_birds.values import Choices, Count, Device, Duration, Range, Seconds

FORMATS = ("raven", "audacity", "csv", "parquet", "json", "kaleidoscope")
DETECTION_SUFFIXES = (".csv", ".parquet", ".txt")


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_detect, _add_plot, _add_activity, _add_embed, _add_search):
        add(commands)


def _add_detect(commands: Any) -> None:
    from kenya_birds.inference.postprocessing import FindingSettings

    command = new_command(
        commands,
        "detect",
        "find birds in recordings of any length",
        "Finds birds in recordings of any length and writes tables for Raven, Audacity and others. An interrupted run "
        "resumes when the same command is run again. Exit codes: 0, every recording was analysed to its end; 3, some "
        "were not (failed.csv lists them); 2, nothing could be done. Several processes can share a run: torchrun "
        "--nproc_per_node N -m kenya_birds detect ..., or accelerate launch on GPUs, and several machines if they "
        "share the output folder; a launcher has an exit code of its own.",
        "kenya-birds detect birds recordings --output found --overlap_s 1.5 --merge",
    )
    add_option(command, "model", str, help=MODEL)
    add_option(command, "paths", str, help=RECORDINGS, metavar="path", nargs="+")
    output = command.add_argument_group("Output")
    add_option(
        output, "--output", Path, required=True, metavar="FOLDER", help="folder to write: new, empty, or to resume"
    )
    add_option(
        output,
        "--formats",
        Annotated[str, Choices(FORMATS)],
        "raven,csv",
        metavar="LIST",
        help="tables to write, separated by commas",
    )
    add_name_pattern(output)
    add_option(output, "--resume", bool, True, help="keep the recordings that an earlier run finished")
    windows = command.add_argument_group("Windows")
    add_option(windows, "--overlap_s", Seconds, 0.0, help="overlap of neighbouring windows")
    add_field(windows, FindingSettings, "merge", help="join a species' detections in consecutive windows")
    add_field(windows, FindingSettings, "merge_gap_s", help="with --merge: also join them across such gaps")
    add_field(windows, FindingSettings, "merge_score", help="with --merge: score of joined detections")
    add_field(windows, FindingSettings, "smoothing", help="average scores over this many windows")
    reported = command.add_argument_group("What is reported")
    add_field(
        reported,
        FindingSettings,
        "threshold",
        help="one decision threshold for all species; by default the model's own thresholds",
    )
    add_field(
        reported, FindingSettings, "min_confidence", help="never report below this score, whatever the threshold"
    )
    add_field(reported, FindingSettings, "top_k", help="report at most this many species per window; by default all")
    add_option(
        reported,
        "--species",
        Path,
        metavar="FILE",
        help="report only the species in this file (one per line, eBird code or name); by default all",
    )
    add_speed(command.add_argument_group("Speed"), "windows")
    add_general(command)
    command.set_defaults(
        run=_detect, after_stop="run the same command again to resume: finished recordings are kept in the output"
    )


def _detect(options: argparse.Namespace) -> None:
    from kenya_birds.inference.postprocessing import FindingSettings
    from kenya_birds.inference.sources import find_sources
    from kenya_birds.inference.species import names_in, read_species
    from kenya_birds.saved_models import check_ours, check_thresholds, find_model

    name_pattern = read_name_pattern(options)
    saved = find_model(options.model)
    check_ours(saved)
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
    check_thresholds(saved, options.threshold)
    check_overlap(saved, options.overlap_s)
    sources = find_sources(options.paths)
    from kenya_birds.inference.run_report import RunFiles

    RunFiles(options.output).check()

    from kenya_birds.distributed import Team

    team = Team()
    if team.is_first:
        log_loading(options.model)
    from kenya_birds.inference.detect import run_detection
    from kenya_birds.inference.pipeline import SoundscapePipeline

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
        sources,
        options.output,
        formats=[name.strip() for name in options.formats.split(",")],
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
        "kenya-birds plot recordings/night.flac found/detections.csv --start_s 600 --output night.png",
    )
    add_option(command, "recording", Path, help="the recording")
    add_option(command, "detections", Path, help=DETECTIONS)
    stretch = command.add_argument_group("Stretch")
    add_option(
        stretch, "--start_s", Seconds | None, help="where it starts; by default a second before the first detection"
    )
    add_option(
        stretch,
        "--duration_s",
        Annotated[float, Range(0, 600, above=True, unit="SECONDS")],
        60.0,
        help="how long it is",
    )
    _add_picture(command, "spectrogram.png")
    add_general(command)
    command.set_defaults(run=_plot, after_stop=RUN_AGAIN)


def _plot(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_file

    check_file(options.recording, "a recording")
    _check_picture(options)
    from kenya_birds.inference.plots import plot_recording

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
        "kenya-birds activity found/detections.csv --output activity.png",
    )
    add_option(command, "detections", Path, help=DETECTIONS)
    add_name_pattern(_add_picture(command, "activity.png"))
    add_general(command)
    command.set_defaults(run=_activity, after_stop=RUN_AGAIN)


def _activity(options: argparse.Namespace) -> None:
    name_pattern = read_name_pattern(options)
    _check_picture(options)
    from kenya_birds.inference.activity import plot_activity

    activity = plot_activity(
        options.detections, options.output, overwrite=options.overwrite, name_pattern=name_pattern
    )
    if activity.left_out:
        print(f"Skipped: {activity.left_out} recordings without {activity.clock} in their names")
    print(f"The activity of {len(activity.counts)} species is in {options.output}")


def _add_picture(command: Any, name: str) -> Any:
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path(name), metavar="FILE", help="PNG, SVG or PDF to write")
    add_overwrite(output)
    return output


def _check_picture(options: argparse.Namespace) -> None:
    """Checks the two files of a command that draws detections."""
    from kenya_birds.files import check_file, check_picture, check_suffix

    check_suffix(options.detections, DETECTION_SUFFIXES, "a table of detections")
    check_file(options.detections, "a table of detections")
    check_picture(options.output, options.overwrite)


def _add_embed(commands: Any) -> None:
    command = new_command(
        commands,
        "embed",
        "compute embeddings of the windows of recordings",
        "Writes the embedding of every window of recordings, by a model of this package or any audio model of "
        "transformers, to a Parquet file. Exit codes: 0, every recording was embedded to its end; 3, some were not "
        "(NAME_failed.csv beside the file lists them); 2, nothing could be done.",
        "kenya-birds embed birds recordings --output embeddings.parquet --overlap_s 1.5",
    )
    add_option(command, "model", str, help=MODEL)
    add_option(command, "paths", str, help=RECORDINGS, metavar="path", nargs="+")
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, required=True, metavar="FILE", help="Parquet file to write")
    add_overwrite(output)
    windows = command.add_argument_group("Windows")
    add_option(windows, "--overlap_s", Seconds, 0.0, help="overlap of neighbouring windows")
    add_option(
        windows,
        "--clip_s",
        Duration | None,
        help="length of a window; by default 3, and always that of training for models of this package",
    )
    add_speed(command.add_argument_group("Speed"), "windows")
    add_general(command)
    command.set_defaults(run=_embed, after_stop=RUN_AGAIN)


def _embed(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_output, check_suffix
    from kenya_birds.inference.sources import find_sources
    from kenya_birds.saved_models import check_model

    saved = check_model(options.model)
    if saved is not None and options.clip_s is None:
        check_overlap(saved, options.overlap_s)
    check_suffix(options.output, (".parquet",), "a file of embeddings")
    check_output(options.output, options.overwrite)
    sources = find_sources(options.paths)
    log_loading(options.model)
    from kenya_birds.inference.embedding_models import load_embedder
    from kenya_birds.inference.embeddings import embed_recordings, format_embedding

    report = embed_recordings(
        load_embedder(options.model, clip_s=options.clip_s, device=options.device),
        sources,
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
        "find windows that are similar to an example call",
        "Prints, as CSV, the windows of a file of embeddings that are most similar to an example.",
        "kenya-birds search embeddings.parquet call.wav --top_k 50 > hits.csv",
    )
    add_option(command, "embeddings", Path, help="file that kenya-birds embed wrote")
    add_option(command, "examples", str, help="recording of the call, cut to its length", metavar="example", nargs="+")
    search = command.add_argument_group("Search")
    add_option(search, "--top_k", Count, 20, help="how many windows to print")
    add_option(
        search,
        "--model",
        str | None,
        help="where the model is that wrote the embeddings; by default where it was then",
    )
    add_option(search, "--device", Device, help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
    add_general(command)
    command.set_defaults(run=_search, after_stop="run the same command again")


def _search(options: argparse.Namespace) -> None:
    import csv
    import sys

    from kenya_birds.files import check_file
    from kenya_birds.inference.sources import find_sources
    from kenya_birds.saved_models import check_model

    check_file(options.embeddings, "a file that kenya-birds embed wrote")
    examples = find_sources(options.examples)
    if options.model is not None:
        check_model(options.model)
    from kenya_birds.inference.embeddings import search_embeddings

    hits = search_embeddings(
        options.embeddings, examples, top_k=options.top_k, model=options.model, device=options.device
    )
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("recording", "start_s", "end_s", "similarity"))
    table.writerows((hit.recording, f"{hit.start_s:.3f}", f"{hit.end_s:.3f}", f"{hit.similarity:.4f}") for hit in hits)
