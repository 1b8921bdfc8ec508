"""Recordings without clips, in splits and folds: most of their windows are examples without birds."""

from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from kenya_birds.data.archive import Archive


def without_clips(archive: Archive, with_clips: Iterable[str]) -> list[str]:
    """Readable recordings that are annotated and give no clips: without a call, or of rare species and unknown birds.

    Recordings whose annotations are all misplaced are not among them, as nobody knows where their calls are, and
    neither are those for training alone.

    Args:
        archive: The archive.
        with_clips: Recordings with clips.
    """
    placed = {*archive.silent, *archive.annotations["recording"], *archive.unknown["recording"]}
    return sorted((placed & set(archive.headers)) - set(with_clips) - archive.partial)


def with_others(
    table: pd.DataFrame,
    archive: Archive,
    same_sound: Sequence[Sequence[str]] = (),
    among: Collection[str] | None = None,
) -> pd.DataFrame:
    """Adds the recordings without clips to splits or folds (see `with_silent`).

    Args:
        table: `recording`, and `split` or `fold`, of the recordings with clips.
        archive: The archive.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).
        among: The recordings that may be added; by default all.
    """
    # First those without a call, so that those with rare species do not change the part of any other.
    for names in (archive.silent, without_clips(archive, table["recording"])):
        table = with_silent(table, [name for name in names if among is None or name in among], same_sound)
    return table


def with_silent(table: pd.DataFrame, silent: Sequence[str], same_sound: Sequence[Sequence[str]] = ()) -> pd.DataFrame:
    """Adds recordings without clips to splits or folds, so that every part has the same share of them.

    Args:
        table: `recording`, and `split` or `fold`, of the other recordings.
        silent: Recordings without a call (see `Archive.silent`), or of rare species and unknown birds alone.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        The table with the other recordings, sorted by recording.
    """
    others = sorted(set(silent) - set(table["recording"]))
    if not others:
        return table
    column = "fold" if "fold" in table else "split"
    part_of = dict(zip(table["recording"], table[column], strict=True))
    group_of = {name: group for group in same_sound for name in group}
    shares = table[column].value_counts(normalize=True).sort_index(kind="stable")
    number = dict.fromkeys(shares.index, 0)
    added: list[tuple[str, object]] = []
    for name in others:
        known = [part_of[other] for other in group_of.get(name, ()) if other in part_of]
        # The part that lacks most.
        part = known[0] if known else max(shares.index, key=lambda one: shares[one] * (len(added) + 1) - number[one])
        part_of[name] = part
        number[part] += 1
        added.append((name, part))
    rows = pd.DataFrame(added, columns=["recording", column])
    return pd.concat([table, rows]).sort_values("recording").reset_index(drop=True)
