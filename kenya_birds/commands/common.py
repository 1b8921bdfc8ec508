"""Options, help texts and checks for several commands."""

import logging
from pathlib import Path
from typing import Any

from kenya_birds.parsing import add_option
from kenya_birds.values import Channel, Count, Device

MODEL = "model: a folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face Hub"
RECORDINGS = (
    "recording, folder, glob pattern, list of paths (.txt, one per line), or URL (such as https, s3, gs, az, hf, sftp)"
)
DETECTIONS = "table of detections: CSV, Parquet, or a selection table of Raven (.txt)"
RUN_AGAIN = "nothing was written; run the same command again"

logger = logging.getLogger("kenya_birds.commands")


def add_archive(command: Any, *, several: bool = False) -> None:
    """Adds the argument for the archive.

    Args:
        command: The command's parser.
        several: Whether it takes several archives. They are then in `data_dirs`; `one_archive` makes one of them.
    """
    text = "archive: a folder with annotations.csv, species.csv, and soundscape_data/ or recordings.csv"
    if several:
        text += "; several archives are joined"
        add_option(command, "data_dirs", Path, help=text, nargs="+", metavar="ARCHIVE")
    else:
        add_option(command, "data_dir", Path, help=text)


def add_name_pattern(group: Any) -> None:
    """Adds the option for the format of recordings' names (see `NamePattern`)."""
    add_option(
        group,
        "--name_pattern",
        str,
        metavar="PATTERN",
        help="format of the recordings' names with site and time, such as %site_%Y%m%d_%H%M%S, or a regular "
        "expression with named groups; by default the usual formats of recorders",
    )


def read_name_pattern(options: Any) -> Any:
    """The value of `--name_pattern` as a `NamePattern`.

    Raises:
        UserError: If it is not a valid pattern.
    """
    from kenya_birds.data.recording_name import NamePattern

    return NamePattern.of(options.name_pattern)


def add_channel(group: Any) -> None:
    """Adds the option for the channel that is read."""
    add_option(
        group,
        "--channel",
        Channel | None,
        help="channel of recordings with several: its number from 0, mix (their mean), or best (the clearest one of "
        "each recording); by default their mean, or the loudest one if they cancel each other",
    )


def add_time_zone(group: Any) -> None:
    """Adds the option for the time zone of the recorders."""
    add_option(
        group,
        "--time_zone",
        str,
        metavar="ZONE",
        help="time zone of recorders on local clocks, such as Africa/Nairobi or +03:00, to compute UTC from local "
        "times and local times from UTC; by default tables have only the times that names and headers state",
    )


def read_time_zone(options: Any) -> Any:
    """The value of `--time_zone` as a `tzinfo`.

    Raises:
        UserError: If there is no such time zone.
    """
    from kenya_birds.data.recording_time import parse_time_zone

    return parse_time_zone(options.time_zone)


def add_overwrite(group: Any) -> None:
    """Adds the option to replace an existing file."""
    add_option(group, "--overwrite", bool, False, help="replace the output if it exists")


def add_device(group: Any) -> None:
    """Adds the option for the device that runs the model."""
    add_option(group, "--device", Device, help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")


def add_speed(group: Any, unit: str) -> None:
    """Adds the options for the speed of inference. They do not change results.

    Args:
        group: An argument group of a parser.
        unit: Elements of a batch, such as `windows`.
    """
    add_device(group)
    add_option(group, "--batch_size", Count | None, help=f"{unit} per batch; by default 16 on a CPU, 128 on a GPU")
    add_option(
        group, "--num_workers", Count | None, help="threads that read sound; by default 1 on a CPU, up to 8 on a GPU"
    )


def add_cutting(group: Any) -> None:
    """Adds the options for cutting clips. They do not change results.

    Args:
        group: An argument group of a parser.
    """
    add_option(group, "--num_proc", Count | None, help="processes that cut clips; by default 1")
    add_option(
        group,
        "--cache_dir",
        Path | None,
        metavar="FOLDER",
        help="folder for cached clips; by default the cache of the datasets library",
    )


def check_overlap(saved: Any, overlap_s: float) -> None:
    """Raises `UserError` if the overlap is too large for a model's windows; skipped if their length is unknown.

    Args:
        saved: The model's files.
        overlap_s: Overlap of neighbouring windows in seconds.
    """
    from kenya_birds.files import read_json
    from kenya_birds.inference.windows import WindowGrid

    path = saved.folder / "preprocessor_config.json"
    about = read_json(path) if path.is_file() else {}
    clip_s, rate_hz = about.get("clip_s"), about.get("sampling_rate")
    if isinstance(clip_s, int | float) and isinstance(rate_hz, int):
        WindowGrid.with_overlap(round(clip_s * rate_hz), overlap_s, rate_hz)


def log_loading(model: str) -> None:
    """Logs that a model is being loaded, which takes seconds."""
    logger.info("Loading the model %s ...", model)
