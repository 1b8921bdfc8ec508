"""Recordings without a call, in splits and folds: their windows are examples without birds."""

from collections.abc import Sequence

import pandas as pd


def with_silent(table: pd.DataFrame, silent: Sequence[str], same_sound: Sequence[Sequence[str]] = ()) -> pd.DataFrame:
    """Adds recordings without a call to splits or folds, so that every part has the same share of them.

    Args:
        table: `recording`, and `split` or `fold`, of the recordings with calls.
        silent: Recordings without a call (see `Archive.silent`).
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
