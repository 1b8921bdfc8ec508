"""Handlers of the page's events: open a recording, analyse it, and show results with the chosen filters."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kenya_birds.errors import UserError
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.output_tables import write_tables
from kenya_birds.plot_style import species_styles
from kenya_birds.serving.analysis import Analyser, Stopped, clock, seconds_of, species_rows, time_rows
from kenya_birds.serving.markup import (
    legend,
    message,
    picture,
    problem,
    section_description,
    settings_text,
    whole_description,
)
from kenya_birds.serving.pictures import SECTION_S, picture_of_section, picture_of_whole
from kenya_birds.serving.sessions import Session, Sessions
from kenya_birds.values import counted

logger = logging.getLogger(__name__)

MAX_ROWS = 2000  # of a table on the page; downloads have all
LEAD_S = 3.0  # shown before the clicked detection
BEGIN_COLUMNS, BEST_COLUMN = 5, 4  # of the tables by time and by species
NOTHING = "Nothing was detected with these settings. Lower the minimum score, or choose other species."


class Page:
    """Handlers of the page's events.

    Args:
        analyser: Analyser of recordings.
        sessions: Sessions of visitors.
    """

    def __init__(self, analyser: Analyser, sessions: Sessions) -> None:
        self.analyser = analyser
        self.sessions = sessions

    def open(self, recording: str | None, request: gr.Request) -> tuple[Any, Any]:
        """Opens an uploaded recording.

        Args:
            recording: Path of the upload; None: the recording was removed.
            request: The request.

        Returns:
            Message, and visibility of the results.
        """
        key = _key(request)
        if recording is None:
            self.sessions.close(key)
            return "", gr.update(visible=False)
        try:
            session = self.sessions.open(key, recording)
        except UserError as error:
            return problem(str(error)), gr.update(visible=False)
        return message(f"{session.recording.name} is in the queue ..."), gr.update(visible=False)

    def choose_overlap(self, overlap_s: float, request: gr.Request) -> None:
        """Stops an analysis with another overlap; called at once, also while analyses wait for their turn.

        Args:
            overlap_s: The chosen overlap in seconds.
            request: The request.
        """
        session = self.sessions.find(_key(request))
        if session is not None:
            session.choose(self.analyser.allowed_overlap_s(overlap_s))

    def analyse(self, overlap_s: float, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Sequence[Any]:  # noqa: B008
        """Analyses the recording, unless it was analysed with this overlap before.

        Args:
            overlap_s: Overlap of neighbouring windows in seconds.
            request: The request.
            progress: Progress bar of the page.

        Returns:
            Message, visibility of the results, choice of species, and slider of the section.
        """
        overlap_s = self.analyser.allowed_overlap_s(overlap_s)
        session = self.sessions.find(_key(request))
        analysis = session.begin_analysis(overlap_s) if session is not None else None
        if session is None or analysis is None:
            return [gr.skip()] * 4
        name = session.recording.name
        try:
            findings = self.analyser.analyse(
                session.recording,
                overlap_s=overlap_s,
                progress=lambda share: progress(share, desc="Analysing"),
                is_stopped=lambda: not session.is_wanted(analysis),
            )
        except UserError as error:
            if session.is_closed.is_set():  # the page has another recording now
                return [gr.skip()] * 4
            self.sessions.close(_key(request), session)
            return problem(str(error)), gr.update(visible=False), gr.skip(), gr.skip()
        except Stopped:
            return [gr.skip()] * 4
        if not session.is_wanted(analysis):
            return [gr.skip()] * 4
        session.findings = findings
        length = clock(findings.duration_s, findings.duration_s)
        about = [f"{name}: {length}, {findings.info.sample_rate_hz / 1000:g} kHz"]
        highest_hz = self.analyser.frequencies_hz[1]
        if findings.info.sample_rate_hz < 2 * highest_hz:
            about.append(
                f"It has no frequencies above {findings.info.sample_rate_hz / 2000:g} kHz, but the model uses up to "
                f"{highest_hz / 1000:g} kHz: expect lower scores and missed calls."
            )
        for loss in findings.losses:
            end = "its end" if loss.end_s is None else clock(loss.end_s, findings.duration_s)
            about.append(
                f"Not analysed from {clock(loss.start_s, findings.duration_s)} to {end}: "
                f"{loss.reason.replace(f'{session.folder}/', '')}"
            )
        names = self.analyser.names
        choices = [(_full_name(*names[code]), code) for code in findings.species]
        first = next(iter(findings.detections(self.settings(*self.defaults, None, True))), None)
        last_s = max(1, math.ceil(findings.duration_s - SECTION_S))
        start_s = min(last_s, max(0, math.floor(first.start_s - LEAD_S))) if first else 0
        return (
            message(*about),
            gr.update(visible=True),
            gr.update(choices=choices, value=[]),
            gr.update(maximum=last_s, value=start_s, visible=findings.duration_s > SECTION_S),
        )

    @property
    def least_score(self) -> float:
        """The lowest available score: the floor, rounded up to a hundredth."""
        return math.ceil(self.analyser.floor * 100) / 100

    @property
    def defaults(self) -> tuple[bool, float]:
        """Initial values: whether the model's own thresholds are used, and the minimum score."""
        return (True, self.least_score) if self.analyser.thresholds is not None else (False, 0.5)

    def settings(self, own: bool, least: float, species: list[str] | None, merge: bool) -> FindingSettings:
        """Returns the settings of detections for the chosen filters.

        Args:
            own: Whether the model's own thresholds are used.
            least: With them, an additional minimum score; without them, the threshold of every species.
            species: eBird codes; none: all.
            merge: Whether neighbouring detections are merged.
        """
        chosen = tuple(code for code in species or () if code in self.analyser.classes) or None
        if own and self.analyser.thresholds is not None:
            minimum = min(1.0, least) if least > self.least_score else 0.0
            return FindingSettings(min_confidence=minimum, species=chosen, merge=merge)
        return FindingSettings(threshold=min(1.0, max(self.least_score, least)), species=chosen, merge=merge)

    def show(
        self, own: bool, least: float, species: list[str] | None, merge: bool, request: gr.Request
    ) -> Sequence[Any]:
        """Shows the detections with the chosen filters.

        Args:
            own: See `settings`.
            least: See `settings`.
            species: See `settings`.
            merge: See `settings`.
            request: The request.

        Returns:
            A line of text, both tables, the picture of the whole recording, the legend, the settings, and the three
            downloads.
        """
        session = self.sessions.find(_key(request))
        if session is None or session.findings is None:
            return [gr.skip()] * 9
        is_newest = session.begin_answer("results")
        try:
            shown = self._shown(session, self.settings(own, least, species, merge))
        except (OSError, UserError):
            if not is_newest():  # the folder was removed for another recording or a newer answer
                return [gr.skip()] * 9
            raise
        return shown if is_newest() else [gr.skip()] * 9

    def _shown(self, session: Session, settings: FindingSettings) -> Sequence[Any]:
        assert session.findings is not None
        findings = session.findings
        found = findings.detections(settings)
        names, duration_s = self.analyser.names, findings.duration_s
        styles = species_styles(findings.species)
        counts = {one.species for one in found}
        line = f"{counted(len(found), 'detection', ',')} of {len(counts)} species" if found else NOTHING
        if len(found) > MAX_ROWS:
            line += f"; the table shows the first {MAX_ROWS:,}, the downloads have all"
        whole = ""
        if duration_s > SECTION_S and found:
            path = session.new_folder("whole") / "whole.png"
            picture_of_whole(duration_s, found, names, styles, path)
            whole = picture(path, whole_description(duration_s, found, names))
        tables = session.new_folder("tables")
        stem = Path(findings.info.name).stem
        written = write_tables(
            tables,
            ["raven", "audacity", "csv"],
            [findings.info],
            found,
            species_names=names,
            frequencies_hz=self.analyser.frequencies_hz,
            metadata={},
        )
        by_place = {path.relative_to(tables).parts[0]: path for path in written.files}
        table = by_place["detections.csv"].rename(tables / f"{stem}.detections.csv")
        return (
            line,
            time_rows(found[:MAX_ROWS], names, duration_s),
            species_rows(found, names, duration_s),
            whole,
            legend(found, names, styles, has_timeline=bool(whole)),
            settings_text(self.analyser, findings, settings),
            by_place["raven"],
            by_place["audacity"],
            table,
        )

    def section(
        self, start_s: float, own: bool, least: float, species: list[str] | None, merge: bool, request: gr.Request
    ) -> Any:
        """Draws the spectrogram of a section.

        Args:
            start_s: Start of the section.
            own: See `settings`.
            least: See `settings`.
            species: See `settings`.
            merge: See `settings`.
            request: The request.
        """
        session = self.sessions.find(_key(request))
        if session is None or session.findings is None:
            return gr.skip()
        is_newest = session.begin_answer("section")
        findings, names = session.findings, self.analyser.names
        found = findings.detections(self.settings(own, least, species, merge))
        styles = species_styles(findings.species)  # of all species, so that filters and scrolling keep the colours
        begin_s = min(max(0.0, start_s), max(0.0, findings.duration_s - 1))
        try:
            path = session.new_folder("section") / "spectrogram.png"
            picture_of_section(session.recording, found, names, styles, begin_s, path)
        except (OSError, UserError) as error:  # sound that cannot be read cannot be drawn
            if not is_newest():
                return gr.skip()
            logger.info("%s", error)
            return message("The spectrogram cannot be drawn here: the recording cannot be read.")
        if not is_newest():
            return gr.skip()
        end_s = min(begin_s + SECTION_S, findings.duration_s)
        return picture(path, section_description(begin_s, end_s, findings.duration_s, found, names))

    def go_to(self, event: gr.SelectData) -> Any:
        """Handles a click on a row; returns the start of the picture and of the sound."""
        # Column of the start, in the table by time or by species.
        column = BEST_COLUMN if len(event.row_value) > BEGIN_COLUMNS else 0
        try:
            begin_s = seconds_of(str(event.row_value[column]))
        except (TypeError, ValueError, LookupError):
            return gr.skip(), gr.skip()
        return max(0, math.floor(begin_s - LEAD_S)), begin_s

    def close(self, request: gr.Request) -> None:
        """Ends the page's session."""
        self.sessions.close(_key(request))


def _key(request: gr.Request) -> str:
    if not request.session_hash:
        raise gr.Error("The page has no session: load it again.")
    return str(request.session_hash)


def _full_name(common: str, scientific: str) -> str:
    return f"{common} ({scientific})" if scientific else common
