"""A web page: drop a recording, see and download who is heard in it."""

import html
import math
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from kenya_birds.errors import UserError
from kenya_birds.serving.analysis import Analyser
from kenya_birds.serving.guard import Guard
from kenya_birds.serving.page import Page
from kenya_birds.serving.sessions import MAX_SESSIONS, Sessions

WAITING = 100  # recordings that wait for their turn; the next visitor is asked to come back
CSS = """
.gradio-container > .main, .gradio-container > .main > .wrap, main.contain, #results {max-width: 100%; min-width: 0}
.gradio-container > .main {padding-left: 12px; padding-right: 12px}
.picture {overflow-x: auto !important}
.picture .image-container {width: 100%; min-width: 820px}
#by_time, #by_species {--font-mono: var(--font)}
#about [data-testid=status-tracker]:not(.hide) {background: var(--background-fill-primary); opacity: 1; height: 100%}
.message {padding: 10px 14px; border-radius: 8px; background: var(--background-fill-secondary)}
.problem {border-left: 4px solid #c0392b}
.gradio-container {max-width: min(1200px, 100%) !important; margin: 0 auto}
"""


def build(page: Page, *, max_upload_mb: float, concurrency: int) -> gr.Blocks:
    """The page."""
    analyser = page.analyser
    own_first, least_first = page.defaults
    with gr.Blocks(title="Who sings here?", analytics_enabled=False) as blocks:
        gr.HTML(
            "<h1>Who sings here?</h1><p>Drop a recording, or record one. "
            f"The model, <b>{html.escape(analyser.title)}</b>, knows {len(analyser.classes)} species. "
            f"Up to {max_upload_mb:g} MB and {analyser.max_hours:g} hours. "
            "What you send is removed when you close this page.</p>"
        )
        recording = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Recording",
            editable=False,
            buttons=[],
            # A browser would decode hours of sound for a waveform.
            waveform_options=gr.WaveformOptions(show_recording_waveform=False),
            elem_id="recording",
        )
        about = gr.HTML(elem_id="about", min_height=90)
        with gr.Column(visible=False, elem_id="results") as results:
            with gr.Row():
                least = gr.Slider(
                    math.ceil(analyser.floor * 100) / 100,
                    0.95,
                    least_first,
                    step=0.01,
                    label="Least score",
                    min_width=260,
                    elem_id="least",
                )
                species = gr.Dropdown(
                    [], multiselect=True, label="Species (none chosen: all)", min_width=260, elem_id="species"
                )
            with gr.Row():
                own = gr.Checkbox(
                    own_first,
                    label="Each species' own threshold too",
                    visible=analyser.thresholds is not None,
                    min_width=260,
                    elem_id="own",
                )
                merge = gr.Checkbox(True, label="Join neighbours", min_width=260, elem_id="merge")
            line = gr.Markdown(elem_id="line")
            with gr.Tab("By time"):
                by_time = gr.Dataframe(
                    headers=["Begin", "End", "Score", "Common name", "Scientific name"],
                    datatype="str",
                    interactive=False,
                    max_height=360,
                    column_widths=["max(84px, 13%)"] * 2 + ["max(70px, 12%)"] + ["max(150px, 31%)"] * 2,
                    elem_id="by_time",
                    label="Click a row to see it",
                )
            with gr.Tab("By species"):
                by_species = gr.Dataframe(
                    headers=["Common name", "Scientific name", "Detections", "Seconds", "Best at", "Best score"],
                    datatype=["str", "str", "number", "number", "str", "str"],
                    interactive=False,
                    max_height=360,
                    column_widths=["max(150px, 24%)"] * 2 + ["max(105px, 13%)"] * 4,
                    elem_id="by_species",
                    label="Heard most first",
                )
            with gr.Row():
                downloads = [
                    gr.DownloadButton(text, size="sm", min_width=90, elem_id=f"download_{name}")
                    for name, text in (("raven", "↓ Raven"), ("audacity", "↓ Audacity"), ("csv", "↓ CSV"))
                ]
            whole = _picture("whole")
            start = gr.Slider(0, 1, 0, step=1, label="Show from (s)", elem_id="start")
            stretch = _picture("stretch")

        filters = [own, least, species, merge]
        shown = [line, by_time, by_species, whole, *downloads]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        hearing: dict[str, Any] = {"concurrency_limit": concurrency, "concurrency_id": "hear"}
        (
            gr.on(
                [recording.upload, recording.stop_recording, recording.clear],
                page.open,
                recording,
                [about, results],
                queue=False,
                show_progress="hidden",
                api_name="open",
                api_visibility="undocumented",
            )
            .then(
                page.hear,
                None,
                [about, results, species, start],
                show_progress_on=about,
                api_name="hear",
                api_visibility="undocumented",
                **hearing,
            )
            .then(page.show, filters, shown, show_progress="hidden", api_name="show", api_visibility="undocumented")
            .then(page.stretch, [start, *filters], stretch, **quiet)
        )
        gr.on(
            [least.change, own.input, species.input, merge.input],
            page.show,
            filters,
            shown,
            trigger_mode="always_last",
            **quiet,
        ).then(page.stretch, [start, *filters], stretch, **quiet)
        start.input(page.stretch, [start, *filters], stretch, trigger_mode="always_last", **quiet)
        by_time.select(page.go_to, None, start, **quiet).then(page.stretch, [start, *filters], stretch, **quiet)
        blocks.unload(page.close)
    blocks.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)
    return blocks


