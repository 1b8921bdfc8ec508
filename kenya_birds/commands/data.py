"""Commands about archives: synthesize, download, join, check, report, split."""

import argparse
from pathlib import Path
from typing import Any, Literal

from kenya_birds.commands.common import (
    RUN_AGAIN,
    add_archive,
    add_channel,
    add_name_pattern,
    add_overwrite,
    add_time_zone,
    read_name_pattern,
    read_time_zone,
)
from kenya_birds.defaults import (
    KENYA_RECORD,
    MIN_ANNOTATIONS,
    SPLIT_SEARCH_S,
    SPLIT_SEED,
    SYNTHETIC_DURATION_S,
    SYNTHETIC_RECORDINGS,
    SYNTHETIC_SPECIES,
    TEST_SIZE,
    VALIDATION_SIZE,
    ZENODO_API_URL,
)
from kenya_birds.errors import UserError
from kenya_birds.parsing import add_general, add_option, new_command
from kenya_birds.values import Count, Duration, HeldOutFolds, Seed, SplitSize, SyntheticDuration


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_synthesize, _add_download, _add_join, _add_check, _add_report, _add_split):
        add(commands)


def _add_synthesize(commands: Any) -> None:
    command = new_command(
        commands,
        "synthesize",
        "make a synthetic archive of invented birds",
        "Makes a synthetic archive of invented birds in the format of the Kenyan archive: recordings, annotations and "
        "species.",
        "kenya-birds synthesize archive --recordings 16 --duration_s 120",
    )
    add_option(command, "data_dir", Path, help="output folder: new or empty")
    size = command.add_argument_group("Size")
    add_option(size, "--recordings", Count, SYNTHETIC_RECORDINGS, help="number of recordings")
    add_option(
        size,
        "--duration_s",
        SyntheticDuration,
        SYNTHETIC_DURATION_S,
        help="length of each recording",
    )
    add_option(size, "--species", Count, SYNTHETIC_SPECIES, help="number of species")
    add_option(
        size, "--annotations", Count, help="number of annotated calls; by default in proportion to the total length"
    )
    add_option(
        size,
        "--scene",
        Literal["field", "quiet"],
        "field",
        help="field: calls at any distance, and insects, frogs, wind, rain, engines and people, which are not "
        "annotated; quiet: clear calls in steady noise",
    )
    add_option(size, "--seed", Seed, 0, help="random seed: the same seed gives the same archive")
    add_general(command)
    command.set_defaults(run=_synthesize, after_stop="the archive is not complete: delete the folder and run it again")


def _synthesize(options: argparse.Namespace) -> None:
    from kenya_birds.folders import check_new_folder

    check_new_folder(options.data_dir, "folder")
    from kenya_birds.data.synthetic import synthesize_archive

    synthesize_archive(
        options.data_dir,
        recordings=options.recordings,
        duration_s=options.duration_s,
        species=options.species,
        annotations=options.annotations,
        scene=options.scene,
        seed=options.seed,
    )
    print(f"The archive is in {options.data_dir}")


def _add_download(commands: Any) -> None:
    command = new_command(
        commands,
        "download",
        "download the Kenyan soundscapes from Zenodo",
        "Downloads an archive of annotated soundscapes from Zenodo, verifies it and unpacks it. An interrupted "
        "download resumes when the same command is run again.",
        "kenya-birds download archive",
    )
    add_option(command, "data_dir", Path, help="output folder: new, empty, or of an interrupted download")
    download = command.add_argument_group("Download")
    add_option(download, "--record", Count, KENYA_RECORD, help="number of the Zenodo record")
    add_option(download, "--keep_zip", bool, False, help="keep soundscape_data.zip after it is unpacked")
    add_option(download, "--api_url", str, ZENODO_API_URL, help=argparse.SUPPRESS)
    add_general(command)
    command.set_defaults(run=_download, after_stop="run the same command again to resume")


def _download(options: argparse.Namespace) -> None:
    from kenya_birds.folders import check_can_make

    check_can_make(options.data_dir)
    from kenya_birds.data.download import download_record

    download_record(options.data_dir, options.record, api_url=options.api_url, keep_zip=options.keep_zip)
    print(f"The archive is in {options.data_dir}")


