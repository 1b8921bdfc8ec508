"""Detection histories: for each species, whether it was detected at each site on each occasion, and the effort."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from kenya_birds.data.recording_time import TimeAndPlace
from kenya_birds.errors import UserError
from kenya_birds.inference.analysed_stretches import analysed_stretches
from kenya_birds.inference.merged_detections import middles_s, spread_rows
from kenya_birds.verification.occasions import Occasion, Unit, clock_occasions, twilight_occasions

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
# Why a recording that has a site of its own is skipped.
OTHER_SITE = "without a matching row in the table of sites"


@dataclass(frozen=True)
class Recorded:
    """A recording of a survey.

    Attributes:
        site: Site; None if unknown.
        place: Time and place.
        duration_s: Length in seconds.
        gaps: Stretches that were not analysed, as start and end in seconds.
    """

    site: str | None
    place: TimeAndPlace
    duration_s: float
    gaps: Sequence[tuple[float, float]] = ()

    def analysed(self) -> list[tuple[float, float]]:
        """Returns the analysed stretches, in order."""
        return analysed_stretches(self.duration_s, self.gaps)


@dataclass(frozen=True)
class Histories:
    """Detection histories of species.

    Attributes:
        sites: Sites, in order.
        occasions: Occasions with any effort, in order: columns `occasion`, and `first` and `last` with the first and
            the last analysed moment of all sites.
        species: Columns `code`, `common_name`, `scientific_name`.
        effort_h: Analysed hours, shape `(sites, occasions)`. Time of several recorders of a site counts once.
        detections: Number of detections, shape `(species, sites, occasions)`.
        confirmed: Number of detections that a person confirmed, same shape.
        max_score: Highest score, same shape; NaN without a detection.
        clock: `local time` or `UTC`.
        skipped: Number of skipped recordings by reason.
        other_sites: Own sites of the recordings without a matching row in the table of sites.
        undecided: Codes of species without a threshold, of which only confirmed detections count.
        undetected: Codes of further species of the model, which have no history because nothing was detected.
    """

    sites: list[str]
    occasions: pd.DataFrame
    species: pd.DataFrame
    effort_h: np.ndarray
    detections: np.ndarray
    confirmed: np.ndarray
    max_score: np.ndarray
    clock: str
    skipped: Mapping[str, int] = field(default_factory=dict)
    other_sites: Sequence[str] = ()
    undecided: frozenset[str] = frozenset()
    undetected: Sequence[str] = ()

    def detected(self, min_effort_h: float = 0.0, species: slice = slice(None)) -> np.ndarray:
        """Returns 1 for detected, 0 for not detected and NaN for no information, shape `(species, sites, occasions)`.

        Args:
            min_effort_h: Occasions of a site with fewer analysed hours give no information. An occasion without any
                analysed sound never does, nor one without a detection of an undecided species.
            species: Species of the result.
        """
        known = (self.effort_h > 0) & (self.effort_h >= min_effort_h)
        is_decided = ~self.species["code"][species].isin(self.undecided).to_numpy()[:, None, None]
        is_detected = self.detections[species] > 0
        return np.where(known & (is_decided | is_detected), is_detected, np.nan)


def make_histories(
    recordings: Mapping[str, Recorded],
    detections: pd.DataFrame,
    unit: Unit,
    *,
    sites: Sequence[str] | None = None,
    species: Iterable[tuple[str, str, str]] = (),
) -> Histories:
    """Makes detection histories of a survey.

    Args:
        recordings: All recordings by path, including those without detections.
        detections: `recording`, `start_s`, `end_s`, `code`, `common_name`, `scientific_name`, `score`, `confirmed`
            (bool). A detection belongs to the occasion of its middle. A merged one belongs to all occasions in which
            the middle of a window of 3 s in it may be.
        unit: Length of the occasions.
        sites: Sites in the wanted order, also those without recordings; by default the sites of the recordings.
        species: Code, common and scientific name of further species, which have a history without a detection.

    Raises:
        UserError: If no recording has the time, site and place that the unit needs.
    """
    skipped: Counter[str] = Counter()
    spans, clock = _divide(recordings, unit, skipped)
    if not spans:
        told = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise UserError(
            f"none of {len(recordings)} recordings can be used ({told}): expected site, date and time in "
            "recordings.csv; see --name_pattern, --sites and --time_zone"
        )
    wanted = list(sites) if sites is not None else sorted({span.site for span in spans.values()})
    effort = _merge(spans.values())
    if not effort:
        raise UserError(f"no analysed sound of {len(spans)} recordings is in a {unit}: choose another unit")
    names = sorted({name for _, name in effort})
    site_at, occasion_at = ({name: at for at, name in enumerate(each)} for each in (wanted, names))
    effort_h = np.zeros((len(wanted), len(names)))
    for (site, name), times in effort.items():
        effort_h[site_at[site], occasion_at[name]] = sum((end - start) / HOUR for start, end in times)
    rows = _species(detections, species)
    shape = (len(rows), len(wanted), len(names))
    counts, confirmed = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    highest = np.full(shape, -np.inf)
    code = pd.Index(rows["code"]).get_indexer(detections["code"])
    score, is_confirmed = detections["score"].to_numpy(), detections["confirmed"].to_numpy().astype(np.int32)
    first_s, last_s = middles_s(detections)
    for path, found in detections.groupby("recording", sort=False).indices.items():
        recording = spans.get(str(path))
        if recording is None:
            continue
        row, occasion = recording.occasions_of(first_s[found], last_s[found], occasion_at)
        row = np.asarray(found)[row]
        place = np.ravel_multi_index((code[row], np.full_like(row, site_at[recording.site]), occasion), shape)
        np.add.at(counts.reshape(-1), place, 1)
        np.add.at(confirmed.reshape(-1), place, is_confirmed[row])
        np.maximum.at(highest.reshape(-1), place, score[row])
    highest[np.isinf(highest)] = np.nan
    others = {each.place.site for each in recordings.values() if each.site is None and each.place.site is not None}
    bounds = _bounds(effort, names)
    return Histories(wanted, bounds, rows, effort_h, counts, confirmed, highest, clock, dict(skipped), sorted(others))


@dataclass(frozen=True)
class _Divided:
    """A recording, divided into occasions.

    Attributes:
        site: Its site.
        begin: Its start on the clock of the histories.
        occasions: All occasions between its start and its end.
        analysed: Parts of them that were analysed.
    """

    site: str
    begin: datetime
    occasions: list[Occasion]
    analysed: list[Occasion]

    def occasions_of(
        self, first_s: np.ndarray, last_s: np.ndarray, occasion_at: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of detections in an occasion with effort, and the indices of their occasions.

        Args:
            first_s: First middle of each detection (see `middles_s`).
            last_s: Last middle of each detection.
            occasion_at: Index of each occasion with effort, by name.
        """
        bounds_s = [((part.start - self.begin) / SECOND, (part.end - self.begin) / SECOND) for part in self.occasions]
        starts_s, ends_s = np.array(bounds_s).reshape(-1, 2).T
        first, last = (np.searchsorted(starts_s, times_s, side="right") - 1 for times_s in (first_s, last_s))
        # Between occasions, such as outside twilight, is none.
        first = np.where((first < 0) | (first_s > np.append(ends_s, -np.inf)[first]), first + 1, first)
        row, at = spread_rows(first, last)
        number = np.array([occasion_at.get(part.name, -1) for part in self.occasions] + [-1])[at]
        return row[number >= 0], number[number >= 0]


