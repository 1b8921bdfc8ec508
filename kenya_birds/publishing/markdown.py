"""Text in Markdown."""

import re


def markdown_cell(value: object) -> str:
    """A value as text of a table's cell, in which no character is a sign of Markdown or HTML.

    Args:
        value: What the cell shows.
    """
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(value).split()))