def _add_join(commands: Any) -> None:
    command = new_command(
        commands,
        "join",
        "make one archive of several",
        "Writes an archive with the recordings, annotations and species of several archives. Recordings are not "
        "copied. Species with the same code or scientific name are one. train_hf.py and the commands that take "
        "several archives do this by themselves.",
        "kenya-birds join kenya colombia --output both",
    )
    add_archive(command, several=True)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, required=True, metavar="ARCHIVE", help="folder of the archive: new or empty")
    add_general(command)
    command.set_defaults(run=_join, after_stop=RUN_AGAIN)


def _join(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_layouts
    from kenya_birds.folders import check_new_folder

    check_new_folder(options.output)
    check_layouts(options.data_dirs)
    if len(options.data_dirs) < 2:
        raise UserError("one archive is given: expected two or more to join")
    from kenya_birds.data.joined_archive import join_archives

    print(join_archives(options.data_dirs, options.output).format())


def _add_check(commands: Any) -> None:
    command = new_command(
        commands,
        "check",
        "check an archive and list its problems",
        "Reads every recording completely and every row of the tables, and lists all problems. Exit codes: 0, "
        "training can use everything; 1, it cannot; 2, the check failed.",
        "kenya-birds check archive --output check.csv",
    )
    add_archive(command)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path("check.csv"), metavar="FILE", help="CSV file to write")
    add_overwrite(output)
    add_channel(command.add_argument_group("Sound"))
    speed = command.add_argument_group("Speed")
    add_option(speed, "--num_proc", Count, 1, help="processes that read recordings")
    add_general(command)
    command.set_defaults(run=_check, after_stop=RUN_AGAIN)


def _check(options: argparse.Namespace) -> None:
    _check_paths(options)
    from kenya_birds.data.check import check_archive, format_check, write_check

    check = check_archive(options.data_dir, num_proc=options.num_proc, channel=options.channel)
    write_check(check, options.output, overwrite=options.overwrite)
    print(format_check(check))
    print(f"The table is in {options.output}")
    raise SystemExit(0 if check.is_usable else 1)


def _add_report(commands: Any) -> None:
    command = new_command(
        commands,
        "report",
        "describe an archive on one HTML page",
        "Writes a report of an archive as one HTML page: species, noise and levels, overlapping calls, activity, "
        "splits and tables.",
        "kenya-birds report archive --output report.html",
    )
    add_archive(command, several=True)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path("report.html"), metavar="FILE", help="HTML file to write")
    add_overwrite(output)
    content = command.add_argument_group("Content")
    add_option(
        content, "--min_annotations", Count, MIN_ANNOTATIONS, help="drop species with fewer annotations from the split"
    )
    add_option(content, "--balanced", bool, False, help="include the balanced split (its search takes up to a minute)")
    add_option(content, "--seed", Seed, 0, help="random seed for the choice of example calls")
    add_name_pattern(content)
    add_time_zone(content)
    add_general(command)
    command.set_defaults(run=_report, after_stop=RUN_AGAIN)


def _report(options: argparse.Namespace) -> None:
    name_pattern, time_zone = read_name_pattern(options), read_time_zone(options)
    _check_paths(options)
    from kenya_birds.data.joined_archive import one_archive
    from kenya_birds.exploration.archive_report import write_report

    output = write_report(
        one_archive(options.data_dirs),
        options.output,
        min_annotations=options.min_annotations,
        seed=options.seed,
        balanced=options.balanced,
        overwrite=options.overwrite,
        name_pattern=name_pattern,
        time_zone=time_zone,
    )
    print(f"The report is in {output}")


