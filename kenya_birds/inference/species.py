"""Names of a model's species, and species lists of users."""

import difflib
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kenya_birds.errors import UserError
from kenya_birds.files import read_text
from kenya_birds.saved_models import SavedModel
from kenya_birds.values import counted, first_names

logger = logging.getLogger(__name__)


class SpeciesNames(NamedTuple):
    """Names of a species.

    Attributes:
        common_name: English name; the code if the model has no name.
        scientific_name: Scientific name; empty if the model has none.
    """

    common_name: str
    scientific_name: str


def species_names(classes: Sequence[str], species: Mapping[str, Mapping[str, str]] | None) -> dict[str, SpeciesNames]:
    """Returns names by eBird code, in the order of the classes.

    Args:
        classes: eBird codes by class id.
        species: Names in the model's config (see `KenyaBirdsConfig`).
    """
    known = species or {}
    return {
        code: SpeciesNames(
            known.get(code, {}).get("common_name") or code, known.get(code, {}).get("scientific_name") or ""
        )
        for code in classes
    }


def names_in(saved: SavedModel) -> dict[str, SpeciesNames]:
    """Returns the names of a model's species by code, without loading the model.

    Raises:
        UserError: If its config.json does not list species.
    """
    labels = saved.config.get("id2label")
    if not isinstance(labels, dict):
        raise UserError(f"'{saved.name}' has no list of species: expected id2label in its config.json")
    return species_names([str(labels[label]) for label in sorted(labels, key=int)], saved.config.get("species"))


def read_species(
    path: str | Path, known: Mapping[str, SpeciesNames], skipped: list[str] | None = None
) -> tuple[str, ...]:
    """Reads a list of species.

    Each line has an eBird code, a common name, a scientific name, or both names as in BirdNET
    (`Scientific name_Common Name`). Upper and lower case are equal; `#` starts a comment.

    Args:
        path: A text file (see `read_text` for its encoding).
        known: The model's species by code (see `species_names`).
        skipped: Gets the names that are not known, with their lines; None: such a name is an error.

    Returns:
        eBird codes, each once, in the order of `known`.

    Raises:
        UserError: If the file cannot be read or has no species, or a name is unknown to the model or ambiguous.
    """
    try:
        text, _ = read_text(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: expected a text file with one species per line") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a list of species: {error}") from None
    codes_of = _index(known)
    found = set()
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        codes = _codes(name, codes_of)
        if skipped is not None and not codes:
            skipped.append(f"{name} (line {number})")
        else:
            found.add(_single(name, codes, codes_of, known, f"line {number} of {path}"))
    if not found and not skipped:
        raise UserError(f"{path} has no species: expected one per line, by eBird code or name")
    return tuple(code for code in known if code in found)


def read_found_species(path: str | Path, known: Mapping[str, SpeciesNames], found: str | Path) -> tuple[str, ...]:
    """Reads a list of species of which only those with detections are wanted; the others are logged.

    Args:
        path: See `read_species`.
        known: Species with detections by code.
        found: Where the detections are, for messages.

    Returns:
        eBird codes, each once, in the order of `known`.

    Raises:
        UserError: If the file cannot be read, or no species in it has a detection.
    """
    skipped: list[str] = []
    chosen = read_species(path, known, skipped)
    shown = first_names(skipped, 5)
    if not chosen:
        raise UserError(
            f"{found} has no detection of a species in {path}: found {shown}; give codes or names of its species, "
            f"such as {', '.join(list(known)[:3])}"
        )
    if skipped:
        logger.warning(
            "Skipped %s in %s without a detection in %s: %s", counted(len(skipped), "name"), path, found, shown
        )
    return chosen


def _index(known: Mapping[str, SpeciesNames]) -> dict[str, set[str]]:
    """Returns codes by every name of a species."""
    codes_of: dict[str, set[str]] = defaultdict(set)
    for code, names in known.items():
        for name in (code, *names):
            if name:
                codes_of[_plain(name)].add(code)
        codes_of[_plain(f"{names.scientific_name}_{names.common_name}")].add(code)
    return codes_of


def _codes(name: str, codes_of: Mapping[str, set[str]]) -> set[str]:
    codes = codes_of.get(_plain(name), set())
    if not codes and "_" in name:
        # One of BirdNET's two names may be in another language, or from another edition of the checklist.
        codes = {code for part in name.split("_", 1) for code in codes_of.get(_plain(part), set())}
    return codes


def _single(
    name: str, codes: set[str], codes_of: Mapping[str, set[str]], known: Mapping[str, SpeciesNames], where: str
) -> str:
    """Returns the only code; raises `UserError` if there are none or several."""
    if len(codes) > 1:
        raise UserError(f"'{name}' ({where}) may be any of {', '.join(sorted(codes))}: give the eBird code instead")
    if not codes:
        close = difflib.get_close_matches(_plain(name), codes_of, n=3, cutoff=0.7)
        meant = sorted({code for match in close for code in codes_of[match]})
        hint = (
            f"did you mean {' or '.join(f'{code} ({known[code].common_name})' for code in meant)}?"
            if meant
            else f"it has {len(known)} species, such as {', '.join(list(known)[:3])}"
        )
        raise UserError(f"the model has no species '{name}' ({where}): {hint}")
    return next(iter(codes))


def _plain(name: str) -> str:
    """Normalises a name for comparison."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())
