"""Commands about archives: synthesize, download, check, report, split."""

import argparse
from pathlib import Path
from typing import Any

from kenya_birds.commands.parsing import add_name_pattern, new_command


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_synthesize, _add_download, _add_check, _add_report, _add_split):
        add(commands)


def _add_synthesize(commands: Any) -> None:
    command = new_command(
        commands,
        "synthesize",
        "make an archive of invented birds in the Kenyan format",
        "Makes an archive of invented birds in the Kenyan format: recordings, annotations, species.",
    )
    command.add_argument("data_dir", type=Path, help="folder to make; new or empty")
    command.add_argument("--recordings", type=int, default=12, help="number of recordings")
    command.add_argument("--duration_s", type=float, default=60.0, help="length of a recording in seconds")
    command.add_argument("--species", type=int, default=8, help="number of species")
    command.add_argument("--annotations", type=int, help="number of calls; by default in keep with the length")
    command.add_argument("--seed", type=int, default=0, help="same seed, same archive")
    command.set_defaults(run=_synthesize)


def _synthesize(options: argparse.Namespace) -> None:
    from kenya_birds.data.synthetic import synthesize_archive

    synthesize_archive(
        options.data_dir,
        recordings=options.recordings,
        duration_s=options.duration_s,
        species=options.species,
        annotations=options.annotations,
        seed=options.seed,
    )
    print(f"The archive is in {options.data_dir}")


def _add_download(commands: Any) -> None:
    command = new_command(
        commands,
        "download",
        "fetch the Kenyan soundscapes from Zenodo",
        "Fetches an archive of soundscapes from Zenodo and unpacks it; goes on where it was stopped.",
    )
    command.add_argument("data_dir", type=Path, help="folder of the archive; a run that was stopped goes on there")
    command.add_argument("--record", type=int, default=10943500, help="number of the Zenodo record")
    command.add_argument("--keep_zip", action="store_true", help="keep soundscape_data.zip when it is unpacked")
    command.add_argument("--api_url", default="https://zenodo.org/api/records", help=argparse.SUPPRESS)
    command.set_defaults(run=_download)


def _download(options: argparse.Namespace) -> None:
    from kenya_birds.data.download import download_record

    download_record(options.data_dir, options.record, api_url=options.api_url, keep_zip=options.keep_zip)
    print(f"The archive is in {options.data_dir}")


def _add_check(commands: Any) -> None:
    command = new_command(
        commands,
        "check",
        "read a whole archive and list what is wrong",
        "Reads every recording to its last frame and every row of the tables. The exit code is 0 if training can use "
        "everything, 1 if not.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, default=Path("check.csv"), help="CSV to write")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    command.add_argument("--num_proc", type=int, default=1, help="processes that read recordings")
    command.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> None:
    from kenya_birds.data.check import check_archive, format_check, write_check
    from kenya_birds.output_files import check_output

    check_output(options.output, options.overwrite)
    check = check_archive(options.data_dir, num_proc=options.num_proc)
    write_check(check, options.output, overwrite=options.overwrite)
    print(format_check(check))
    print(f"The table is in {options.output}")
    raise SystemExit(0 if check.is_usable else 1)


def _add_report(commands: Any) -> None:
    command = new_command(
        commands,
        "report",
        "describe an archive on one HTML page",
        "Describes an archive on one HTML page: species, sound, overlaps, activity, split, tables.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, default=Path("report.html"), help="HTML file to write")
    command.add_argument("--min_annotations", type=int, default=10, help="rarer species are left out of the split")
    command.add_argument("--seed", type=int, default=0, help="chooses the call whose spectrograms are shown")
    command.add_argument("--balanced", action="store_true", help="describe the balanced split too (up to a minute)")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    add_name_pattern(command)
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from kenya_birds.data.name_pattern import NamePattern
    from kenya_birds.exploration.report import write_report

    output = write_report(
        options.data_dir,
        options.output,
        min_annotations=options.min_annotations,
        seed=options.seed,
        balanced=options.balanced,
        overwrite=options.overwrite,
        name_pattern=NamePattern.of(options.name_pattern),
    )
    print(f"The report is in {output}")


def _add_split(commands: Any) -> None:
    command = new_command(
        commands,
        "split",
        "divide an archive's recordings into train, validation and test, or into folds",
        "Divides an archive's recordings into train, validation and test, or into folds, and says how good that is.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, required=True, help="CSV to write: recording,split or recording,fold")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    command.add_argument("--strategy", choices=("seed", "balanced"), default="balanced", help="how to divide")
    command.add_argument("--folds", type=int, help="number of folds; by default there are three splits")
    command.add_argument("--min_annotations", type=int, default=10, help="species with fewer are left out")
    command.add_argument("--test_size", type=float, default=0.2, help="share of the test split")
    command.add_argument("--validation_size", type=float, default=0.2, help="share of the validation split")
    command.add_argument("--seed", type=int, default=42, help="seed of the seed strategy")
    command.add_argument("--time_limit_s", type=float, default=60.0, help="when the balanced strategy stops looking")
    add_name_pattern(command)
    command.set_defaults(run=_split)


def _split(options: argparse.Namespace) -> None:
    from kenya_birds.data.archive import read_archive, select_classes
    from kenya_birds.data.balanced_split import make_splits
    from kenya_birds.data.name_pattern import NamePattern
    from kenya_birds.data.split_audit import audit_split, format_audit
    from kenya_birds.data.splits import write_splits
    from kenya_birds.output_files import check_output

    name_pattern = NamePattern.of(options.name_pattern)
    check_output(options.output, options.overwrite)
    archive = read_archive(options.data_dir)
    annotations = archive.annotations
    annotations = annotations[annotations["species"].isin(select_classes(annotations, options.min_annotations))]
    table = make_splits(
        annotations,
        options.strategy,
        folds=options.folds,
        test_size=options.test_size,
        validation_size=options.validation_size,
        seed=options.seed,
        time_limit_s=options.time_limit_s,
        same_sound=archive.same_sound(),
    )
    write_splits(table, options.output, overwrite=options.overwrite)
    train_size = 1 - options.test_size - options.validation_size
    targets = {"train": train_size, "validation": options.validation_size, "test": options.test_size}
    print(format_audit(audit_split(annotations, table, targets=targets, name_pattern=name_pattern)))
    print(f"The {'folds' if options.folds else 'splits'} are in {options.output}")
