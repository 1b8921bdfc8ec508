"""What the page's events do: a recording is opened, heard, and shown under the filters that are chosen."""

import html
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kenya_birds.errors import UserError
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.finding import FindingSettings
from kenya_birds.inference.tables import write_tables
from kenya_birds.plot_style import species_styles
from kenya_birds.serving.analysis import Analyser, Stopped, clock, seconds_of, species_rows, time_rows
from kenya_birds.serving.pictures import STRETCH_S, picture_of_stretch, picture_of_whole
from kenya_birds.serving.sessions import Session, Sessions

logger = logging.getLogger(__name__)

MAX_ROWS = 2000  # of a table on the page; downloads have all
LEAD_S = 3.0  # shown in front of the detection that was clicked
NOTHING = "Nothing is heard above this score. Lower it, or choose other species."


class Page:
    """What the page's events do.

    Args:
        analyser: Hears recordings.
        sessions: What is kept of visitors.
    """

    def __init__(self, analyser: Analyser, sessions: Sessions) -> None:
        self.analyser = analyser
        self.sessions = sessions

    def open(self, recording: str | None, request: gr.Request) -> tuple[Any, Any]:
        """Takes the recording; what the page says, and whether it shows results."""
        key = _key(request)
        if recording is None:
            self.sessions.close(key)
            return "", gr.update(visible=False)
        try:
            session = self.sessions.open(key, recording)
        except UserError as error:
            return _problem(error), gr.update(visible=False)
        return _message(f"{session.recording.name} is waiting for its turn ..."), gr.update(visible=False)

    def hear(self, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Sequence[Any]:  # noqa: B008
        """Hears the recording; what the page says, whether it shows results, choice of species and of the stretch."""
        session = self.sessions.find(_key(request))
        if session is None or not session.begin_hearing():
            return [gr.skip()] * 4
        name = session.recording.name
        try:
            session.findings = findings = self.analyser.hear(
                session.recording,
                progress=lambda share: progress(share, desc="Listening"),
                is_stopped=session.is_closed.is_set,
            )
        except UserError as error:
            if session.is_closed.is_set():  # the page has another recording by now
                return [gr.skip()] * 4
            self.sessions.close(_key(request), session)
            return _problem(error), gr.update(visible=False), gr.skip(), gr.skip()
        except Stopped:
            return [gr.skip()] * 4
        length = clock(findings.duration_s, findings.duration_s)
        about = [f"{name}: {length}, {findings.info.sample_rate_hz / 1000:g} kHz"]
        for loss in findings.losses:
            end = "its end" if loss.end_s is None else clock(loss.end_s, findings.duration_s)
            about.append(
                f"Not heard from {clock(loss.start_s, findings.duration_s)} to {end}: "
                f"{loss.reason.replace(f'{session.folder}/', '')}"
            )
        names = self.analyser.names
        choices = [(_full_name(*names[code]), code) for code in findings.species]
        first = next(iter(self._select(session, *self.defaults, None, True)), None)
        last_s = max(1, math.ceil(findings.duration_s - STRETCH_S))
        start_s = min(last_s, max(0, math.floor(first.start_s - LEAD_S))) if first else 0
        return (
            _message(*about),
            gr.update(visible=True),
            gr.update(choices=choices, value=[]),
            gr.update(maximum=last_s, value=start_s, visible=findings.duration_s > STRETCH_S),
        )

    @property
    def defaults(self) -> tuple[bool, float]:
        """Whether the model's own thresholds are used, and the least score, at first."""
        return (True, self.analyser.floor) if self.analyser.thresholds is not None else (False, 0.5)

    def show(
        self, own: bool, least: float, species: list[str] | None, merge: bool, request: gr.Request
    ) -> Sequence[Any]:
        """A line about them, both tables, the picture of the whole, and the three downloads."""
        session = self.sessions.find(_key(request))
        if session is None or session.findings is None:
            return [gr.skip()] * 7
        try:
            return self._shown(session, own, least, species, merge)
        except (OSError, UserError):
            if session.is_closed.is_set():  # another recording came, and this one's folder is gone
                return [gr.skip()] * 7
            raise

    def _shown(
        self, session: Session, own: bool, least: float, species: list[str] | None, merge: bool
    ) -> Sequence[Any]:
        assert session.findings is not None
        found = self._select(session, own, least, species, merge)
        names, duration_s = self.analyser.names, session.findings.duration_s
        counts = {one.species for one in found}
        line = f"{len(found):,} detections of {len(counts)} species" if found else NOTHING
        if len(found) > MAX_ROWS:
            line += f"; the table shows the first {MAX_ROWS:,}, the downloads have all"
        whole = None
        if duration_s > STRETCH_S and found:
            whole = session.new_folder("whole") / "whole.png"
            picture_of_whole(duration_s, found, names, species_styles(session.findings.species), whole)
        tables = session.new_folder("tables")
        stem = Path(session.findings.info.name).stem
        files = write_tables(
            tables,
            ["raven", "audacity", "csv"],
            [session.findings.info],
            found,
            species_names=names,
            frequencies_hz=self.analyser.frequencies_hz,
            metadata={},
        )
        by_place = {path.relative_to(tables).parts[0]: path for path in files}
        table = by_place["detections.csv"].rename(tables / f"{stem}.detections.csv")
        return (
            line,
            time_rows(found[:MAX_ROWS], names, duration_s),
            species_rows(found, names, duration_s),
            gr.update(value=whole, visible=whole is not None),
            by_place["raven"],
            by_place["audacity"],
            table,
        )

    def stretch(
        self, start_s: float, own: bool, least: float, species: list[str] | None, merge: bool, request: gr.Request
    ) -> Any:
        """The picture of a stretch."""
        session = self.sessions.find(_key(request))
        if session is None or session.findings is None:
            return gr.skip()
        found = self._select(session, own, least, species, merge)
        styles = species_styles(session.findings.species)  # of all that was heard: filters and scrolling keep them
        last_s = max(0.0, session.findings.duration_s - 1)
        try:
            picture = session.new_folder("stretch") / "spectrogram.png"
            picture_of_stretch(
                session.recording, found, self.analyser.names, styles, min(max(0.0, start_s), last_s), picture
            )
        except (OSError, UserError) as error:  # what could not be heard cannot be drawn either
            if session.is_closed.is_set():
                return gr.skip()
            logger.info("%s", error)
            return None
        return picture

    def go_to(self, event: gr.SelectData) -> Any:
        """Where the picture begins after a click on a row."""
        try:
            return max(0, math.floor(seconds_of(str(event.row_value[0])) - LEAD_S))
        except (TypeError, ValueError, LookupError):
            return gr.skip()

    def close(self, request: gr.Request) -> None:
        """Forgets the page."""
        self.sessions.close(_key(request))

    def _select(
        self, session: Session, own: bool, least: float, species: list[str] | None, merge: bool
    ) -> list[Detection]:
        assert session.findings is not None
        least = min(1.0, max(self.analyser.floor, least))
        own = own and self.analyser.thresholds is not None
        return session.findings.detections(
            FindingSettings(
                threshold=None if own else least,
                min_confidence=least,
                species=tuple(species) if species else None,
                merge=merge,
            )
        )


def _key(request: gr.Request) -> str:
    if not request.session_hash:
        raise gr.Error("The page has no session: load it again.")
    return str(request.session_hash)


def _full_name(common: str, scientific: str) -> str:
    return f"{common} ({scientific})" if scientific else common


def _message(*lines: str) -> str:
    return f"<div class='message'>{'<br>'.join(map(html.escape, lines))}</div>"


def _problem(error: UserError) -> str:
    return f"<div class='message problem' role='alert'>{html.escape(str(error))}</div>"
