"""Commands for checking detections by listening: verify sample, verify page, verify read, verify annotate."""

import argparse
from pathlib import Path
from typing import Any, Literal

from kenya_birds.commands.common import RUN_AGAIN
from kenya_birds.defaults import DEMO_HOST, VERIFY_PORT
from kenya_birds.parsing import Parser, add_general, add_option, new_command
from kenya_birds.values import Count, Port, Positive, Seconds, Seed, Share

CHECK = "folder of kenya-birds verify sample with answers in verify.csv; or another person's copy of verify.csv"


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    command = new_command(
        commands,
        "verify",
        "check a sample of detections by listening: precision, call density, thresholds, annotations",
        "Draws a sample of detections for a person to listen to, and computes from the answers how many detections "
        "are right at each score. Each step has its own help: kenya-birds verify sample --help.",
        "kenya-birds verify sample low --output check\nkenya-birds verify page check\n"
        "kenya-birds verify read check --output verified",
    )
    steps = command.add_subparsers(dest="step", required=True, metavar="STEP", title="Steps", parser_class=Parser)
    _add_sample(steps)
    _add_page(steps)
    _add_read(steps)
    _add_annotate(steps)
    add_general(command)


def _add_sample(steps: Any) -> None:
    command = new_command(
        steps,
        "sample",
        "draw detections, and write clips, pictures and a table for the answers",
        "Draws detections of each species from all scores, and writes for each a short clip, its spectrogram and a "
        "row in verify.csv. Listen, and write right, wrong, other or unsure into the column answer. The same command "
        "resumes; with a larger --per_species it adds clips. Answers are kept. To have low scores in the table, run "
        "kenya-birds detect with --threshold 0 (or 0.01).",
        "kenya-birds verify sample low --output check --per_species 60",
    )
    add_option(command, "found", Path, help="output folder of kenya-birds detect, with a table in CSV or Parquet")
    output = command.add_argument_group("Output")
    add_option(
        output,
        "--output",
        Path,
        required=True,
        metavar="FOLDER",
        help="output folder: new, empty, or of an earlier sample of the same table",
    )
    add_option(output, "--clip_format", Literal["flac", "wav"], "flac", help="format of the clips, with 16 bits")
    add_option(output, "--context_s", Seconds, 2.0, help="sound before and after each detection")
    add_option(output, "--pictures", bool, True, help="draw spectrograms")
    what = command.add_argument_group("Sample")
    add_option(
        what,
        "--per_species",
        Count,
        60,
        help="clips of each species; with --by, of each species at each site or night",
    )
    add_option(
        what, "--by", Literal["site", "night"] | None, help="draw from each site or night, to estimate each separately"
    )
    add_option(
        what,
        "--choose",
        Literal["score", "random", "uncertain", "diverse"],
        "score",
        help="score: equal numbers of clips from score bins, of which each has half as many detections as the next "
        "lower one; random: from all detections of a species. For training alone (verify annotate), not for verify "
        "read: uncertain: scores near 0.5 that differ in their embeddings; diverse: embeddings that differ most",
    )
    add_option(
        what,
        "--embeddings",
        Path | None,
        metavar="FILE",
        help="with --choose uncertain or diverse: file of kenya-birds embed with these recordings; by default the "
        "model of the detections embeds the candidates",
    )
    add_option(
        what,
        "--species",
        Path | None,
        metavar="FILE",
        help="sample only the species in this file (one per line, eBird code or name), if they have detections; by "
        "default all",
    )
    add_option(what, "--seed", Seed, 0, help="random seed")
    _add_recordings(command)
    add_general(command)
    command.set_defaults(
        run=_sample, after_stop="run the same command again to resume: finished clips and answers are kept"
    )


def _add_recordings(command: argparse.ArgumentParser) -> None:
    add_option(
        command.add_argument_group("Recordings"),
        "--recordings",
        Path | None,
        metavar="FOLDER",
        help="folder with recordings that were moved after the detection; they are found by name and length",
    )


def _check_recordings(folder: Path | None) -> None:
    """Raises `UserError` if the folder of moved recordings does not exist."""
    from kenya_birds.errors import UserError

    if folder is not None and not folder.is_dir():
        raise UserError(f"there is no folder {folder}: expected a folder of recordings (--recordings)")


