"""Windows without a call from the validation recordings, on which decision thresholds are chosen."""

import datasets
import numpy as np
import pandas as pd

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.dataset import load_no_call
from kenya_birds.data.planning import plan_no_call
from kenya_birds.data.splits import recordings_in
from kenya_birds.distributed import Team


def cut_no_call(
    builder: KenyaBirds, team: Team, *, per_recording: int, sampling_rate: int, clip_s: float, num_proc: int | None
) -> tuple[datasets.Dataset | None, np.ndarray]:
    """Cuts windows without annotations.

    Args:
        builder: Builder of the clips.
        team: The processes that share the run.
        per_recording: Largest number of windows of a recording.
        sampling_rate: Rate of the model in Hz.
        clip_s: Length of a clip in seconds.
        num_proc: Processes that cut.

    Returns:
        The windows, or None if there are none; and the weight of each: the number of such windows in its recording
        that it represents.

    Raises:
        UserError: If none of them can be read.
    """
    # A call as long as a clip does not reach into the window if its centre is this far away.
    margin_s = clip_s / 2
    recordings = recordings_in(builder.splits, "validation")
    planned = plan_no_call(builder.archive, recordings, sampling_rate, clip_s, margin_s)
    if planned.empty or not per_recording:
        return None, np.zeros(0)
    with team.one_first():
        windows = load_no_call(
            builder,
            num_proc,
            context_s=0.0,
            no_call_split="validation",
            no_call_per_recording=per_recording,
            no_call_margin_s=margin_s,
            no_call_order="uniform",
        )
    cut = pd.Series(windows["recording"][:])
    weights = cut.map(planned["recording"].value_counts() / cut.value_counts())
    return windows, weights.to_numpy(dtype=np.float64)
