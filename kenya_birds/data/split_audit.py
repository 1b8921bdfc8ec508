"""Audit of splits or folds: covered classes, proportions, and possible leakage between the parts."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from kenya_birds.data.recording_time import TimeAndPlace, find_time_and_place
from kenya_birds.data.splits import SPLITS
from kenya_birds.errors import UserError

DEFAULT_TARGETS = {"train": 0.6, "validation": 0.2, "test": 0.2}
NEAR = timedelta(hours=1)
SHOWN_NAMES = 20
TEXT_WIDTH = 100


@dataclass(frozen=True)
class SplitAudit:
    """Result of `audit_split`. A part is a split or a fold ("fold 0").

    Attributes:
        summary: `classes`, `annotations` and `recordings`: total counts. `covered_classes`: number of classes with
            annotations in every part. `classes_per_part`, `annotation_shares`, `recordings_per_part`,
            `recording_shares` and `targets`: by part. `unlearned`: classes without annotations in train, or in one
            fold only (no training data when that fold is tested). `unscored`: classes without annotations in test, or
            in any fold. `mean_distance` and `max_distance` over the classes, and the `farthest_class`.
            `repeated_recordings`: recordings in more than one part. `near_recordings`: pairs from one site that begin
            at most an hour apart and are in different parts. `sites`: number of sites. `unparsed_recordings`:
            recordings whose site or time is unknown. `unassigned_recordings`: annotated recordings in no part.
        per_class: Indexed by species: `annotations`, `recordings`, the number of annotations in each part, and
            `distance`: the total variation distance between the shares and the targets, NaN without annotations.
    """

    summary: dict[str, Any]
    per_class: pd.DataFrame


def audit_split(
    annotations: pd.DataFrame,
    splits: pd.DataFrame,
    *,
    targets: Mapping[str, float] | None = None,
    places: Mapping[str, TimeAndPlace] | None = None,
) -> SplitAudit:
    """Audits splits or folds from any source, faulty ones included.

    Args:
        annotations: `recording` and `species` of every annotation.
        splits: `recording` and `split` ("train", "validation" or "test"), or `recording` and `fold` (a number).
        targets: Target share of the annotations by split; by default 0.6, 0.2 and 0.2. Folds have equal targets.
        places: Site and start of each recording (see `find_places`); by default those in the names.

    Raises:
        UserError: If the recordings have no annotations, a column is missing, or a split or fold is unknown or has no
            target.
    """
    if annotations.empty:
        raise UserError("there are no annotations: expected at least one row")
    splits, wanted = _parts_and_targets(splits, targets)
    parts = list(wanted)
    with_part = annotations[["recording", "species"]].merge(splits, on="recording")
    if with_part.empty:
        raise UserError("no recording of the splits has annotations: expected splits of this archive")
    counts = pd.crosstab(with_part["species"], with_part["part"])
    counts = counts.reindex(index=sorted(annotations["species"].unique()), columns=parts, fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0)
    distance = (shares - pd.Series(wanted)).abs().sum(axis=1, skipna=False) / 2
    by_species = annotations.groupby("species")["recording"]
    per_class = pd.concat(
        [by_species.size().rename("annotations"), by_species.nunique().rename("recordings"), counts], axis=1
    ).assign(distance=distance)

    present = counts > 0
    is_folds = "train" not in parts
    recordings = splits["part"].value_counts().reindex(parts, fill_value=0)
    repeated = splits.loc[splits["recording"].duplicated(), "recording"]
    names = {
        name: find_time_and_place(name) if places is None else places.get(name, TimeAndPlace())
        for name in sorted(splits["recording"].unique())
    }
    parsed = {name: place for name, place in names.items() if place.site and place.start}
    summary = {
        "classes": len(counts),
        "annotations": len(annotations),
        "recordings": annotations["recording"].nunique(),
        "covered_classes": int(present.all(axis=1).sum()),
        "classes_per_part": {part: int(present[part].sum()) for part in parts},
        "annotation_shares": _shares(counts.sum()),
        "recordings_per_part": {part: int(recordings[part]) for part in parts},
        "recording_shares": _shares(recordings),
        "targets": wanted,
        "unlearned": list(counts.index[present.sum(axis=1) < 2 if is_folds else ~present["train"]]),
        "unscored": list(counts.index[~present.any(axis=1) if is_folds else ~present["test"]]),
        "mean_distance": float(distance.mean()),
        "max_distance": float(distance.max()),
        "farthest_class": distance.idxmax() if distance.notna().any() else None,
        "repeated_recordings": sorted(repeated.unique()),
        "near_recordings": _near_apart(parsed, splits),
        "sites": len({name.site for name in parsed.values()}),
        "unparsed_recordings": [name for name in names if name not in parsed],
        "unassigned_recordings": sorted(set(annotations["recording"]) - set(names)),
    }
    return SplitAudit(summary, per_class)


def format_audit(audits: SplitAudit | Mapping[str, SplitAudit]) -> str:
    """Renders one audit, or several named audits side by side, as text for a terminal."""
    audits = {"": audits} if isinstance(audits, SplitAudit) else audits
    columns = [dict(_figures(audit.summary)) for audit in audits.values()]
    figures = list(dict.fromkeys(figure for column in columns for figure in column))
    table = [["", *audits]] if any(audits) else []
    table += [[figure, *(column.get(figure, "-") for column in columns)] for figure in figures]
    widths = [max(len(row[index]) for row in table) for index in range(len(audits) + 1)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    for name, audit in audits.items():
        for title, items in audit_lists(audit.summary):
            text = f"{name}: {title}" if name else title
            more = [f"and {len(items) - SHOWN_NAMES} more"] if len(items) > SHOWN_NAMES else []
            text += f" ({len(items)}): {', '.join(items[:SHOWN_NAMES] + more)}"
            lines += textwrap.wrap(text, TEXT_WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(line.rstrip() for line in lines)


def _parts_and_targets(
    splits: pd.DataFrame, targets: Mapping[str, float] | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Returns the distinct pairs of `recording` and `part`, and the target of each part in order."""
    column = next((name for name in ("split", "fold") if name in splits.columns), None)
    if column is None or "recording" not in splits.columns:
        raise UserError(f"found columns {list(splits.columns)}: expected recording and split, or recording and fold")
    splits = splits[["recording", column]].rename(columns={column: "part"}).drop_duplicates()
    if column == "fold":
        folds = pd.to_numeric(splits["part"], errors="coerce")
        if folds.isna().any():
            raise UserError(f"found fold '{splits['part'][folds.isna()].iloc[0]}': expected numbers")
        numbers = sorted(folds.astype(int).unique())
        parts = "fold " + folds.astype(int).astype(str)
        return splits.assign(part=parts), {f"fold {number}": 1 / len(numbers) for number in numbers}
    unknown = sorted(set(splits["part"]) - set(SPLITS))
    if unknown:
        raise UserError(f"found splits {', '.join(map(str, unknown))}: expected {', '.join(SPLITS)}")
    targets = DEFAULT_TARGETS if targets is None else targets
    if set(targets) != set(SPLITS):
        raise UserError(f"found targets for {', '.join(targets)}: expected one target for each of {', '.join(SPLITS)}")
    return splits, {split: float(targets[split]) for split in SPLITS}


