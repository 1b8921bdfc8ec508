"""Groups of recordings that a split keeps together: those of a site, or of a night at a site."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import tzinfo
from typing import Literal

import numpy as np

from kenya_birds.data.archive import Archive
from kenya_birds.data.recorder_header import read_recorder_header
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import NIGHT_START, TimeAndPlace, find_time_and_place, log_headers
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

GroupBy = Literal["site", "night"]
# Recorders whose satellite positions differ less are at one site.
SAME_PLACE_M = 100.0
EARTH_RADIUS_M = 6_371_000.0
# Folders that recorders and people make within that of a site: one for each day, or that of the card.
_NO_SITE = re.compile(r"(19|20)\d\d[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])|data|dcim", re.IGNORECASE)


def find_places(
    archive: Archive, *, name_pattern: NamePattern | None = None, time_zone: tzinfo | None = None
) -> dict[str, TimeAndPlace]:
    """Finds when and where the recordings of an archive begin, from names, headers and folders.

    A recording's site is that in its name, else its folder in the archive (without folders of days, and without
    `Data`), else the place of the coordinates in its header, else its folder. Recorders within 100 m of each other are
    at one site, and so are chains of them. Sites of different archives that were joined are different.

    Args:
        archive: The archive.
        name_pattern: Pattern that reads site and time from the names of recordings (see `parse_recording_name`).
        time_zone: Time zone of recorders on local clocks (see `find_time_and_place`).

    Returns:
        By recording, those without a call too; `site` is None if it is unknown.

    Raises:
        UserError: If the pattern fits no name.
    """
    names = sorted(archive.headers)
    if name_pattern is not None:
        name_pattern.check(name.rpartition("/")[2] for name in names)
    found = []
    for name in names:
        header = read_recorder_header(archive.recording_path(name))
        place = find_time_and_place(name.rpartition("/")[2], pattern=name_pattern, header=header, time_zone=time_zone)
        found.append((name, header, place))
    log_headers(found)
    folders = {name: name.removeprefix(f"{archive.archive_of.get(name, '')}/").rpartition("/")[0] for name in names}
    unnamed = {name: place for name, _, place in found if not (place.site or _folder_of_site(folders[name]))}
    located = _sites_by_position(unnamed)
    places = {}
    for name, _, place in found:
        origin = archive.archive_of.get(name, "")
        # The first folder of a recording in a joined archive is its archive.
        site = place.site or _folder_of_site(folders[name]) or located.get(name) or folders[name] or None
        places[name] = replace(place, site=f"{origin}/{site}" if origin and site else site)
    return places


def find_groups(archive: Archive, places: Mapping[str, TimeAndPlace], group_by: GroupBy) -> list[list[str]]:
    """Groups the recordings of an archive by site, or by site and night.

    A night is from noon to noon, in local time, or in UTC if only that is known. Recordings whose group is unknown are
    alone, and are logged.

    Args:
        archive: The archive. Recordings of different archives that were joined are in different groups.
        places: See `find_places`.
        group_by: `site` or `night`.

    Returns:
        The names in each group, also of one recording; sorted.

    Raises:
        UserError: If the group of no recording is known.
    """
    groups, unknown = defaultdict(list), []
    for name, place in places.items():
        key = _key(place, group_by)
        if key is None:
            unknown.append(name)
        else:
            groups[archive.archive_of.get(name, ""), *key].append(name)
    if not groups:
        raise UserError(
            f"the {group_by} of no recording is known: expected names such as KEN_001_20211207_153852.flac, folders "
            f"or coordinates of sites, found {', '.join(unknown[:3])}; other names need a name pattern "
            "(--name_pattern)"
        )
    if unknown:
        logger.warning(
            "The %s of %d of %d recordings is unknown; each of them is alone (first: %s)",
            group_by,
            len(unknown),
            len(places),
            unknown[0],
        )
    return sorted([*groups.values(), *([name] for name in unknown)])


def _folder_of_site(folder: str) -> str:
    """Returns a folder without those within that of its site; an empty text if there is none."""
    folders = folder.split("/")
    while folders and _NO_SITE.fullmatch(folders[-1]):
        folders.pop()
    return "/".join(folders)


def _sites_by_position(places: Mapping[str, TimeAndPlace]) -> dict[str, str]:
    """Returns a name for the site of each recording with coordinates: those of one recording at the site."""
    # To a metre: recordings of one place are one point.
    found = {
        name: (round(place.latitude, 5) + 0.0, round(place.longitude, 5) + 0.0)  # no -0.0
        for name, place in places.items()
        if place.latitude is not None and place.longitude is not None
    }
    if not found:
        return {}
    from sklearn.cluster import DBSCAN  # takes half a second

    positions = sorted(set(found.values()))
    # With one sample, clusters are chains of neighbours.
    chains = DBSCAN(eps=SAME_PLACE_M / EARTH_RADIUS_M, min_samples=1, metric="haversine")
    sites: dict[int, str] = {}
    site_at = {
        position: sites.setdefault(chain, f"{position[0]:.5f} {position[1]:.5f}")
        for position, chain in zip(positions, chains.fit_predict(np.radians(positions)).tolist(), strict=True)
    }
    return {name: site_at[position] for name, position in found.items()}


def _key(place: TimeAndPlace, group_by: GroupBy) -> tuple[str, str] | None:
    """Returns site and night of a recording, the night only if it counts; None if unknown."""
    if group_by == "site":
        return (place.site, "") if place.site else None
    local, utc = place.times(-NIGHT_START)
    time = local or utc
    return None if time is None else (place.site or "", time.date().isoformat())


def merged(groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Merges groups that have a recording in common.

    Args:
        groups: Names of recordings.

    Returns:
        Groups without common recordings, each sorted; sorted.
    """
    group_of: dict[str, set[str]] = {}
    for names in groups:
        whole = set(names).union(*(group_of[name] for name in names if name in group_of))
        group_of |= dict.fromkeys(whole, whole)
    return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())


def check_group_count(groups: Sequence[Sequence[str]], group_by: GroupBy, least: int) -> None:
    """Raises `UserError` if there are too few groups to divide.

    Args:
        groups: See `merged`.
        group_by: `site` or `night`.
        least: Smallest number of groups.
    """
    if len(groups) < least:
        raise UserError(
            f"the annotated recordings are of {len(groups)} {group_by}{'' if len(groups) == 1 else 's'}: expected "
            f"{least} or more, because no {group_by} is divided"
        )
