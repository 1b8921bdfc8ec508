"""Style of all pictures: fonts, colours of species, and saving of figures."""

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
    "text.parse_math": False,  # names may contain a dollar sign
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfe3e8",
    "grid.linewidth": 0.6,
}
# The first font has Latin, Greek, Cyrillic, Arabic and Hebrew; the others, if installed, have other scripts.
FONTS = (
    "DejaVu Sans",
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Hiragino Sans"),
    *("PingFang SC", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Ethiopic", "Nirmala UI", "Ebrima"),
)
# The colours differ for every kind of colour vision (by 13 or more in CIELAB); their contrast to white is 3 or more.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#882255", "#332288", "#c9709f", "#117733", "#aa66ff")
HATCHES = ("", "////", "....")
MAX_NAME = 30
# Level 6, the default, takes up to four times as long for spectrograms. File sizes differ by less than a tenth.
PNG_ENCODER = {"compress_level": 3}
# `short_name` logs its own warning, once for each name.
warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
P = ParamSpec("P")
R = TypeVar("R")


class SpeciesStyle(NamedTuple):
    """Colour and hatch of a species.

    Attributes:
        colour: Hexadecimal colour.
        hatch: matplotlib's hatch; empty for the first species of each colour.
    """

    colour: str
    hatch: str


def styled(**changes: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that draws with this style and changes to it, independent of the user's matplotlib settings."""

    def decorate(draw: Callable[P, R]) -> Callable[P, R]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
            style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE, "font.family": _fonts(), **changes}
            with matplotlib.rc_context({**style, "backend": matplotlib.rcParams["backend"]}):
                return draw(*args, **kwargs)

        return drawn

    return decorate


def species_styles(codes: Iterable[str]) -> dict[str, SpeciesStyle]:
    """Assigns a colour to each species, and a hatch if there are more species than colours.

    Args:
        codes: eBird codes, the most important first. The same codes in the same order get the same styles.
    """
    styles = {}
    for place, code in enumerate(dict.fromkeys(codes)):
        turn, colour = divmod(place, len(COLOURS))
        styles[code] = SpeciesStyle(COLOURS[colour], HATCHES[turn % len(HATCHES)])
    return styles


def short_name(name: str, most: int = MAX_NAME) -> str:
    """Returns a name as a label, shortened and without control characters, which are invalid in XML.

    Args:
        name: The name.
        most: Largest number of characters.
    """
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    if not name.isascii():
        _warn_of_missing_glyphs(name)
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


@cache
def _fonts() -> list[str]:
    """Returns the installed fonts of `FONTS`."""
    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


@cache
def _characters() -> frozenset[int]:
    """Returns the characters of the installed fonts."""
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
    """Writes a figure atomically.

    Args:
        figure: The figure.
        path: PNG, SVG or PDF to write.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(path)
    encoder: dict[str, Any] = {"pil_kwargs": PNG_ENCODER} if path.suffix == ".png" else {}
    with users_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata=PICTURE_METADATA[path.suffix], **encoder)
