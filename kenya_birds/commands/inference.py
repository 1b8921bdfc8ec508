"""Commands that run models on recordings: detect, plot, activity, embed, search."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from kenya_birds.commands.common import (
    DETECTIONS,
    MODEL,
    RECORDINGS,
    RUN_AGAIN,
    add_channel,
    add_device,
    add_name_pattern,
    add_overwrite,
    add_speed,
    add_time_zone,
    check_overlap,
    log_loading,
    read_name_pattern,
    read_time_zone,
)
from kenya_birds.defaults import PLOT_DURATION_S, SEARCH_TOP_K, TABLE_FORMATS
from kenya_birds.inference.backends import Backend, Precision, choose_backend
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.parsing import add_field, add_general, add_option, new_command, read_fields
from kenya_birds.values import Choices, Count, Duration, Latitude, Longitude, PlotDuration, Seconds, counted

DETECTION_SUFFIXES = (".csv", ".parquet", ".txt")


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_detect, _add_plot, _add_activity, _add_embed, _add_search):
        add(commands)


def _add_detect(commands: Any) -> None:
    command = new_command(
        commands,
        "detect",
        "find birds in recordings of any length",
        "Detects birds in recordings of any length and writes tables for Raven, Audacity and other programs. An "
        "interrupted run resumes when the same command is run again. Exit codes: 0, all recordings were analysed "
        "completely; 3, some or all were not (failed.csv lists them); 2, an error ended the run. Several processes "
        "can share a run: torchrun --nproc_per_node N -m kenya_birds detect ..., or accelerate launch on GPUs; "
        "several machines can, if they share the output folder. Launchers have their own exit codes.",
        "kenya-birds detect birds recordings --output found",
    )
    add_option(command, "model", str, help=MODEL)
    add_option(command, "paths", str, help=RECORDINGS, metavar="path", nargs="+")
    output = command.add_argument_group("Output")
    add_option(
        output,
        "--output",
        Path,
        required=True,
        metavar="FOLDER",
        help="output folder: new, empty, or of an interrupted run",
    )
    add_option(
        output,
        "--formats",
        Annotated[str, Choices(TABLE_FORMATS)],
        "raven,csv",
        metavar="LIST",
        help="formats of the tables, separated by commas",
    )
    add_name_pattern(output)
    add_time_zone(output)
    add_option(output, "--resume", bool, True, help="skip recordings that an earlier run has completed")
    _add_windows(command)
    _add_reported(command)
    speed = command.add_argument_group("Speed")
    add_speed(speed, "windows")
    add_option(
        speed,
        "--backend",
        Backend,
        "torch",
        help="what computes the network on a CPU: torch, onnx (onnxruntime), openvino, or auto (the first of "
        "openvino, onnx and torch that is installed); scores are compared with torch on the first windows",
    )
    add_option(
        speed,
        "--precision",
        Precision,
        "float32",
        help="precision of the network; bfloat16 changes scores a little, and needs a GPU, or a processor with "
        "AVX512-BF16, AMX or such; scores are compared with float32 on the first windows",
    )
    add_general(command)
    command.set_defaults(
        run=_detect, after_stop="run the same command again to resume: completed recordings are kept in the output"
    )


def _add_windows(command: Any) -> None:
    windows = command.add_argument_group("Windows")
    add_channel(windows)
    add_option(
        windows,
        "--overlap_s",
        Seconds | None,
        help="overlap of neighbouring windows; by default the overlap for which the thresholds were chosen, and none "
        "with --threshold",
    )
    add_field(
        windows,
        FindingSettings,
        "merge",
        help="join a species' detections in consecutive windows; by default as in the evaluation with these "
        "thresholds, and not with --threshold",
    )
    add_field(
        windows, FindingSettings, "merge_gap_s", help="with --merge: also join detections with gaps up to this length"
    )
    add_field(
        windows, FindingSettings, "merge_score", help="with --merge: how to compute the score of joined detections"
    )
    add_field(windows, FindingSettings, "smoothing", help="average scores over this many consecutive windows")


def _add_reported(command: Any) -> None:
    reported = command.add_argument_group("Reported detections")
    add_field(
        reported,
        FindingSettings,
        "threshold",
        help="one decision threshold for all species; by default the model's own thresholds",
    )
    add_option(
        reported,
        "--thresholds",
        Path | None,
        metavar="FILE",
        help="decision thresholds of species, such as thresholds.json of kenya-birds verify read, in place of the "
        "model's own; species that are not in it are never reported",
    )
    add_field(
        reported, FindingSettings, "min_confidence", help="never report below this score, whatever the threshold"
    )
    add_field(reported, FindingSettings, "top_k", help="report at most this many species per window; by default all")
    add_field(
        reported,
        FindingSettings,
        "novelty",
        help="add a column with the novelty of each detection to CSV, Parquet and JSON: from 0 (like the training "
        "calls) to 1; one known call in 20 has more than 0.95",
    )
    add_option(
        reported,
        "--species",
        Path,
        metavar="FILE",
        help="report only the species in this file (one per line, eBird code or name); by default all",
    )


def _detect(options: argparse.Namespace) -> None:
    from kenya_birds.inference.sources import find_sources
    from kenya_birds.inference.species import names_in, read_species
    from kenya_birds.saved_models import check_ours, check_thresholds, find_model

    name_pattern, time_zone = read_name_pattern(options), read_time_zone(options)
    saved = find_model(options.model)
    check_ours(saved)
    choose_backend(options.backend, options.precision, saved, options.device)
    species = read_species(options.species, names_in(saved)) if options.species else None
    settings = read_fields(options, FindingSettings, species=species)
    if options.thresholds is None:
        check_thresholds(saved, options.threshold)
    else:
        _check_thresholds_file(options, names_in(saved))
    if settings.novelty:
        from kenya_birds.evaluation.novelty import NoveltyReference

        NoveltyReference.of_model(saved)
    if options.overlap_s is not None:
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
        device=team.device(options.device),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        channel=options.channel,
        thresholds=options.thresholds,
        backend=options.backend,
        precision=options.precision,
    )
    report = run_detection(
        pipeline,
        sources,
        options.output,
        formats=[name.strip() for name in options.formats.split(",")],
        resume=options.resume,
        name_pattern=name_pattern,
        time_zone=time_zone,
        team=team,
    )
    if report is not None:
        print(report)
        print(f"The tables are in {options.output}")
        raise SystemExit(report.exit_code)


def _check_thresholds_file(options: argparse.Namespace, known: Iterable[str]) -> None:
    """Checks the value of `--thresholds` before the model is loaded."""
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_file, read_json
    from kenya_birds.saved_models import check_species_of_thresholds

    check_file(options.thresholds, "decision thresholds of species")
    species = read_json(options.thresholds).get("species")
    if not isinstance(species, dict):
        raise UserError(
            f"{options.thresholds} has no thresholds of species: expected thresholds.json of a model, or of "
            "kenya-birds verify read"
        )
    check_species_of_thresholds(options.thresholds, species, known)
    if options.threshold is not None:
        raise UserError("--threshold and --thresholds are both given: give one of both")


def _add_plot(commands: Any) -> None:
    command = new_command(
        commands,
        "plot",
        "draw the spectrogram of a recording with its detections",
        "Draws the spectrogram of a section of a recording, with a labelled bar for each detection. Overlapping "
        "detections of a species share one bar, which shows the highest score.",
        "kenya-birds plot recordings/night.flac found/detections.csv --start_s 600 --output night.png",
    )
    add_option(command, "recording", Path, help="recording to draw")
    add_option(command, "detections", Path, help=DETECTIONS)
    section = command.add_argument_group("Section")
    add_option(
        section,
        "--start_s",
        Seconds | None,
        help="start of the section; by default one second before the first detection",
    )
    add_option(section, "--duration_s", PlotDuration, PLOT_DURATION_S, help="length of the section")
    beside = command.add_argument_group("Annotations")
    add_option(
        beside,
        "--annotations",
        Path,
        metavar="PATH",
        help="archive, or table of annotations of any program: drawn as boxes beside the detections",
    )
    add_channel(section)
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
        annotations=options.annotations,
        channel=options.channel,
        overwrite=options.overwrite,
    )
    print(f"The spectrogram from {start_s:g} to {end_s:g} s is in {options.output}")


def _add_activity(commands: Any) -> None:
    command = new_command(
        commands,
        "activity",
        "draw the detections of each species by hour of the day",
        "Draws the number of detections of each species by hour of the day, or by minutes from sunrise. Times and "
        "places are those of recordings.csv in the folder of the table, and colours are then per analysed hour; "
        "without it, times come from the recordings' names, such as KEN_001_20211207_153852.flac.",
        "kenya-birds activity found/detections.csv --output activity.png",
    )
    add_option(command, "detections", Path, help=DETECTIONS)
    _add_picture(command, "activity.png")
    times = command.add_argument_group("Times")
    add_option(times, "--from_sunrise", bool, False, help="show minutes from sunrise in place of hours of the day")
    add_option(times, "--latitude", Latitude | None, help="--from_sunrise: place of recordings that have none")
    add_option(times, "--longitude", Longitude | None, help="--from_sunrise: place of recordings that have none")
    add_time_zone(times)
    add_name_pattern(times)
    add_general(command)
    command.set_defaults(run=_activity, after_stop=RUN_AGAIN)


def _activity(options: argparse.Namespace) -> None:
    name_pattern, time_zone = read_name_pattern(options), read_time_zone(options)
    _check_picture(options)
    from kenya_birds.inference.activity import MISSING, ActivityClock, plot_activity

    clock = ActivityClock(name_pattern, time_zone, options.from_sunrise, options.latitude, options.longitude)
    activity = plot_activity(options.detections, options.output, overwrite=options.overwrite, clock=clock)
    if activity.left_out:
        missing = MISSING.get(activity.clock, activity.clock)
        print(f"Skipped: {counted(activity.left_out, 'recording')} without {missing}")
    print(f"The activity of {len(activity.counts)} species is in {options.output}")


def _add_picture(command: Any, name: str) -> Any:
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path(name), metavar="FILE", help="PNG, SVG or PDF file to write")
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
        "Computes the embedding of every window of recordings with a model of this package or an audio model of "
        "transformers, and writes a Parquet file. Exit codes: 0, all recordings were embedded completely; 3, some "
        "or all were not (NAME_failed.csv in the same folder lists them); 2, an error ended the run.",
        "kenya-birds embed birds recordings --output embeddings.parquet --overlap_s 1.5",
    )
    add_option(command, "model", str, help=MODEL)
    add_option(command, "paths", str, help=RECORDINGS, metavar="path", nargs="+")
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, required=True, metavar="FILE", help="Parquet file to write")
    add_overwrite(output)
    windows = command.add_argument_group("Windows")
    add_channel(windows)
    add_option(windows, "--overlap_s", Seconds, 0.0, help="overlap of neighbouring windows")
    add_option(
        windows,
        "--clip_s",
        Duration | None,
        help="length of a window, for transformers models (default: 3); models of this package have their own length",
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
        channel=options.channel,
        overwrite=options.overwrite,
    )
    print(format_embedding(report))
    print(f"The embeddings are in {options.output}")
    raise SystemExit(report.exit_code)


def _add_search(commands: Any) -> None:
    command = new_command(
        commands,
        "search",
        "find windows that are similar to example calls",
        "Prints, as CSV, the windows in a file of embeddings that are most similar to one of the examples.",
        "kenya-birds search embeddings.parquet call.wav --top_k 50 > hits.csv",
    )
    add_option(command, "embeddings", Path, help="output file of kenya-birds embed")
    add_option(command, "examples", str, help="recording that contains only the call", metavar="example", nargs="+")
    search = command.add_argument_group("Search")
    add_option(search, "--top_k", Count, SEARCH_TOP_K, help="number of windows to print")
    add_option(
        search,
        "--model",
        str | None,
        help="model that computed the embeddings, if it has been moved; by default its earlier path or name",
    )
    add_channel(search)
    add_device(search)
    add_general(command)
    command.set_defaults(run=_search, after_stop="run the same command again")


def _search(options: argparse.Namespace) -> None:
    import sys

    from kenya_birds.files import check_file
    from kenya_birds.inference.sources import find_sources
    from kenya_birds.saved_models import check_model

    check_file(options.embeddings, "an output file of kenya-birds embed")
    examples = find_sources(options.examples)
    if options.model is not None:
        check_model(options.model)
    from kenya_birds.formulas import safe_path
    from kenya_birds.inference.embeddings import search_embeddings
    from kenya_birds.inference.table_formats import csv_writer
    from kenya_birds.process import print_tables

    hits = search_embeddings(
        options.embeddings,
        examples,
        top_k=options.top_k,
        model=options.model,
        device=options.device,
        channel=options.channel,
    )
    print_tables()
    table = csv_writer(sys.stdout)
    table.writerow(("recording", "start_s", "end_s", "similarity"))
    for hit in hits:
        numbers = f"{hit.start_s:.3f}", f"{hit.end_s:.3f}", f"{hit.similarity:.4f}"
        table.writerow((safe_path(hit.recording), *numbers))
