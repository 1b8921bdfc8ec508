"""Commands about models at work: plot, activity."""

import argparse
from pathlib import Path
from typing import Any

from kenya_birds.commands.parsing import new_command


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_plot, _add_activity):
        add(commands)


def _add_plot(commands: Any) -> None:
    command = new_command(
        commands,
        "plot",
        "draw the spectrogram of a recording with what was detected in it",
        "Draws the spectrogram of a stretch of a recording with a labelled box for each detection. Detections of one "
        "species that overlap share a box, with the highest of their scores.",
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
    _add_output(command, "activity.png")
    command.set_defaults(run=_activity)


def _activity(options: argparse.Namespace) -> None:
    from kenya_birds.inference.activity import plot_activity

    activity = plot_activity(options.detections, options.output, overwrite=options.overwrite)
    if activity.left_out:
        print(f"Left out: {activity.left_out} recordings without {activity.clock} in their names")
    print(f"The activity of {len(activity.counts)} species is in {options.output}")


def _add_output(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--output", type=Path, default=Path(name), help="PNG, SVG or PDF to write")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
