"""Web page that shows the detections in an uploaded recording."""

import html
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from kenya_birds.data.archive import RECORDINGS_FOLDER
from kenya_birds.data.audio import read_header
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.defaults import DEMO_HOST, DEMO_PORT, MAX_HOURS, MAX_UPLOAD_MB
from kenya_birds.errors import UserError
from kenya_birds.process import wait_for_end
from kenya_birds.serving.analysis import Analyser
from kenya_birds.serving.guard import Guard
from kenya_birds.serving.markup import species_list
from kenya_birds.serving.page import Page
from kenya_birds.serving.sessions import EXAMPLES, MAX_SESSIONS, Sessions
from kenya_birds.values import Count, Port, Positive, checked

INVENTED, EXAMPLE_S = "invented_birds", 30.0
WAITING = 100  # length of the queue; further visitors are refused
CSS = """
.gradio-container > .main, .gradio-container > .main > .wrap, main.contain, #results {max-width: 100%; min-width: 0}
.gradio-container > .main {padding-left: 12px; padding-right: 12px}
.gradio-container {max-width: min(1200px, 100%) !important; margin: 0 auto}
.picture {overflow-x: auto; border-radius: 8px; background: #fff}
.picture a {display: block}
.picture img {display: block; width: 100%; min-width: 820px; max-width: none; height: auto; margin: 0}
.picture:focus-visible, pre:focus-visible, summary:focus-visible {outline: 3px solid var(--color-accent)}
#by_time, #by_species {--font-mono: var(--font)}
#about [data-testid=status-tracker]:not(.hide) {background: var(--background-fill-primary); opacity: 1; height: 100%}
.message {padding: 10px 14px; border-radius: 8px; background: var(--background-fill-secondary)}
.problem {border-left: 4px solid #c0392b}
.legend {display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0; padding: 0; list-style: none}
.dark .key {box-shadow: 0 0 0 1.5px #fff}
.gradio-container {--body-text-color-subdued: #52525b; --color-accent: #1d4ed8}
.dark .gradio-container, .gradio-container.dark {--body-text-color-subdued: #d4d4d8; --color-accent: #93c5fd}
.gradio-container :is(.min_value, .max_value) {color: var(--body-text-color-subdued)}
.key {display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px}
#settings p {margin: 0 0 6px}
#settings pre {margin: 0; padding: 8px 12px; border-radius: 8px; background: var(--background-fill-secondary);
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9em}
.known summary {cursor: pointer}
.known ul {columns: 16rem; margin: 8px 0 0; padding-left: 1.2em; max-height: 20rem; overflow-y: auto}
"""
# Moves the player without starting it.
MOVE_SOUND = """(begin_s) => {
    const player = document.querySelector("#recording audio");
    if (player && begin_s !== null) player.currentTime = Math.max(0, begin_s - 0.5);
}"""


def build(page: Page, *, max_upload_mb: float, concurrency: int, example: Path) -> gr.Blocks:
    """Builds the page.

    Args:
        page: Handlers of the page's events.
        max_upload_mb: Size limit of a file, in millions of bytes.
        concurrency: Number of recordings that are analysed in parallel.
        example: A recording that visitors can try.
    """
    with gr.Blocks(title="Who sings here?", analytics_enabled=False) as blocks:
        gr.HTML(_introduction(page.analyser, max_upload_mb))
        view = _add_view(page, example)
        _connect(page, view, concurrency, example)
        blocks.unload(page.close)
    blocks.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)
    return blocks


@dataclass(frozen=True)
class _View:
    """The components of the page that events read or change."""

    recording: gr.Audio
    try_example: gr.Button
    about: gr.HTML
    results: gr.Column
    overlap: gr.Radio
    own: gr.Checkbox
    least: gr.Slider
    species: gr.Dropdown
    merge: gr.Checkbox
    line: gr.Markdown
    by_time: gr.Dataframe
    by_species: gr.Dataframe
    downloads: list[gr.DownloadButton]
    settings: gr.HTML
    whole: gr.HTML
    legend: gr.HTML
    start: gr.Slider
    section: gr.HTML
    moment: gr.Number

    @property
    def filters(self) -> list[Any]:
        """The controls that choose among the detections of an analysis."""
        return [self.own, self.least, self.species, self.merge]

    @property
    def shown(self) -> list[Any]:
        """The components that `Page.show` fills."""
        tables = [self.line, self.by_time, self.by_species]
        return [*tables, self.whole, self.legend, self.settings, *self.downloads]


