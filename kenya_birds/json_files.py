"""JSON files that runs leave and read."""

import json
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.output_files import whole_file


def write_json(content: dict[str, Any], path: Path, *, allow_nan: bool = True) -> None:
    """Writes JSON whole or not at all.

    Raises:
        ValueError: If there is a NaN, which is no JSON, and `allow_nan` is not set.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that a run left.

    Raises:
        UserError: If the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: expected what training left there ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: expected what training left there")
    return content
