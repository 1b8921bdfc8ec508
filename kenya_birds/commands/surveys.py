"""Commands that summarise detection runs: summary, histories."""

import argparse
from pathlib import Path
from typing import Any, Literal

from kenya_birds.commands.common import (
    RUN_AGAIN,
    add_name_pattern,
    add_overwrite,
    add_time_zone,
    read_name_pattern,
    read_time_zone,
)
from kenya_birds.parsing import add_general, add_option, new_command
from kenya_birds.values import NotNegative, Share, Whole, counted, first_names

FOUND = "output folder of kenya-birds detect, with a table in CSV or Parquet"


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_summary, _add_histories):
        add(commands)


def _add_summary(commands: Any) -> None:
    command = new_command(
        commands,
        "summary",
        "summarise a detection run on one HTML page, with clips to listen to",
        "Writes one HTML page about a detection run: species, activity by hour, the detections of each species "
        "with the highest and the lowest score, with sound and spectrogram, sites, and sound that was not analysed. "
        "The page needs no other file and no network.",
        "kenya-birds summary found --output summary.html",
    )
    add_option(command, "found", Path, help=FOUND)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path("summary.html"), metavar="FILE", help="HTML file to write")
    add_overwrite(output)
    content = command.add_argument_group("Clips")
    add_option(content, "--clips_of", Whole, 20, help="number of species with clips, those with the most detections")
    add_option(
        content,
        "--recordings",
        Path | None,
        metavar="FOLDER",
        help="folder of the recordings, if they are no longer where they were analysed",
    )
    add_general(command)
    command.set_defaults(run=_summary, after_stop=RUN_AGAIN)


def _summary(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_output

    check_output(options.output, options.overwrite)
    from kenya_birds.exploration.run_summary import write_summary

    output = write_summary(
        options.found,
        options.output,
        clips_of=options.clips_of,
        recordings=options.recordings,
        overwrite=options.overwrite,
    )
    print(f"The summary is in {output}")


def _add_histories(commands: Any) -> None:
    command = new_command(
        commands,
        "histories",
        "write detection histories (site x occasion) for occupancy models",
        "Writes for each species whether it was detected at each site on each occasion: 1, 0, or NA where no sound "
        "was analysed, because nothing was recorded, a file failed, or a section was damaged. Also writes the "
        "analysed hours, and a function that reads everything into R for unmarked and spOccupancy.",
        "kenya-birds histories low --unit night --sites sites.csv --verified verified --output histories",
    )
    add_option(command, "found", Path, help=FOUND)
    add_option(command, "--output", Path, required=True, metavar="FOLDER", help="folder to write: new or empty")
    occasions = command.add_argument_group("Occasions")
    add_option(
        occasions,
        "--unit",
        Literal["night", "day", "hour", "twilight"],
        "day",
        help="night: from noon to noon, by the date of the evening; twilight: from nautical dawn to sunrise and from "
        "sunset to nautical dusk, where place and UTC time are known",
    )
    add_option(
        occasions,
        "--min_effort_h",
        NotNegative,
        0.0,
        metavar="HOURS",
        help="an occasion of a site with fewer analysed hours is NA",
    )
    add_option(
        occasions,
        "--sites",
        Path | None,
        metavar="FILE",
        help="CSV of the sites, with a column site, and optional columns recordings (pattern of their paths, such as "
        "north/*), latitude, longitude and others, which are kept; by default sites are those of recordings.csv",
    )
    add_time_zone(occasions)
    add_name_pattern(occasions)
    accepted = command.add_argument_group("Accepted detections")
    add_option(
        accepted,
        "--threshold",
        Share | None,
        help="count detections with at least this score; by default all in the table",
    )
    add_option(
        accepted,
        "--verified",
        Path | None,
        metavar="FOLDER",
        help="output of kenya-birds verify read: its thresholds are used, detections that a person found wrong are "
        "left out, and confirmed ones are counted",
    )
    add_option(
        accepted,
        "--species",
        Path | None,
        metavar="FILE",
        help="write only the species in this file (one per line, eBird code or name); by default all detected ones",
    )
    add_general(command)
    command.set_defaults(run=_histories, after_stop=RUN_AGAIN)


def _histories(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_file
    from kenya_birds.folders import check_new_folder

    name_pattern, time_zone = read_name_pattern(options), read_time_zone(options)
    check_new_folder(options.output)
    check_file(options.sites, "a table of sites")
    check_file(options.species, "a list of species")
    from kenya_birds.inference.activity import ActivityClock
    from kenya_birds.verification.histories import OTHER_SITE
    from kenya_birds.verification.history_tables import HistorySettings, survey_histories

    settings = HistorySettings(
        options.unit, options.min_effort_h, options.threshold, options.verified, options.species
    )
    clock = ActivityClock(name_pattern, time_zone)
    histories = survey_histories(options.found, options.output, settings, sites=options.sites, clock=clock)
    for reason, count in histories.skipped.items():
        names = f" (their own sites: {first_names(histories.other_sites)})" if reason == OTHER_SITE else ""
        print(f"Skipped: {counted(count, 'recording')} {reason}{names}")
    if silent := histories.undetected:
        names = first_names(silent)
        print(f"Not detected, and therefore without a matrix: {len(silent)} species of the model ({names})")
    empty = [site for site, hours in zip(histories.sites, histories.effort_h.sum(axis=1), strict=True) if not hours]
    if empty:
        print(f"{counted(len(empty), 'site')} without recordings, with NA only: {first_names(empty)}")
    print(
        f"{len(histories.species)} species, {counted(len(histories.sites), 'site')}, "
        f"{counted(len(histories.occasions), 'occasion')} "
        f"({histories.clock}), {histories.effort_h.sum():.2f} analysed hours, "
        f"{counted(histories.detections.sum(), 'detection')}: {options.output}"
    )
