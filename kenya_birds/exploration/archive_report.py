"""The report of an archive: one self-contained HTML page with tables, figures and the unused annotations."""

from collections.abc import Mapping
from datetime import tzinfo
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import torch
from markupsafe import Markup

from kenya_birds.data.archive import Archive, read_archive, select_classes
from kenya_birds.data.balanced_split import balanced_split
from kenya_birds.data.planning import plan_clips
from kenya_birds.data.recording_groups import find_places
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import TimeAndPlace
from kenya_birds.data.split_audit import SplitAudit, audit_lists, audit_split
from kenya_birds.data.splits import stratified_split
from kenya_birds.defaults import MIN_ANNOTATIONS
from kenya_birds.errors import UserError
from kenya_birds.exploration import charts
from kenya_birds.exploration.call_examples import change_clip, encode_clip, find_background, find_clear_call, listen
from kenya_birds.exploration.measures import (
    activity_along,
    activity_by_hour,
    frequency_thresholds,
    overlaps,
    recording_rows,
    rows_that_last,
    set_aside_rows,
    species_rows,
    summarize_spectral_ranges,
)
from kenya_birds.files import check_output, users_file
from kenya_birds.inference.activity import USUAL_CLOCK
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.values import Count, Seed, checked

CLIP_S = 3.0
MOST_SPECIES = 40
ROWS_PER_PICTURE = 60
MOST_DURATIONS = 30
MOST_OVERLAPS = 8
MOST_CALLS, CALL_CANDIDATES = 12, 6
FEATURE_NAMES = {"stft": "STFT", "mel": "Mel", "reassigned": "Reassigned"}


@checked
def write_report(
    data_dir: str | Path,
    output: str | Path,
    *,
    min_annotations: Count = MIN_ANNOTATIONS,
    seed: Seed = 0,
    balanced: bool = False,
    overwrite: bool = False,
    name_pattern: NamePattern | None = None,
    time_zone: tzinfo | None = None,
) -> Path:
    """Writes a report of an archive as an HTML page without other files, network access or scripts.

    The same archive and seed give the same page, byte for byte.

    Args:
        data_dir: The archive (see `read_archive`).
        output: HTML file to write; it is written completely or not at all.
        min_annotations: The split in the report excludes species with fewer annotations.
        seed: Chooses the call whose spectrograms are shown.
        balanced: Whether the report includes the balanced split. Its search stops after one minute; the page is
            reproducible only if the search ends before.
        overwrite: Whether an existing file is replaced.
        name_pattern: Form of the recordings' names with site and time (see `parse_recording_name`).
        time_zone: Time zone of recorders on local clocks (see `find_time_and_place`).

    Returns:
        `output`.

    Raises:
        UserError: If the archive cannot be read, or the page cannot be written or exists already.
    """
    output = Path(output)
    check_output(output, overwrite)
    archive = read_archive(data_dir)
    if archive.annotations.empty:
        raise UserError(
            f"{data_dir} has no annotation that can be used: in its {len(archive.verified)} recordings with checked "
            "detections, none is right; a report needs an annotation"
        )
    places = find_places(archive, name_pattern=name_pattern, time_zone=time_zone)
    page = render_page("report.html.jinja", _describe(archive, min_annotations, seed, balanced, places))
    with users_file(output) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    return output


