"""The style of all pictures: fonts, colours of species, and how a figure is saved."""

import logging
import warnings
from collections.abc import Callable, Iterable
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from kenya_birds.files import PICTURE_METADATA, users_file

logger = logging.getLogger(__name__)

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
# The first has Latin, Greek, Cyrillic, Arabic and Hebrew; those behind it, where one is installed, have other scripts.
FONTS = (
    "DejaVu Sans",
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Hiragino Sans"),
    *("PingFang SC", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Ethiopic", "Nirmala UI", "Ebrima"),
)
# They differ for every kind of colour vision (by 13 or more in CIELAB), and from white by a contrast of 3 or more.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#882255", "#332288", "#c9709f", "#117733", "#aa66ff")
HATCHES = ("", "////", "....")
MAX_NAME = 30
# `short_name` says it once for a name, and what to do.
warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
P = ParamSpec("P")
R = TypeVar("R")


class SpeciesStyle(NamedTuple):
    """How a species is drawn.

    Attributes:
        colour: Hexadecimal.
        hatch: matplotlib's hatch; empty for the first species of each colour.
    """

    colour: str
    hatch: str


def styled(**changes: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Draws with this style, and changes to it, whatever the user's own matplotlib is set to."""

    def decorate(draw: Callable[P, R]) -> Callable[P, R]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
            style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE, "font.family": _fonts(), **changes}
            with matplotlib.rc_context({**style, "backend": matplotlib.rcParams["backend"]}):
                return draw(*args, **kwargs)

        return drawn

    return decorate


def species_styles(codes: Iterable[str]) -> dict[str, SpeciesStyle]:
    """Gives each species a colour, and a hatch where there are more species than colours.

    Args:
        codes: eBird codes, the most important first. The same codes in the same order get the same styles.
    """
    styles = {}
    for place, code in enumerate(dict.fromkeys(codes)):
        turn, colour = divmod(place, len(COLOURS))
        styles[code] = SpeciesStyle(COLOURS[colour], HATCHES[turn % len(HATCHES)])
    return styles


def short_name(name: str, most: int = MAX_NAME) -> str:
    """A name as a label: shortened to `most` characters, and without control characters, which XML cannot hold."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    if not name.isascii():
        _warn_of_missing_glyphs(name)
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


@cache
def _fonts() -> list[str]:
    """The fonts of `FONTS` that are installed."""
    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


@cache
def _characters() -> frozenset[int]:
    """What the installed fonts can draw."""
    properties = (font_manager.FontProperties(family=name) for name in _fonts())
    charmaps = (font_manager.get_font(font_manager.findfont(one)).get_charmap() for one in properties)
    return frozenset().union(*charmaps)


@cache
def _warn_of_missing_glyphs(name: str) -> None:
    missing = "".join(letter for letter in name if not letter.isspace() and ord(letter) not in _characters())
    if missing:
        logger.warning(
            "No installed font has the characters %s of '%s': pictures show squares in their place. Install a font "
            "such as Noto Sans CJK",
            missing,
            name,
        )


@styled(**{"svg.hashsalt": "kenya_birds"})
def save_picture(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    path = Path(path)
    with users_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata=PICTURE_METADATA[path.suffix])
