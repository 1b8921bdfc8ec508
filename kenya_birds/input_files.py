"""What users give commands to read, checked at once: whether it is there and looks like what is expected of it."""

from pathlib import Path

from kenya_birds.errors import UserError

ANNOTATIONS_FILE = "annotations.csv"
SPECIES_FILE = "species.csv"
RECORDINGS_FOLDER = "soundscape_data"


def check_layout(data_dir: str | Path) -> None:
    """Raises `UserError` unless the archive's folder, its two tables and its folder of recordings are there."""
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(
            f"no archive at {data_dir}: expected a folder with {ANNOTATIONS_FILE}, {SPECIES_FILE} and "
            f"{RECORDINGS_FOLDER}/"
        )
    for name in (ANNOTATIONS_FILE, SPECIES_FILE):
        if not (data_dir / name).is_file():
            raise UserError(f"no {name} in {data_dir}: an archive needs it")
    if not (data_dir / RECORDINGS_FOLDER).is_dir():
        raise UserError(f"no folder {RECORDINGS_FOLDER}/ in {data_dir}: unpack the recordings there")


def check_file(path: str | Path | None, what: str) -> None:
    """Raises `UserError` unless a file is there.

    Args:
        path: The file; None: none was given.
        what: What is expected, such as `a table of splits`.
    """
    if path is None or Path(path).is_file():
        return
    if Path(path).exists():
        raise UserError(f"{path} is not a file: expected {what}")
    raise UserError(f"there is no file {path}: expected {what}")


def check_suffix(path: str | Path, suffixes: tuple[str, ...], what: str) -> None:
    """Raises `UserError` unless a path ends in one of the suffixes.

    Args:
        path: The path.
        suffixes: Such as `(".png", ".svg")`.
        what: What is expected, such as `a picture`.
    """
    if Path(path).suffix not in suffixes:
        raise UserError(f"{path} is not the name of {what}: expected a name that ends in {' or '.join(suffixes)}")
