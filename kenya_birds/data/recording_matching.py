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
        tables: Paths of tables for one recording each (see `find`), named as their recording, below the folder of the
            tables.
    """

    def __init__(self, recordings: Iterable[str], tables: Collection[str] = ()) -> None:
        self._by_name, self._by_stem = _Named(), _Named()
        for recording in recordings:
            *folders, key = _parts(recording)
            self._by_name.add(key, recording, tuple(folders))
            self._by_stem.add(_stem(key), recording, tuple(folders))
        self._tables: set[tuple[str, ...]] = set()
        self._with_own: set[tuple[str, ...]] = set()
        self._owned: set[str] = set()
        owners = {table: self.find(table, table.rpartition("/")[0], is_of_table=True).recording for table in tables}
        self._tables = {_parts(table)[:-1] for table in tables}
        # Folders of tables that lie as those of their recordings do, and these recordings.
        for table, owned in owners.items():
            if owned is not None and (common_folders(table, owned) or "/" not in table + owned):
                self._with_own.add(_parts(table)[:-1])
                self._owned.add(owned)

    def find(self, name: str, folder: str = "", *, is_of_table: bool = False) -> Match:
        """Finds a recording.

        Args:
            name: Name or path, with `/`, with or without suffix.
            folder: Folder of the table. Of recordings below it, only the path from there on must agree.
            is_of_table: Whether the name is that of a table for one recording. Such a table may lie in another folder
                than its recording (`tables/a.txt`, `recordings/a.wav`), unless that folder has tables too. With
                another last folder, the recording may not have a table in a folder named as its own, and the table's
                folder may not have a table of a recording in a folder named as this one.
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
        for recording, own in alike:
            is_below = own[: len(table)] == table
            places = [own, own[len(table) :]] if is_below else [own]
            common = [_common(place, folders) for place in places]
            agrees = any(n == min(len(place), len(folders)) for n, place in zip(common, places, strict=True))
            is_alone = folders not in self._with_own and recording not in self._owned
            if agrees or (is_of_table and own not in self._tables and (max(common) > 0 or is_alone)):
                is_exact = own == folders or (is_below and own == (*table, *folders))
                found.append(((is_exact, max(common), is_below and bool(table)), recording))
        return found


def names_elsewhere(
    found: Mapping[str, str], paths: Mapping[str, str], *, is_each_alone: bool = False
) -> dict[str, str]:
    """Finds the names in one table whose recording is in another folder than the one with the same file name.

    Recorders name files by their time, so sites share file names. With the recordings in `sound/site1`, `site2/a.wav`
    is another recording if the table has names such as `site1/b.wav`. Otherwise nothing is known of folders above
    those of the recordings, because recordings may have been moved.

    Args:
        found: Recording that was found, by name in the table.
        paths: Absolute path of each recording, with `/`.
        is_each_alone: Whether only other names of the same recording show it.

    Returns:
        The reason by name.
    """
    above: dict[str, str] = {}
    here: dict[str, str] = {}
    for name, recording in found.items():
        folders, own, whole = _parts(name)[:-1], _parts(recording)[:-1], _parts(paths[recording])[:-1]
        known = len(own)
        agree = all(one[len(one) - known :] == own for one in (folders, whole))
        if agree and min(len(folders), len(whole)) > known:
            above[name], here[name] = folders[-known - 1], whole[-known - 1]
    fits = {found[name] if is_each_alone else "" for name in above if above[name] == here[name]}
    return {
        name: f"the recording with this name is in the folder {here[name]}, not in {above[name]}"
        for name in above
        if above[name] != here[name] and (found[name] if is_each_alone else "") in fits
    }


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