def render_page(template: str, content: Mapping[str, Any]) -> str:
    """Renders an HTML page; texts are escaped.

    Args:
        template: File name of the template, in the folder of this module.
        content: Values for the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def _describe(
    archive: Archive, min_annotations: int, seed: int, balanced: bool, places: Mapping[str, TimeAndPlace]
) -> dict[str, Any]:
    """All values for the template."""
    annotations = archive.annotations
    names = {str(code): str(name or code) for code, name in archive.species["common_name"].items()}
    counts = annotations["species"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    top, bottom = frequency_thresholds(counts)
    duration_s = {name: header.duration_s for name, header in sorted(archive.headers.items())}
    sound = listen(archive)
    return {
        "name": archive.data_dir.resolve().name,
        "archive": archive,
        "hours": sum(duration_s.values()) / 3600,
        "rates_hz": sorted({header.sample_rate_hz for header in archive.headers.values()}),
        "counts": counts,
        "top": top,
        "bottom": bottom,
        "min_annotations": min_annotations,
        "kept": counts[counts >= min_annotations],
        "counts_svgs": [
            Markup(charts.draw_species_counts(counts.rename(index=names), *part, top, bottom, min_annotations))
            for part in _parts(len(counts))
        ],
        "problems": sound.problems,
        "recordings": recording_rows(archive, sound.levels, places),
        "species": species_rows(archive, counts),
        "set_aside": set_aside_rows(archive),
        **_durations(archive),
        **_spectral(sound.ranges, names),
        **_levels(sound.levels),
        **_overlaps(annotations),
        **_activity(archive, duration_s, places),
        "example": _example(archive, names, seed),
        "calls": _calls(archive, counts, names, seed),
        **_split(archive, min_annotations, balanced, places),
    }


def _parts(rows: int) -> list[tuple[int, int]]:
    """Splits a long list into charts that fit a printed page: first row, and last row plus one, of each."""
    return [(first, first + ROWS_PER_PICTURE) for first in range(0, rows, ROWS_PER_PICTURE)]


def _durations(archive: Archive) -> dict[str, Any]:
    points, lasting = rows_that_last(archive)
    drawn = len(lasting) > MOST_DURATIONS
    return {
        "points": points,
        "lasting": lasting,
        "lasting_shown": lasting.head(MOST_DURATIONS).to_dict("records"),
        "durations_svg": Markup(charts.draw_durations(lasting["duration_s"].to_numpy())) if drawn else None,
    }


def _spectral(ranges: pd.DataFrame, names: dict[str, str]) -> dict[str, Any]:
    measured = ranges.dropna()
    if measured.empty:
        return {"spectral": None}
    # Limits use centroids, because the lower end of a range is 0 if rumble is louder than the call.
    central_hz = (float(measured["centroid_hz"].quantile(0.01)), float(measured["centroid_hz"].quantile(0.99)))
    table = summarize_spectral_ranges(measured, MOST_SPECIES).rename(index=names)
    return {
        "spectral": {
            "calls": len(measured),
            "silent": len(ranges) - len(measured),
            "central_hz": central_hz,
            "table": table,
            "species": measured["species"].nunique(),
            "svg": Markup(charts.draw_spectral_ranges(table, central_hz)),
        }
    }


def _levels(levels: pd.DataFrame) -> dict[str, Any]:
    if levels.empty:
        return {"levels": None}
    shown = levels.rename(index=lambda name: name.rpartition(".")[0] or name)
    return {
        "levels": levels,
        "levels_svgs": [Markup(charts.draw_levels(shown, *part)) for part in _parts(len(shown))],
    }


def _overlaps(annotations: pd.DataFrame) -> dict[str, Any]:
    table = overlaps(annotations, CLIP_S)
    number = min(MOST_OVERLAPS, int(table["annotations"].max()))
    counts = table.clip(upper=number).apply(lambda column: column.value_counts()).reindex(range(1, number + 1))
    counts = counts.fillna(0).astype(int)
    more = " or more" if table["annotations"].max() > number else ""
    counts.index = [*map(str, range(1, number)), f"{number}{more}"]
    return {
        "overlaps": counts,
        "overlaps_most": table.max(),
        "overlaps_alone": (table == 1).mean(),
        "overlaps_svg": Markup(charts.draw_overlaps(counts / len(table))),
    }


def _activity(archive: Archive, duration_s: dict[str, float], places: Mapping[str, TimeAndPlace]) -> dict[str, Any]:
    along = activity_along(archive.annotations, duration_s)
    begins, clock = USUAL_CLOCK.begins({name: places[name] for name in duration_s})
    content: dict[str, Any] = {
        "along": along,
        "along_svg": Markup(charts.draw_activity_along(along)),
        "hours_of": None,
    }
    if begins:
        by_hour = activity_by_hour(archive.annotations, duration_s, begins)
        content["hours_of"] = {"recordings": len(begins), "table": by_hour, "clock": clock}
        content["hours_of"]["skipped"] = len(duration_s) - len(begins)
        content["hours_of"]["svg"] = Markup(charts.draw_activity_by_hour(by_hour, clock))
    return content


def _example(archive: Archive, names: dict[str, str], seed: int) -> dict[str, Any] | None:
    """Spectrograms of one call before and after noise reduction; None if no call can be read."""
    found = find_clear_call(archive, KenyaBirdsFeatureExtractor().sampling_rate, CLIP_S, seed)
    if found is None:
        return None
    f_max_hz = min(15_000.0, archive.headers[found.recording].sample_rate_hz / 2)
    waveform = torch.from_numpy(found.clip)[None]
    images = {}
    for feature_type, feature_name in FEATURE_NAMES.items():
        spectrograms = []
        for noise_reduction, title in (("none", "as recorded"), ("stationary", "noise reduced")):
            extractor = KenyaBirdsFeatureExtractor(
                noise_reduction=noise_reduction, feature_type=feature_type, f_max_hz=f_max_hz, do_standardize=False
            )
            with torch.no_grad():
                level_db = extractor.extract(waveform)[0].numpy()
            spectrograms.append((f"{feature_name}, {title}", level_db))
        images[feature_name] = charts.draw_spectrograms(
            spectrograms, CLIP_S, (extractor.f_min_hz, f_max_hz), mel=feature_type != "stft"
        )
    other = find_clear_call(archive, extractor.sampling_rate, CLIP_S, seed + 1) or found
    extractor = KenyaBirdsFeatureExtractor(f_max_hz=f_max_hz, do_standardize=False)
    background = find_background(archive, extractor.sampling_rate, CLIP_S)
    views = change_clip(found.clip, other.clip, background, extractor)
    edges_hz = (extractor.f_min_hz, f_max_hz)
    changes = [(view[0], charts.draw_spectrograms([view], CLIP_S, edges_hz, mel=True)) for view in views]
    return {
        "call": found,
        "name": names[found.species],
        "sound": encode_clip(found.clip, extractor.sampling_rate),
        "images": images,
        "changes": changes,
    }


def _calls(archive: Archive, counts: pd.Series, names: dict[str, str], seed: int) -> list[dict[str, Any]]:
    """A clear call of each of the most frequent species, to be played."""
    rate = KenyaBirdsFeatureExtractor().sampling_rate
    calls = []
    for code in counts.index[:MOST_CALLS]:
        found = find_clear_call(archive, rate, CLIP_S, seed, species=code, candidates=CALL_CANDIDATES)
        if found is not None:
            sound = encode_clip(found.clip, rate)
            calls.append({"name": names[code], "where": found.recording, "center_s": found.center_s, "sound": sound})
    return calls


def _split(
    archive: Archive, min_annotations: int, balanced: bool, places: Mapping[str, TimeAndPlace]
) -> dict[str, Any]:
    content: dict[str, Any] = {"balanced": balanced, "split": None, "split_problem": None}
    try:
        classes = select_classes(archive.annotations, min_annotations)
        clips = plan_clips(archive, classes, KenyaBirdsFeatureExtractor().sampling_rate, CLIP_S)
        clips = clips[~clips["recording"].isin(archive.partial)]
        same_sound = archive.same_sound()
        audits = {"stratified": audit_split(clips, stratified_split(clips, same_sound=same_sound), places=places)}
        if balanced:
            table = balanced_split(clips, same_sound=same_sound)
            audits["balanced"] = audit_split(clips, table, places=places)
        content["split"] = {name: _audit_tables(audit) for name, audit in audits.items()}
    except UserError as error:
        content["split_problem"] = str(error)
    return content


def _audit_tables(audit: SplitAudit) -> dict[str, Any]:
    """An audit in the form of the page: a table of the parts, single facts, and lists."""
    summary = audit.summary
    parts = [
        {
            "name": part,
            "recordings": summary["recordings_per_part"][part],
            "annotations": int(audit.per_class[part].sum()),
            "share": summary["annotation_shares"][part],
            "target": summary["targets"][part],
            "classes": summary["classes_per_part"][part],
        }
        for part in summary["targets"]
    ]
    facts = [
        ("species in every part", f"{summary['covered_classes']} of {summary['classes']}"),
        ("mean distance of a species' shares from the targets", f"{summary['mean_distance']:.3f}"),
        ("greatest distance of a species' shares from the targets", f"{summary['max_distance']:.3f}"),
        ("pairs of recordings from the same site and hour in different parts", str(len(summary["near_recordings"]))),
        ("recordings without a known site and time", str(len(summary["unparsed_recordings"]))),
    ]
    return {"parts": parts, "facts": facts, "lists": audit_lists(summary)}
