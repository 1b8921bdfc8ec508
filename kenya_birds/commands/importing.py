"""Commands that import annotations of other programs, and write annotations for them."""

import argparse
from pathlib import Path
from typing import Any, Literal

from kenya_birds.commands.common import RUN_AGAIN, add_archive, add_channel
from kenya_birds.defaults import SIGNAL_DB
from kenya_birds.errors import UserError
from kenya_birds.parsing import add_general, add_option, new_command
from kenya_birds.values import LevelAbove, Whole

FORMS = "raven, audacity, kaleidoscope, birdnet, csv, folders (of species), or crowsetta:NAME"
# Our names of columns by the words of --columns.
COLUMN_WORDS = {
    "recording": "recording",
    "start": "start_s",
    "end": "end_s",
    "duration": "duration_s",
    "species": "label",
    "code": "code",
    "scientific_name": "scientific_name",
    "common_name": "common_name",
    "low": "low_hz",
    "high": "high_hz",
    "annotator": "annotator",
}


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    _add_import(commands)
    _add_export(commands)


def _add_import(commands: Any) -> None:
    command = new_command(
        commands,
        "import",
        "make an archive from tables of Raven, Audacity and other programs, or from folders of species",
        "Makes an archive from annotations of other programs, or from folders of species. The recordings stay where "
        "they are. Every row or recording that is not taken is listed in import_report.csv, with the reason.",
        "kenya-birds import selections --recordings sound --output archive\n"
        "kenya-birds import birds.csv --columns start=Begin,end=Finish --map names.csv --output archive\n"
        "kenya-birds import xeno-canto --from folders --map names.csv --output archive",
    )
    add_option(
        command,
        "source",
        Path,
        help="table of annotations, or folder with tables, subfolders included; or folder with a folder of recordings "
        "for each species",
    )
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, required=True, metavar="ARCHIVE", help="folder of the archive: new or empty")
    sound = command.add_argument_group("Recordings")
    add_option(
        sound, "--recordings", Path, metavar="FOLDER", help="folder of the recordings; by default that of SOURCE"
    )
    add_option(
        sound,
        "--all_recordings",
        bool,
        False,
        help="also take the recordings that no table names: they were looked at and have no call",
    )
    tables = command.add_argument_group("Tables")
    add_option(
        tables, "--from", str, metavar="FORMAT", help=f"{FORMS}; by default each table is recognised", dest="form"
    )
    add_option(
        tables,
        "--columns",
        str,
        metavar="NAME=COLUMN,...",
        help=f"columns with other names; names: {', '.join(COLUMN_WORDS)}",
    )
    add_option(tables, "--annotator", str, "", metavar="NAME", help="who annotated, if the tables do not say it")
    names = command.add_argument_group("Species")
    add_option(
        names,
        "--species_column",
        str,
        metavar="COLUMN",
        help="column with the species; other species columns are not read",
    )
    add_option(
        names,
        "--map",
        Path,
        metavar="FILE",
        help="CSV with the columns name and code (and scientific_name, common_name), or a species.csv; an empty code "
        "leaves the name out",
    )
    folders = command.add_argument_group("Folders of species")
    add_option(
        folders, "--signal_db", LevelAbove, SIGNAL_DB, help="sound that is so much louder than the noise is signal"
    )
    add_option(
        folders,
        "--pictures",
        Whole,
        0,
        help="recordings of each species to draw in ARCHIVE/pictures, with the parts that were chosen",
    )
    add_channel(folders)
    add_general(command)
    command.set_defaults(run=_import, after_stop=RUN_AGAIN)


def _add_export(commands: Any) -> None:
    command = new_command(
        commands,
        "export-annotations",
        "write the annotations of an archive for Raven, Audacity or a spreadsheet",
        "Writes the annotations of an archive for another program. `kenya-birds import` reads the corrected tables "
        "again.",
        "kenya-birds export-annotations archive --to raven --output selections\n"
        "kenya-birds import selections --recordings sound --output corrected",
    )
    add_archive(command)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, required=True, metavar="FOLDER", help="output folder: new or empty")
    add_option(
        output,
        "--to",
        Literal["raven", "audacity", "csv"],
        "raven",
        help="raven: a selection table for each recording; audacity: a label file for each recording; csv: one table "
        "with the columns of the collections on Zenodo",
    )
    add_general(command)
    command.set_defaults(run=_export, after_stop=RUN_AGAIN)


def _export(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_layout
    from kenya_birds.folders import check_new_folder

    check_layout(options.data_dir)
    check_new_folder(options.output)
    from kenya_birds.data.annotation_export import export_annotations

    files = export_annotations(options.data_dir, options.output, options.to)
    print(f"{len(files)} files are in {options.output}")


def _import(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_file
    from kenya_birds.folders import check_new_folder

    columns = _columns(options.columns)
    check_new_folder(options.output)
    check_file(options.map, "a table of names and codes")
    from kenya_birds.data.importing import REPORT_FILE, ImportSettings, format_import, import_annotations

    result = import_annotations(
        options.output,
        ImportSettings(
            options.source,
            recordings=options.recordings,
            form=options.form,
            species_column=options.species_column,
            columns=columns,
            names=options.map,
            annotator=options.annotator,
            all_recordings=options.all_recordings,
            channel=options.channel,
            signal_db=options.signal_db,
        ),
    )
    print(format_import(result))
    if options.pictures:
        from kenya_birds.inference.signal_pictures import PICTURES, draw_signal

        pictures = draw_signal(options.output, options.pictures, options.channel)
        print(f"{len(pictures)} pictures are in {options.output / PICTURES}")
    print(f"The archive is in {options.output}, with {REPORT_FILE}")


def _columns(text: str | None) -> dict[str, str]:
    """Reads `start=Begin,end=Finish`; a name of a column may contain a comma."""
    columns: dict[str, str] = {}
    last = None
    for part in (text or "").split(",") if text else ():
        word, equals, column = part.partition("=")
        if not equals and last is not None:
            columns[last] += f",{part}"
            continue
        if not equals or word.strip() not in COLUMN_WORDS or not column.strip():
            raise UserError(
                f"--columns has '{part}': expected NAME=COLUMN with one of the names {', '.join(COLUMN_WORDS)}"
            )
        last = COLUMN_WORDS[word.strip()]
        columns[last] = column.strip()
    return columns
