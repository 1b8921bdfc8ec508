"""Finds the recording that a table means, by its name or path, also in another folder or with another suffix."""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
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
        self._by_name, self._by_stem = _Named(), _Named()
        self._tables = {_parts(f"{folder}/x")[:-1] for folder in tables}
        self._table_folders = frozenset(name for folder in self._tables for name in folder)
        self._recording_folders: set[str] = set()
        for recording in recordings:
            *folders, key = _parts(recording)
            self._recording_folders.update(folders)
            self._by_name.add(key, recording, tuple(folders))
            self._by_stem.add(_stem(key), recording, tuple(folders))

    def find(self, name: str, folder: str = "", *, is_of_table: bool = False) -> Match:
        """Finds a recording.

        Args:
            name: Name or path, with `/`, with or without suffix.
            folder: Folder of the table. Of recordings below it, only the path from there on must agree.
            is_of_table: Whether the name is that of a table for one recording. Such a table may lie in another folder
                than its recording (`tables/a.txt`, `recordings/a.wav`), unless that folder has tables too. Folders
                with names that both recordings and tables have, such as those of sites, must be the same.
        """
        *folders, key = _parts(name)
        named, is_renamed = self._by_name, False
        if key not in named.all:
            named, is_renamed = self._by_stem, is_named_as_sound(key)
            key = key if key in named.all else _stem(key)
        alike = named.all.get(key, [])
        table = _parts(folder + "/x")[:-1]
        # Those that agree with the last folders come before all others: many sites may share a file name.
        near = [named.by_folders.get((key, *folders[-number:]), []) for number in (2, 1) if len(folders) >= number]
        ranked = (self._ranked(some, tuple(folders), table, is_of_table) for some in (*near, alike))
        found = next(filter(None, ranked), [])
        top = max((rank for rank, _ in found), default=None)
        best = [recording for rank, recording in found if rank == top]
        if len(best) == 1:
            return Match(best[0], is_renamed=is_renamed)
        return Match(None, tuple(best or (recording for recording, _ in alike)))

    def _ranked(
        self,
        alike: Sequence[tuple[str, tuple[str, ...]]],
        folders: tuple[str, ...],
        table: tuple[str, ...],
        is_of_table: bool,
    ) -> list[tuple[tuple[bool, int, bool], str]]:
        """Recordings that may be meant, with their ranks: the highest is the best."""
        found = []
        shared = self._recording_folders.intersection(folders)
        for recording, own in alike:
            is_below = own[: len(table)] == table
            places = [own, own[len(table) :]] if is_below else [own]
            common = [_common(place, folders) for place in places]
            agrees = any(n == min(len(place), len(folders)) for n, place in zip(common, places, strict=True))
            is_elsewhere = is_of_table and own not in self._tables and shared.issubset(own)
            if agrees or (is_elsewhere and self._table_folders.intersection(own).issubset(folders)):
                is_exact = own == folders or (is_below and own == (*table, *folders))
                found.append(((is_exact, max(common), is_below and bool(table)), recording))
        return found


def misplaced_names(found: Mapping[str, str]) -> dict[str, str]:
    """Finds the names in one table that do not mean the recording that was found for them.

    Recorders name files by their time, so sites share file names. A name is misplaced if the recording lies in a
    folder that other names of the table have, and not this one; or if names with different folders were found as one
    recording, except for the one whose folders agree most with the recording's path.

    Args:
        found: Absolute path of the recording that was found, by name in the table; all with `/`.

    Returns:
        The reason by name.
    """
    folders = {name: _parts(name)[:-1] for name in found}
    last = {of_name[-1] for of_name in folders.values() if of_name}
    why: dict[str, str] = {}
    alike: dict[str, list[str]] = {}
    for name, path in found.items():
        own = _parts(path)[:-1]
        if folders[name] and own and own[-1] in last and own[-1] not in folders[name]:
            why[name] = f"the recording with this name is in the folder {path.split('/')[-2]}"
        else:
            alike.setdefault(path, []).append(name)
    for path, names in alike.items():
        agreeing = {name: _common(folders[name], _parts(path)[:-1]) for name in names}
        order = sorted(names, key=lambda name: -agreeing[name])
        for name in names:
            for other in order:
                differ = _common(folders[name], folders[other]) < min(len(folders[name]), len(folders[other]))
                if differ and agreeing[other] >= agreeing[name]:
                    why[name] = f"the recording with this name may be that of {other}"
                    break
    return why


class _Named:
    """Recordings and their folders.

    Attributes:
        all: By name.
        by_folders: By name and the last folder, and by name and the last two.
    """

    def __init__(self) -> None:
        self.all: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        self.by_folders: dict[tuple[str, ...], list[tuple[str, tuple[str, ...]]]] = {}

    def add(self, name: str, recording: str, folders: tuple[str, ...]) -> None:
        """Adds a recording."""
        self.all.setdefault(name, []).append((recording, folders))
        for number in range(1, min(len(folders), 2) + 1):
            self.by_folders.setdefault((name, *folders[-number:]), []).append((recording, folders))


def stem_of(path: str) -> str:
    """Returns the name of a recording without suffix, for comparison, from its path with `/`."""
    return _stem(_parts(path)[-1])


def common_folders(one: str, other: str) -> int:
    """Returns how many folders of two paths with `/` are equal, from the last one on."""
    return _common(_parts(one)[:-1], _parts(other)[:-1])


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
