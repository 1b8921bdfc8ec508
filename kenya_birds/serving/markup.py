"""HTML of the page: messages, pictures with alternative text, the legend, settings, and the species."""

import html
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kenya_birds.inference.detections import Detection
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.plot_style import SpeciesStyle
from kenya_birds.serving.analysis import Analyser, Findings, clock, detect_command
from kenya_birds.serving.pictures import species_of_timeline

MAX_LISTED = 12  # detections in the alternative text of a picture
# Stripes and dots, as in the pictures.
PATTERNS = {
    "": "none",
    "////": "repeating-linear-gradient(135deg, transparent 0 2px, #fff 2px 4px)",
    "....": "radial-gradient(#fff 1px, transparent 1.4px) 0 0 / 4px 4px",
}


def message(*lines: str) -> str:
    """Returns lines of text in a box."""
    return f"<div class='message' role='status'>{'<br>'.join(map(html.escape, lines))}</div>"


def problem(text: str) -> str:
    """Returns an error message in a box that screen readers announce."""
    return f"<div class='message problem' role='alert'>{html.escape(text)}</div>"


def picture(path: Path, description: str) -> str:
    """Returns a picture that scrolls horizontally on a narrow page, and opens in full size.

    Args:
        path: The picture.
        description: Alternative text.
    """
    # A relative address also works behind a proxy with another path.
    address = f"gradio_api/file={urllib.parse.quote(path.as_posix())}"
    description = html.escape(description)
    return (
        f"<div class='picture' tabindex='0' role='region' aria-label='Picture, scrolls sideways'>"
        f"<a href='{address}' target='_blank' rel='noopener' title='Open in full size'>"
        f"<img src='{address}' alt='{description}'></a></div>"
    )


def whole_description(duration_s: float, detections: Sequence[Detection], names: Mapping[str, SpeciesNames]) -> str:
    """Describes the picture of the whole recording; the tables have the details.

    Args:
        duration_s: Length of the recording.
        detections: Its detections.
        names: Names by code.
    """
    drawn = species_of_timeline(detections)
    text = f"Timeline of {clock(duration_s, duration_s)}: when each of {_number_drawn(detections)} was detected. "
    return text + _list([names[code].common_name for code in drawn])


def _number_drawn(detections: Sequence[Detection]) -> str:
    """Returns in words which species the timeline has."""
    drawn, species = len(species_of_timeline(detections)), len({one.species for one in detections})
    return f"{species} species" if drawn == species else f"the {drawn} of {species} species with the most detections"


def section_description(
    begin_s: float, end_s: float, duration_s: float, detections: Sequence[Detection], names: Mapping[str, SpeciesNames]
) -> str:
    """Describes the picture of a section.

    Args:
        begin_s: Start of the section.
        end_s: End of the section.
        duration_s: Length of the recording.
        detections: Detections of the whole recording.
        names: Names by code.
    """
    near = [one for one in detections if one.end_s > begin_s and one.start_s < end_s]
    listed = [
        f"{names[one.species].common_name} {clock(one.start_s, duration_s)} to {clock(one.end_s, duration_s)}, "
        f"score {one.score:.2f}"
        for one in near
    ]
    section = f"{clock(begin_s, duration_s)} to {clock(end_s, duration_s)}"
    return f"Spectrogram from {section} with {len(near)} detections. " + _list(listed)


def legend(
    detections: Sequence[Detection],
    names: Mapping[str, SpeciesNames],
    styles: Mapping[str, SpeciesStyle],
    *,
    has_timeline: bool,
) -> str:
    """Returns the colours of the detected species, in the order of `styles`, and which of them the timeline has.

    Args:
        detections: The detections.
        names: Names by code.
        styles: Colours by code.
        has_timeline: Whether the page has the picture of the whole recording.
    """
    shown = {one.species for one in detections}
    items = "".join(
        f"<li><span class='key' style='background: {PATTERNS[style.hatch]}, {style.colour}' aria-hidden='true'></span>"
        f"{html.escape(names[code].common_name)}</li>"
        for code, style in styles.items()
        if code in shown
    )
    if has_timeline and len(shown) > len(species_of_timeline(detections)):
        items += f"<li>The timeline has {_number_drawn(detections)}.</li>"
    return f"<ul class='legend' aria-label='Colours of the species'>{items}</ul>" if items else ""


def settings_text(analyser: Analyser, findings: Findings, settings: FindingSettings) -> str:
    """Returns the settings in words, and the command that gives the same rows.

    Args:
        analyser: The analyser.
        findings: Scores of the recording.
        settings: Settings of detections.
    """
    window = f"windows of {analyser.window_s:g} s"
    if findings.overlap_s:
        window += f" that overlap by {findings.overlap_s:g} s"
    threshold = (
        f"the threshold {settings.threshold:g} for every species"
        if settings.threshold is not None
        else "the model's decision threshold for each species"
    )
    if settings.min_confidence:
        threshold += f", and no score below {settings.min_confidence:g}"
    merge = "neighbouring detections merged" if settings.merge else "one detection per window"
    species = "" if settings.species is None else f"; {len(settings.species)} species chosen"
    command = detect_command(analyser.model, findings.info.recording, findings.overlap_s, settings)
    return (
        f"<p>{window.capitalize()}; {threshold}; {merge}{species}. The same rows from the command line:</p>"
        f"<pre tabindex='0'><code>{html.escape(command)}</code></pre>"
    )


def species_list(analyser: Analyser) -> str:
    """Returns a closed list of all species of the model."""
    silent = set()
    if analyser.thresholds is not None:
        silent = {code for code, own in zip(analyser.classes, analyser.thresholds, strict=True) if own == np.inf}
    items = []
    for code, (common, scientific) in sorted(analyser.names.items(), key=lambda item: item[1].common_name.casefold()):
        items.append(
            f"<li>{html.escape(common)}"
            + (f" <i>{html.escape(scientific)}</i>" if scientific else "")
            + (" (no decision threshold, never reported)" if code in silent else "")
            + "</li>"
        )
    return (
        f"<details class='known'><summary>All {len(items)} species of the model</summary>"
        f"<ul>{''.join(items)}</ul></details>"
    )


def _list(items: Sequence[str]) -> str:
    rest = len(items) - MAX_LISTED
    return "; ".join(items[:MAX_LISTED]) + (f"; and {rest} more" if rest > 0 else "")