def _add_view(page: Page, example: Path) -> _View:
    """Adds the components to the page, from top to bottom."""
    recording = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label="Recording",
        editable=False,
        buttons=[],
        # For a waveform, the browser would decode hours of sound.
        waveform_options=gr.WaveformOptions(show_recording_waveform=False),
        elem_id="recording",
    )
    try_example = gr.Button(f"Try an example: {_title(example)}", size="sm", elem_id="example")
    about = gr.HTML(elem_id="about", min_height=90)
    with gr.Column(visible=False, elem_id="results") as results:
        overlap, own, least, species, merge = _controls(page)
        line = gr.Markdown(elem_id="line")
        by_time, by_species = _tables()
        with gr.Row():
            downloads = [
                gr.DownloadButton(text, size="sm", min_width=90, elem_id=f"download_{name}")
                for name, text in (("raven", "↓ Raven"), ("audacity", "↓ Audacity"), ("csv", "↓ CSV"))
            ]
        settings = gr.HTML(elem_id="settings")
        whole = gr.HTML(elem_id="whole")
        legend = gr.HTML(elem_id="legend")
        start = gr.Slider(0, 1, 0, step=1, label="Show from (s)", elem_id="start")
        section = gr.HTML(elem_id="section")
        moment = gr.Number(visible=False)
    return _View(
        recording, try_example, about, results, overlap, own, least, species, merge, line, by_time, by_species,
        downloads, settings, whole, legend, start, section, moment,
    )  # fmt: skip


def _connect(page: Page, view: _View, concurrency: int, example: Path) -> None:
    """Connects the components' events with the page's handlers."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # By default, the page ignores a request while an earlier one of the same event is not answered.
    newest: dict[str, Any] = {"trigger_mode": "always_last"}

    def draw(event: Any) -> None:
        event.then(page.section, [view.start, *view.filters], view.section, **newest, **quiet)

    def analyse(event: Any, **api: Any) -> None:
        analysed = event.then(
            page.analyse,
            view.overlap,
            [view.about, view.results, view.species, view.start],
            show_progress_on=view.about,
            concurrency_limit=concurrency,
            concurrency_id="analyse",
            trigger_mode="multiple",
            **((api and {**api, "api_name": "analyse"}) or {"api_visibility": "private"}),
        )
        name = {**api, "api_name": "show"} if api else {"api_visibility": "private"}
        draw(analysed.then(page.show, view.filters, view.shown, show_progress="hidden", **newest, **name))

    opening: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    choosing = {**opening, "trigger_mode": "multiple"}
    opened = [view.about, view.results]
    api = {"api_visibility": "undocumented"}
    given = gr.on(
        [view.recording.upload, view.recording.stop_recording, view.recording.clear],
        page.open,
        view.recording,
        opened,
        api_name="open",
        **api,
        **opening,
    )
    analyse(given, **api)
    chosen = view.try_example.click(lambda: str(example), None, view.recording, **quiet)
    analyse(chosen.then(page.open, view.recording, opened, api_visibility="private", **opening))
    analyse(view.overlap.input(page.choose_overlap, view.overlap, None, api_visibility="private", **choosing))
    changes = [view.least.change, view.own.input, view.species.input, view.merge.input]
    draw(gr.on(changes, page.show, view.filters, view.shown, **newest, **quiet))
    view.start.input(page.section, [view.start, *view.filters], view.section, **newest, **quiet)
    for table in (view.by_time, view.by_species):
        moved = table.select(page.go_to, None, [view.start, view.moment], **newest, **quiet)
        moved.then(None, view.moment, None, js=MOVE_SOUND)
        draw(moved)


def _introduction(analyser: Analyser, max_upload_mb: float) -> str:
    return (
        "<h1>Who sings here?</h1><p>Upload a recording, or record one. You get a table of the species that the model "
        f"<b>{html.escape(analyser.title)}</b> detects, with times, scores and spectrograms. "
        f"Limits: {max_upload_mb:g} MB and {analyser.max_hours:g} hours. "
        f"Your recording is deleted when you close this page.</p>{species_list(analyser)}"
    )


def _controls(page: Page) -> tuple[gr.Radio, gr.Checkbox, gr.Slider, gr.Dropdown, gr.Checkbox]:
    """Returns the controls for overlap, own thresholds, minimum score, species and merging."""
    analyser = page.analyser
    own_first, least_first = page.defaults
    with gr.Row():
        # From 0, although lower scores than `page.least_score` are not kept: gradio sends each typed digit, and would
        # show an error after the 0 of 0.95.
        least = gr.Slider(0, 1, least_first, step=0.01, label="Minimum score", min_width=260, elem_id="least")
        species = gr.Dropdown(
            [], multiselect=True, label="Species (none chosen: all)", min_width=260, elem_id="species"
        )
    with gr.Row():
        overlap = gr.Radio(
            [(f"{overlap_s:g} s" if overlap_s else "none", overlap_s) for overlap_s in analyser.overlaps_s],
            value=analyser.overlaps_s[1],
            label=f"Overlap of neighbouring windows of {analyser.window_s:g} s (a change starts a new analysis)",
            min_width=260,
            elem_id="overlap",
        )
        with gr.Column(min_width=260):
            own = gr.Checkbox(
                own_first,
                label="Use the model's decision threshold of each species",
                visible=analyser.thresholds is not None,
                elem_id="own",
            )
            merge = gr.Checkbox(True, label="Merge neighbouring detections", elem_id="merge")
    return overlap, own, least, species, merge


def _tables() -> tuple[gr.Dataframe, gr.Dataframe]:
    """Returns the tables of detections by time and by species."""
    with gr.Tab("By time"):
        by_time = gr.Dataframe(
            headers=["Begin", "End", "Score", "Common name", "Scientific name"],
            datatype="str",
            interactive=False,
            max_height=360,
            column_widths=["max(84px, 13%)"] * 2 + ["max(70px, 12%)"] + ["max(150px, 31%)"] * 2,
            elem_id="by_time",
            label="Click a row to move the spectrogram and the player there",
        )
    with gr.Tab("By species"):
        by_species = gr.Dataframe(
            headers=["Common name", "Scientific name", "Detections", "Seconds", "Best at", "Best score"],
            datatype=["str", "str", "number", "number", "str", "str"],
            interactive=False,
            max_height=360,
            column_widths=["max(150px, 24%)"] * 2 + ["max(105px, 13%)"] * 4,
            elem_id="by_species",
            label="Sorted by seconds. Click a row to move the spectrogram and the player to the best detection",
        )
    return by_time, by_species


@checked
@contextmanager
def running_demo(
    analyser: Analyser,
    *,
    host: str = DEMO_HOST,
    port: Port = DEMO_PORT,
    max_upload_mb: Positive = MAX_UPLOAD_MB,
    concurrency: Count = 1,
    example: str | Path | None = None,
) -> Iterator[str]:
    """Serves the page while the `with` block lasts; uploads are deleted at its end.

    Args:
        analyser: Analyser of recordings.
        host: Address to listen on; `0.0.0.0`: all.
        port: Port to listen on.
        max_upload_mb: Size limit of a file, in millions of bytes.
        concurrency: Number of recordings that are analysed in parallel.
        example: A recording that visitors can try; by default 30 s of invented birds.

    Yields:
        Address of the page.

    Raises:
        UserError: If a setting, the example or the port cannot be used.
    """
    max_bytes = int(max_upload_mb * 1e6)
    with tempfile.TemporaryDirectory(prefix="kenya_birds_demo_") as folder, _uploads_in(folder):
        page = Page(analyser, Sessions(Path(folder)))
        shown = _example(Path(folder) / EXAMPLES, example)
        blocks = build(page, max_upload_mb=max_upload_mb, concurrency=concurrency, example=shown)
        guard = Middleware(Guard, max_upload_bytes=max_bytes, uploads=Path(folder))
        try:
            address = _launch(blocks, host, port, max_bytes, guard)
            with page.sessions.swept():
                yield address
        finally:
            blocks.close()


@contextmanager
def _uploads_in(folder: str) -> Iterator[None]:
    """Sets Gradio's folder of uploads while the `with` block lasts."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