def _sample(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_file
    from kenya_birds.folders import check_can_make

    if not options.found.is_dir():
        raise UserError(f"there is no folder {options.found}: expected the output folder of kenya-birds detect")
    check_file(options.species, "a list of species")
    _check_recordings(options.recordings)
    check_file(options.embeddings, "a file of kenya-birds embed")
    if options.embeddings is not None and options.choose in ("score", "random"):
        raise UserError(f"--embeddings is for --choose uncertain or diverse: found --choose {options.choose}")
    check_can_make(options.output)
    from kenya_birds.verification.sampling import SampleSettings, draw_sample

    names = ("per_species", "by", "choose", "seed", "context_s", "clip_format", "pictures")
    drawing = draw_sample(
        options.found,
        options.output,
        SampleSettings(**{name: getattr(options, name) for name in names}),
        species=options.species,
        recordings=options.recordings,
        embeddings=options.embeddings,
    )
    species = {stratum.species for stratum in drawing.sample.strata}
    print(f"{drawing.clips} clips of {len(species)} species, {drawing.new} of them new; {drawing.answered} answered")
    if drawing.lost:
        print(f"{drawing.lost} detections have no clip, because their sound cannot be decoded")
    print(f"Answer with kenya-birds verify page {options.output}, or in {options.output / 'verify.csv'}")


def _add_page(steps: Any) -> None:
    command = new_command(
        steps,
        "page",
        "listen and answer in the browser, with keys",
        "Serves a web page on this machine that shows and plays one detection after the other. Each answer is written "
        "into verify.csv before the next detection is shown. The page can be stopped at any time, and begins with the "
        "first detection without an answer.",
        "kenya-birds verify page check --archive archive --by Wanjiru",
    )
    add_option(command, "check", Path, help="folder of kenya-birds verify sample")
    page = command.add_argument_group("Page")
    add_option(
        page,
        "--archive",
        Path | None,
        metavar="FOLDER",
        help="archive with annotated calls, to show one of the species",
    )
    add_option(
        page, "--by", str | None, metavar="NAME", help="name of the person who answers, for the column verified_by"
    )
    add_option(
        page,
        "--host",
        str,
        DEMO_HOST,
        help="address to listen on; 0.0.0.0: all addresses of this machine. Everybody who reaches it can answer",
    )
    add_option(page, "--port", Port, VERIFY_PORT, help="port to listen on")
    add_general(command)
    command.set_defaults(run=_page, after_stop="run the same command again to resume: all answers are kept")


def _page(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_file, check_layout

    if not options.check.is_dir():
        raise UserError(f"there is no folder {options.check}: expected a folder of kenya-birds verify sample")
    check_file(options.check / "sample.json", "a file of kenya-birds verify sample")
    if options.archive is not None:
        check_layout(options.archive)
    from kenya_birds.serving.verify_server import serve_page

    serve_page(options.check, archive=options.archive, by=options.by or "", host=options.host, port=options.port)


def _add_read(steps: Any) -> None:
    command = new_command(
        steps,
        "read",
        "compute precision, call density and thresholds from the answers",
        "Computes from the answers, for each species (and site or night): the share of right detections with its 95% "
        "interval, precision by score, a logistic fit, the score from which precision is 0.9, 0.95 and 0.99, how "
        "many more clips a narrower interval needs, and thresholds for kenya-birds detect --thresholds. Folders of "
        "several people are joined, and their agreement is shown.",
        "kenya-birds verify read check --output verified",
    )
    add_option(command, "checks", Path, help=CHECK, nargs="+", metavar="CHECK")
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, required=True, metavar="FOLDER", help="output folder: new or empty")
    add_option(output, "--pictures", bool, True, help="draw pictures")
    add_option(output, "--overwrite", bool, False, help="replace earlier results in the output folder")
    wanted = command.add_argument_group("Wanted")
    add_option(wanted, "--precision", Share, 0.9, help="precision that the thresholds in thresholds.json must reach")
    add_option(
        wanted, "--width", Positive, 0.1, help="width of the interval for which the number of further clips is shown"
    )
    add_general(command)
    command.set_defaults(run=_read, after_stop=RUN_AGAIN)


def _read(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_file
    from kenya_birds.folders import check_new_folder

    for check in options.checks:
        if not check.exists():
            raise UserError(f"there is no {check}: expected a folder of kenya-birds verify sample")
        if check.is_dir():
            check_file(check / "sample.json", "a file of kenya-birds verify sample")
    if not options.overwrite:
        check_new_folder(options.output, can_overwrite=options.output.is_dir())
    from kenya_birds.verification.reading import format_result, read_checks

    verified = read_checks(
        options.checks,
        options.output,
        precision=options.precision,
        width=options.width,
        pictures=options.pictures,
        overwrite=options.overwrite,
    )
    print(format_result(verified))
    print(f"The tables, pictures and thresholds.json are in {options.output}")


def _add_annotate(steps: Any) -> None:
    command = new_command(
        steps,
        "annotate",
        "turn the answers into annotations of an archive, to train on",
        "Writes the answers into a new or existing archive: right detections are calls, wrong ones say that the "
        "species is not there. Everything else in these recordings is unknown, and they are for training alone. The "
        "recordings stay where they are. Run it again after more answers: it adds them, and replaces answers that "
        "have changed.",
        "kenya-birds verify annotate check --archive checked\n"
        "train_hf.py --front_end_from birds --init_from birds --data_dir archive checked --output_dir better",
    )
    add_option(command, "check", Path, help="folder of kenya-birds verify sample with answers in verify.csv")
    add_option(
        command.add_argument_group("Output"),
        "--archive",
        Path,
        required=True,
        metavar="FOLDER",
        help="a new or empty folder, or an archive; its other annotations are kept",
    )
    _add_recordings(command)
    add_general(command)
    command.set_defaults(run=_annotate, after_stop=RUN_AGAIN)


def _annotate(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_file, check_layout
    from kenya_birds.folders import check_can_make, is_new_or_empty

    if not options.check.is_dir():
        raise UserError(f"there is no folder {options.check}: expected a folder of kenya-birds verify sample")
    check_file(options.check / "sample.json", "a file of kenya-birds verify sample")
    _check_recordings(options.recordings)
    if is_new_or_empty(options.archive):
        check_can_make(options.archive)
    else:
        check_layout(options.archive)
    from kenya_birds.verification.annotating import annotate_archive

    print(annotate_archive(options.check, options.archive, recordings=options.recordings).format())
