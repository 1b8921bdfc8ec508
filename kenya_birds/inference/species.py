"""Names of species: those of a model, and those that a user lists."""

import difflib
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kenya_birds.errors import UserError
from kenya_birds.saved_models import SavedModel


class SpeciesNames(NamedTuple):
    """How a species is called.

    Attributes:
        common_name: In English; its code where the model does not say it.
        scientific_name: Empty where the model does not say it.
    """

    common_name: str
    scientific_name: str


def species_names(classes: Sequence[str], species: Mapping[str, Mapping[str, str]] | None) -> dict[str, SpeciesNames]:
    """Names by eBird code, in the order of the classes.

    Args:
        classes: eBird codes by class id.
        species: What the model's config says of them (see `KenyaBirdsConfig`).
    """
    said = species or {}
    return {
        code: SpeciesNames(
            said.get(code, {}).get("common_name") or code, said.get(code, {}).get("scientific_name") or ""
        )
        for code in classes
    }


def names_in(saved: SavedModel) -> dict[str, SpeciesNames]:
    """Names of a model's species by code, before it is loaded.

    Raises:
        UserError: If its config.json does not say them.
    """
    labels = saved.config.get("id2label")
    if not isinstance(labels, dict):
        raise UserError(f"'{saved.name}' does not say its species: expected id2label in its config.json")
    return species_names([str(labels[label]) for label in sorted(labels, key=int)], saved.config.get("species"))


def read_species(path: str | Path, known: Mapping[str, SpeciesNames]) -> tuple[str, ...]:
    """Reads a list of species: one a line, by eBird code, common name, scientific name, or both names as BirdNET
    writes them (`Scientific name_Common Name`). Capitals do not matter; what follows a `#` is a comment.

    Args:
        path: A text file in UTF-8.
        known: The model's species by code (see `species_names`).

    Returns:
        eBird codes, each once, in the order of `known`.

    Raises:
        UserError: If the file cannot be read or names no species, or the model does not know a name, or two of its
            species have it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a list of species in UTF-8: {error}") from None
    codes_of = _index(known)
    found = set()
    for number, line in enumerate(lines, start=1):
        name = line.partition("#")[0].strip()
        if name:
            found.add(_find(name, codes_of, known, f"line {number} of {path}"))
    if not found:
        raise UserError(f"{path} names no species: expected one a line, by eBird code or name")
    return tuple(code for code in known if code in found)


def _index(known: Mapping[str, SpeciesNames]) -> dict[str, set[str]]:
    """Codes by each way to say a species."""
    codes_of: dict[str, set[str]] = defaultdict(set)
    for code, names in known.items():
        for name in (code, *names):
            if name:
                codes_of[_plain(name)].add(code)
        codes_of[_plain(f"{names.scientific_name}_{names.common_name}")].add(code)
    return codes_of


def _find(name: str, codes_of: Mapping[str, set[str]], known: Mapping[str, SpeciesNames], where: str) -> str:
    codes = codes_of.get(_plain(name), set())
    if not codes and "_" in name:
        # Of BirdNET's two names one may be in another language, or from another edition of the checklist.
        codes = {code for part in name.split("_", 1) for code in codes_of.get(_plain(part), set())}
    if len(codes) > 1:
        raise UserError(
            f"'{name}' ({where}) may be any of {', '.join(sorted(codes))}: give the eBird code of the one you mean"
        )
    if not codes:
        close = difflib.get_close_matches(_plain(name), codes_of, n=3, cutoff=0.7)
        meant = sorted({code for match in close for code in codes_of[match]})
        hint = (
            f"did you mean {' or '.join(f'{code} ({known[code].common_name})' for code in meant)}?"
            if meant
            else f"it knows {len(known)}, such as {', '.join(list(known)[:3])}"
        )
        raise UserError(f"the model does not know the species '{name}' ({where}): {hint}")
    return codes.pop()


def _plain(name: str) -> str:
    """A name as it is compared."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())