@checked
def serve(model: str | Path, *, concurrency: Count = 1, max_hours: Positive = MAX_HOURS, **options: Any) -> None:
    """Serves the page until the process is interrupted.

    Args:
        model: A model's folder, or `owner/name` or `owner/name@revision` on the Hub; code in its folder is not run.
        concurrency: Number of recordings that are analysed in parallel.
        max_hours: Longer recordings are refused.
        **options: See `running_demo`.

    Raises:
        UserError: If the model, a setting or the port cannot be used.
    """
    analyser = Analyser(model, concurrency=concurrency, max_hours=max_hours)
    with running_demo(analyser, concurrency=concurrency, **options) as address:
        print(f"The page is at {address} (Ctrl+C stops it)", flush=True)
        wait_for_end()


def _example(folder: Path, recording: str | Path | None) -> Path:
    """Copies the example to the folder of examples, which visitors may open."""
    folder.mkdir()
    if recording is None:
        with tempfile.TemporaryDirectory() as place:
            archive = synthesize_archive(
                Path(place) / "a", recordings=1, duration_s=EXAMPLE_S, species=8, annotations=16, scene="quiet"
            )
            (made,) = (archive / RECORDINGS_FOLDER).iterdir()
            return Path(shutil.move(made, folder / f"{INVENTED}{made.suffix}"))
    read_header(Path(recording))  # raises an error if the file is not a recording
    return Path(shutil.copyfile(recording, folder / Path(recording).name))


def _title(example: Path) -> str:
    return f"{EXAMPLE_S:g} s of invented birds" if example.stem == INVENTED else example.name


def _launch(blocks: gr.Blocks, host: str, port: int, max_bytes: int, guard: Middleware) -> str:
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            max_file_size=max_bytes,
            allowed_paths=[],
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            state_session_capacity=MAX_SESSIONS,
            footer_links=[],
            app_kwargs={"middleware": [guard]},
            # Gradio's own fonts are loaded from Google.
            theme=gr.themes.Default(
                primary_hue="blue",  # its text has a contrast of 5 on white, the default's 3
                font=["system-ui", "sans-serif"],
                font_mono=["monospace"],
            ),
            css=CSS,
        )
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error}): give another --host or --port") from None
    return str(address)