def _divide(recordings: Mapping[str, Recorded], unit: Unit, skipped: Counter[str]) -> tuple[dict[str, _Divided], str]:
    """Divides the recordings that can be used, and returns the clock; counts the others by reason."""
    times = {path: recorded.place.times(timedelta(0)) for path, recorded in recordings.items()}
    is_local = unit != "twilight" and any(local is not None for local, _ in times.values())
    found = {}
    for path, recorded in recordings.items():
        local, utc = times[path]
        begin = local if is_local else utc
        if recorded.site is None:
            skipped["without a site" if recorded.place.site is None else OTHER_SITE] += 1
        elif begin is None:
            skipped["without a local time" if is_local else "without a UTC time"] += 1
        elif unit == "twilight" and _coordinates(recorded.place) is None:
            skipped["without a place"] += 1
        else:
            found[path] = _divide_one(recorded, recorded.site, begin, unit)
    return found, "local time" if is_local else "UTC"


def _coordinates(place: TimeAndPlace) -> tuple[float, float] | None:
    """Returns latitude and longitude; None if one is unknown."""
    return None if place.latitude is None or place.longitude is None else (place.latitude, place.longitude)


def _divide_one(recorded: Recorded, site: str, begin: datetime, unit: Unit) -> _Divided:
    def occasions(start_s: float, end_s: float) -> list[Occasion]:
        start, end = begin + SECOND * start_s, begin + SECOND * end_s
        if unit == "twilight":
            place = _coordinates(recorded.place)
            return [] if place is None else list(twilight_occasions(start, end, *place))
        return list(clock_occasions(unit, start, end))

    parts = [part for start_s, end_s in recorded.analysed() for part in occasions(start_s, end_s)]
    return _Divided(site, begin, occasions(0, recorded.duration_s), parts)


def _merge(divided: Iterable[_Divided]) -> dict[tuple[str, str], list[tuple[datetime, datetime]]]:
    """Returns the analysed time spans by site and occasion, without overlaps."""
    found: dict[tuple[str, str], list[tuple[datetime, datetime]]] = {}
    for recording in divided:
        for part in recording.analysed:
            found.setdefault((recording.site, part.name), []).append((part.start, part.end))
    for key, times in found.items():
        joined: list[tuple[datetime, datetime]] = []
        for start, end in sorted(times):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        found[key] = joined
    return found


def _bounds(effort: Mapping[tuple[str, str], list[tuple[datetime, datetime]]], names: list[str]) -> pd.DataFrame:
    """Returns the first and the last analysed moment of each occasion."""
    first: dict[str, datetime] = {}
    last: dict[str, datetime] = {}
    for (_, name), times in effort.items():
        first[name] = min(first.get(name, times[0][0]), times[0][0])
        last[name] = max(last.get(name, times[-1][1]), times[-1][1])
    form = {"timespec": "seconds"}
    rows = [(name, first[name].isoformat(**form), last[name].isoformat(**form)) for name in names]
    return pd.DataFrame(rows, columns=["occasion", "first", "last"])


def _species(detections: pd.DataFrame, further: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    columns = ["code", "common_name", "scientific_name"]
    rows = pd.concat([detections[columns], pd.DataFrame(list(further), columns=columns)])
    return rows.drop_duplicates("code").sort_values("code").reset_index(drop=True)
