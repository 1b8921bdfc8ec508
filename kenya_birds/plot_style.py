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
MAX_NAME = 26
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


def short_name(name: str, most: int = MAX_NAME) -> str:
    """A name as a label: cut where it is long, and without control characters, which are no XML."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