def _shares(numbers: pd.Series) -> dict[str, float]:
    return {str(part): float(number / numbers.sum()) for part, number in numbers.items()}


def _near_apart(names: dict[str, TimeAndPlace], splits: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns pairs of recordings from one site that begin at most `NEAR` apart and are in different parts."""
    pairs = []
    parts = {str(name): set(rows) for name, rows in splits.groupby("recording")["part"]}
    # Times with and without a time zone cannot be compared.
    ordered = []
    for name, place in names.items():
        local, utc = place.times(timedelta(0))
        ordered.append((place.site or "", utc is None, utc or local or datetime.max, name))
    ordered.sort()
    for index, (site, is_naive, start, first) in enumerate(ordered):
        for other_site, other_is_naive, other_start, second in ordered[index + 1 :]:
            if (site, is_naive) != (other_site, other_is_naive) or other_start - start > NEAR:
                break
            if len(parts[first] | parts[second]) > 1:
                pairs.append((first, second))
    return pairs


def _figures(summary: dict[str, Any]) -> list[tuple[str, str]]:
    figures = [("classes", str(summary["classes"])), ("  in every part", str(summary["covered_classes"]))]
    figures += [(f"  in {part}", str(number)) for part, number in summary["classes_per_part"].items()]
    figures.append(("annotations", str(summary["annotations"])))
    figures += [(f"  of them in {part}", f"{share:.1%}") for part, share in summary["annotation_shares"].items()]
    figures.append(("recordings", str(summary["recordings"])))
    figures += [(f"  of these in {part}", str(number)) for part, number in summary["recordings_per_part"].items()]
    return [
        *figures,
        ("classes' distance from the targets", ""),
        ("  mean", f"{summary['mean_distance']:.3f}"),
        ("  greatest", f"{summary['max_distance']:.3f}"),
        ("recordings in more than one part", str(len(summary["repeated_recordings"]))),
        ("recordings in no part", str(len(summary["unassigned_recordings"]))),
        ("sites", str(summary["sites"])),
        ("pairs from one site and hour in different parts", str(len(summary["near_recordings"]))),
        ("recordings without site and time", str(len(summary["unparsed_recordings"]))),
    ]


def audit_lists(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Returns the non-empty lists of an audit's summary: a title, and the classes, recordings or pairs."""
    lists = [
        ("cannot be learned", summary["unlearned"]),
        ("cannot be evaluated", summary["unscored"]),
        ("in more than one part", summary["repeated_recordings"]),
        ("in no part", summary["unassigned_recordings"]),
        ("from one site and hour in different parts", [" and ".join(pair) for pair in summary["near_recordings"]]),
    ]
    return [(title, items) for title, items in lists if items]
