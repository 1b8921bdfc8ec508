"""Finds the recording that a table means, by its name or path, also in another folder or with another suffix."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from kenya_birds.data.sound_files import is_named_as_sound


@dataclass(frozen=True)
class Match:
    """Result of a search.

    Attributes:
        recording: The recording; None if there is none, or it is uncertain which one is meant.
        others: Recordings with this file name that are in another folder, or among which the name does not decide.
        is_renamed: Whether the recording has another suffix than the table says.
    """

    recording: str | None
    others: tuple[str, ...] = ()
    is_renamed: bool = False


class RecordingFinder:
    """Finds recordings by names in tables.

    The file names must be equal, apart from upper and lower case, the encoding of accents, and the suffix if no
    recording has the same one. If both the table and the recording are in folders, these must agree as far as both
    are known, from the last one on: `D:/old/site1/a.wav` is `site1/a.wav`, and not `site2/a.wav`.

    Args:
        recordings: Paths of the recordings below their folder, with `/`.
        tables: Folders with tables for one recording each (see `find`), below the folder of the tables.
    """

    def __init__(self, recordings: Iterable[str], tables: Collection[str] = ()) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._tables = {_parts(folder) for folder in tables}
        for recording in recordings:
            key = _parts(recording)[-1]
            self._by_name[key].append(recording)
            self._by_stem[_stem(key)].append(recording)

    def find(self, name: str, folder: str = "", *, is_of_table: bool = False) -> Match:
        """Finds a recording.

        Args:
            name: Name or path, with `/`, with or without suffix.
            folder: Folder of the table. Of recordings below it, only the path from there on must agree.
            is_of_table: Whether the name is that of a table for one recording. Such a table may lie in another folder
                than its recording (`tables/a.txt`, `recordings/a.wav`), unless that folder has tables too.
        """
        *folders, key = _parts(name)
        table = list(_parts(folder + "/x")[:-1])
        alike = self._by_name.get(key, [])
        is_renamed = False
        if not alike:
            alike = self._by_stem.get(key) or self._by_stem.get(_stem(key)) or []
            is_renamed = is_named_as_sound(key)
        found = []
        for recording in alike:
            *own, _ = _parts(recording)
            is_below = own[: len(table)] == table
            places = [own, own[len(table) :]] if is_below else [own]
            common = [_common(place, folders) for place in places]
            agrees = any(n == min(len(place), len(folders)) for n, place in zip(common, places, strict=True))
            if agrees or (is_of_table and tuple(own) not in self._tables):
                is_exact = own == folders or (is_below and own == [*table, *folders])
                found.append((is_exact, max(common), is_below and bool(table), recording))
        best = [recording for *rank, recording in found if rank == max(rank for *rank, _ in found)]
        if len(best) == 1:
            return Match(best[0], is_renamed=is_renamed)
        return Match(None, tuple(best or alike))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns how many folders are equal, from the last one on."""
    pairs = enumerate(zip(reversed(one), reversed(other), strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _parts(name: str) -> tuple[str, ...]:
    """Returns the folders and the name of a path, for comparison."""
    parts = unicodedata.normalize("NFC", name).casefold().split("/")
    return (*(part for part in parts[:-1] if part not in ("", ".")), parts[-1])


def _stem(key: str) -> str:
    return key.rpartition(".")[0] if is_named_as_sound(key) and not key.startswith(".") else key
