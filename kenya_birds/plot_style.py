"""One look for all pictures."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib

STYLE = {
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfe3e8",
    "grid.linewidth": 0.6,
}
P = ParamSpec("P")
R = TypeVar("R")


def styled(**changes: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Draws with this style, and changes to it, whatever the user's own matplotlib is set to."""

    def decorate(draw: Callable[P, R]) -> Callable[P, R]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
            style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE, **changes}
            with matplotlib.rc_context({**style, "backend": matplotlib.rcParams["backend"]}):
                return draw(*args, **kwargs)

        return drawn

    return decorate