def _add_split(commands: Any) -> None:
    command = new_command(
        commands,
        "split",
        "divide an archive's recordings into train, validation and test, or into folds",
        "Divides an archive's recordings into train, validation and test, or into folds, and reports the quality of "
        "the split.",
        "kenya-birds split archive --output splits.csv\nkenya-birds split archive --folds 5 --output folds.csv",
    )
    add_archive(command, several=True)
    output = command.add_argument_group("Output")
    add_option(
        output,
        "--output",
        Path,
        required=True,
        metavar="FILE",
        help="CSV file to write, with the columns recording,split or recording,fold",
    )
    add_overwrite(output)
    division = command.add_argument_group("Split")
    add_option(
        division,
        "--strategy",
        Literal["stratified", "balanced"],
        "balanced",
        help="balanced: as many species as possible in every part; stratified: nested folds, stratified if possible",
    )
    add_option(
        division,
        "--folds",
        HeldOutFolds | None,
        help="number of folds; by default there are no folds, but three splits",
    )
    add_option(division, "--test_size", SplitSize, TEST_SIZE, help="share of the recordings for the test split")
    add_option(
        division,
        "--validation_size",
        SplitSize,
        VALIDATION_SIZE,
        help="share of the recordings for the validation split",
    )
    add_option(division, "--min_annotations", Count, MIN_ANNOTATIONS, help="drop species with fewer annotations")
    add_option(division, "--seed", Seed, SPLIT_SEED, help="random seed, for --strategy stratified only")
    add_option(
        division,
        "--time_limit_s",
        Duration,
        SPLIT_SEARCH_S,
        help="stop the search for a balanced split after this time",
    )
    add_option(
        division,
        "--group_by",
        Literal["site", "night"] | None,
        help="keep all recordings of a site, or of a night at a site, in one part; by default only single recordings "
        "stay whole",
    )
    add_option(
        division,
        "--weak_labels",
        Literal["train", "every_split"],
        "train",
        help="recordings of folders of species; train: leave them out, as training only learns from them; "
        "every_split: divide them as other recordings",
    )
    add_name_pattern(division)
    add_time_zone(division)
    add_general(command)
    command.set_defaults(run=_split, after_stop=RUN_AGAIN)


def _split(options: argparse.Namespace) -> None:
    name_pattern, time_zone = read_name_pattern(options), read_time_zone(options)
    _check_paths(options)
    from kenya_birds.data.archive import read_archive, select_classes
    from kenya_birds.data.balanced_split import make_splits
    from kenya_birds.data.joined_archive import divide_each, one_archive
    from kenya_birds.data.recording_groups import check_group_count, find_groups, find_places, merged
    from kenya_birds.data.silent_recordings import with_others
    from kenya_birds.data.split_audit import audit_split, format_audit
    from kenya_birds.data.splits import least_recordings, write_splits
    from kenya_birds.data.weak_recordings import warn_of_tested_groups

    archive = read_archive(one_archive(options.data_dirs))
    annotations = archive.annotations
    annotations = annotations[annotations["species"].isin(select_classes(annotations, options.min_annotations))]
    if archive.weak and options.weak_labels == "train":
        annotations = annotations[~annotations["weak"]]
        print(
            f"{len(archive.weak)} recordings with weak labels are not in the table: training learns from all of them"
        )
    if archive.verified:
        annotations = annotations[~annotations["recording"].isin(archive.verified)]
        print(
            f"{len(archive.verified)} recordings with checked detections are not in the table: they are for training "
            "only"
        )
    if annotations.empty and archive.verified:
        raise UserError("all recordings are for training only: add an archive whose calls are annotated")
    if annotations.empty:
        raise UserError("all recordings have weak labels: divide them too with --weak_labels every_split")
    places = find_places(archive, name_pattern=name_pattern, time_zone=time_zone)
    together = archive.same_sound()
    balanced_parts = options.folds or 3
    if options.group_by is not None:
        groups = find_groups(archive, places, options.group_by)
        together = merged([*together, *groups])
        kept = set(annotations["recording"])
        check_group_count([names for names in together if kept & set(names)], options.group_by, balanced_parts)
    is_balanced = options.folds or options.strategy == "balanced"
    table = divide_each(
        annotations,
        archive.archive_of,
        together,
        lambda part: make_splits(
            part,
            options.strategy,
            folds=options.folds,
            test_size=options.test_size,
            validation_size=options.validation_size,
            seed=options.seed,
            time_limit_s=options.time_limit_s,
            same_sound=together,
        ),
        least=balanced_parts if is_balanced else least_recordings(options.test_size, options.validation_size),
    )
    table = with_others(table, archive, together)
    if options.group_by is not None:
        warn_of_tested_groups(table, archive.partial, together)
    write_splits(table, options.output, overwrite=options.overwrite)
    train_size = 1 - options.test_size - options.validation_size
    targets = {"train": train_size, "validation": options.validation_size, "test": options.test_size}
    print(format_audit(audit_split(annotations, table, targets=targets, places=places)))
    print(f"The {'folds' if options.folds else 'splits'} are in {options.output}")


def _check_paths(options: argparse.Namespace) -> None:
    """Checks the archives and the output of a command."""
    from kenya_birds.files import check_layout, check_layouts, check_output

    if hasattr(options, "data_dirs"):
        check_layouts(options.data_dirs)
    else:
        check_layout(options.data_dir)
    check_output(options.output, options.overwrite)