@contextmanager
def running_demo(
    analyser: Analyser,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: float = 400.0,
    concurrency: int = 1,
) -> Iterator[str]:
    """Serves the page while the `with` block lasts; what visitors sent is removed at its end.

    Args:
        analyser: Hears recordings.
        host: Address to listen on; `0.0.0.0`: all.
        port: Port to listen on.
        max_upload_mb: Size of a file, in millions of bytes.
        concurrency: How many recordings are heard at a time.

    Yields:
        The page's address.

    Raises:
        UserError: If a setting or the port cannot be used.
    """
    if not 0 < max_upload_mb < math.inf:
        raise UserError(f"max_upload_mb is {max_upload_mb}: expected more than 0")
    max_bytes = int(max_upload_mb * 1e6)
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="kenya_birds_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        sessions = Sessions(Path(folder))
        blocks = build(Page(analyser, sessions), max_upload_mb=max_upload_mb, concurrency=concurrency)
        guard = Middleware(Guard, max_upload_bytes=max_bytes, uploads=Path(folder))
        try:
            address = _launch(blocks, host, port, max_bytes, guard)
            with sessions.swept():
                yield address
        finally:
            blocks.close()
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(model: str | Path, *, concurrency: int = 1, max_hours: float = 2.0, **options: Any) -> None:
    """Serves the page until the process is interrupted.

    Args:
        model: A model's folder, or `owner/name` or `owner/name@revision` on the Hub; its code is not run.
        concurrency: How many recordings are heard at a time.
        max_hours: Longer recordings are refused.
        **options: See `running_demo`.

    Raises:
        UserError: If the model, a setting or the port cannot be used.
    """
    analyser = Analyser(model, concurrency=concurrency, max_hours=max_hours)
    with running_demo(analyser, concurrency=concurrency, **options) as address:
        print(f"The page is at {address} (Ctrl+C stops it)", flush=True)
        wait_for_end()


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
            # Gradio's own fonts come from Google.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
        )
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error}): give another --host or --port") from None
    return str(address)


def wait_for_end() -> None:
    """Returns when the process is asked to end, by Ctrl+C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _picture(name: str) -> gr.Image:
    return gr.Image(
        show_label=False,
        type="filepath",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        elem_id=name,
        elem_classes="picture",
    )
