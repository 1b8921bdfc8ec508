"""Options and checks that several commands share."""

import logging
from pathlib import Path
from typing import Any

from kenya_birds.parsing import add_option
from kenya_birds.values import Count, Device

MODEL = "the model: a folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hub"
RECORDINGS = "a recording, a folder, a pattern, a list of paths (.txt, one per line), or a URL that fsspec knows"
DETECTIONS = "table of detections: CSV, Parquet or Raven's .txt"
RUN_AGAIN = "nothing was written; run the same command again"

logger = logging.getLogger("kenya_birds.commands")


def add_archive(command: Any) -> None:
    """Adds the archive."""
    add_option(command, "data_dir", Path, help="the archive: annotations.csv, species.csv, soundscape_data/")


def add_name_pattern(group: Any) -> None:
    """Adds the flag for names of recordings that are not read without help (see `NamePattern`)."""
    add_option(
        group,
        "--name_pattern",
        str,
        metavar="PATTERN",
        help="form of the recordings' names, such as %site_%Y%m%d_%H%M%S, or a regular expression with named groups; "
        "by default the usual forms of recorders are read",
    )


def read_name_pattern(options: Any) -> Any:
    """What `--name_pattern` says.

    Raises:
        UserError: If it is no pattern.
    """
    from kenya_birds.data.recording_name import NamePattern

    return NamePattern.of(options.name_pattern)


def add_overwrite(group: Any) -> None:
    """Adds the flag that lets a file be replaced."""
    add_option(group, "--overwrite", bool, False, help="replace the output if it exists")


def add_speed(group: Any, unit: str) -> None:
    """Adds the options of inference that do not change a result.

    Args:
        group: A group of a parser.
        unit: What a batch is of.
    """
    add_option(group, "--device", Device, help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
    add_option(group, "--batch_size", Count | None, help=f"{unit} per batch; by default 16 on a CPU, 128 on a GPU")
    add_option(group, "--num_workers", Count | None, help="threads that read; by default 1 on a CPU, up to 8 on a GPU")


def check_overlap(saved: Any, overlap_s: float) -> None:
    """Raises `UserError` if windows of a model cannot overlap by so much, as far as its files tell."""
    from kenya_birds.files import read_json
    from kenya_birds.inference.windows import WindowGrid

    path = saved.folder / "preprocessor_config.json"
    about = read_json(path) if path.is_file() else {}
    clip_s, rate_hz = about.get("clip_s"), about.get("sampling_rate")
    if isinstance(clip_s, int | float) and isinstance(rate_hz, int):
        WindowGrid.with_overlap(round(clip_s * rate_hz), overlap_s, rate_hz)


def log_loading(model: str) -> None:
    """Says that a model is being loaded, which takes seconds."""
    logger.info("Loading the model %s ...", model)
