"""Sessions of visitors: a folder and the scores of a recording, until the page is closed."""

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kenya_birds.errors import UserError
from kenya_birds.files import link_or_copy
from kenya_birds.serving.analysis import Findings

logger = logging.getLogger(__name__)

MAX_SESSIONS = 500
# For browsers that do not report the end of a page.
IDLE_S = 3600.0
# Unused files are removed this long after their last change. The delay is necessary because the web server stores
# files with the same content once, and another visitor may just have sent it.
UPLOAD_GRACE_S = 120.0
SWEEP_S = 30.0
SESSION = "session-"  # prefix of the folders of sessions
EXAMPLES = "examples"  # folder of example recordings, which are not removed
KEPT_OUTPUTS = 2


@dataclass
class Session:
    """Session of one page of a visitor.

    Attributes:
        folder: Folder of the session, with a name that cannot be guessed.
        upload: The file in the web server's folder.
        recording: The same file in the session's folder, available until the session ends.
        findings: Scores of the recording; None before the analysis.
        used_s: Time of the last request, on the monotonic clock.
        is_closed: Set when the session ends.
    """

    folder: Path
    upload: Path
    recording: Path
    used_s: float
    findings: Findings | None = None
    is_closed: threading.Event = field(default_factory=threading.Event)
    _overlap_s: float | None = None  # of the last analysis
    _chosen_s: float | None = None  # the last overlap that was chosen on the page
    _analysis: int = 0
    _outputs: list[Path] = field(default_factory=list)
    _answers: dict[str, int] = field(default_factory=dict)  # the number of the last one, by kind
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, overlap_s: float) -> None:
        """Records that the page wants another overlap: an analysis with a different one is no longer wanted."""
        with self._lock:
            self._chosen_s = overlap_s
            if overlap_s != self._overlap_s:
                self._overlap_s = None
                self._analysis += 1

    def begin_analysis(self, overlap_s: float) -> int | None:
        """Returns the number of a new analysis; an earlier one is no longer wanted.

        Args:
            overlap_s: Overlap of neighbouring windows in seconds.

        Returns:
            None if there is an analysis with this overlap already, or another overlap was chosen since the request.
        """
        with self._lock:
            if overlap_s == self._overlap_s or self._chosen_s not in (None, overlap_s):
                return None
            self._overlap_s = overlap_s
            self._analysis += 1
            return self._analysis

    def is_wanted(self, analysis: int) -> bool:
        """Returns True if the session has not ended, and an analysis, by its number, is its last one."""
        return self._analysis == analysis and not self.is_closed.is_set()

    def begin_answer(self, kind: str) -> Callable[[], bool]:
        """Returns a function that returns True until a later answer of this kind is begun, or the session ends.

        Several events of the page have answers of one kind. A late answer of one would replace a newer one of another.

        Args:
            kind: What the page shows.
        """
        with self._lock:
            number = self._answers[kind] = self._answers.get(kind, 0) + 1
        return lambda: self._answers[kind] == number and not self.is_closed.is_set()

    def new_folder(self, kind: str) -> Path:
        """Creates a folder for files of the page; only the last two of each kind are kept.

        Args:
            kind: Prefix of the folder's name.
        """
        folder = self.folder / f"{kind}-{secrets.token_hex(6)}"
        with self._lock:
            folder.mkdir()
            self._outputs.append(folder)
            old = [path for path in self._outputs if path.name.startswith(f"{kind}-")][:-KEPT_OUTPUTS]
            self._outputs = [path for path in self._outputs if path not in old]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return folder


class Sessions:
    """Sessions of a server, by the key of each page.

    Args:
        uploads: The web server's folder of uploads. Other files are never opened.
        clock: Function that returns the monotonic time in seconds.
    """

    def __init__(self, uploads: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._uploads = uploads.resolve()
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, key: str, upload: str | Path) -> Session:
        """Starts a session with a file, and ends the page's previous session.

        Args:
            key: The page's key.
            upload: Path of the upload, as sent by the page; it is verified.

        Raises:
            UserError: If the path is not an uploaded file.
        """
        # Links are resolved before the check; the server stores each upload in its own folder.
        try:
            path = Path(upload).resolve()
            is_upload = path.parent.parent == self._uploads and not path.parent.name.startswith(SESSION)
            is_here = is_upload and path.is_file()
        except (OSError, ValueError):  # not a valid path
            is_here = False
        if not is_here:
            raise UserError("this file is no longer on the server: upload it again")
        self._expire(MAX_SESSIONS - 1)
        folder = self._uploads / f"{SESSION}{secrets.token_urlsafe(24)}"
        folder.mkdir(mode=0o700)
        recording = folder / path.name
        link_or_copy(path, recording)
        session = Session(folder, path, recording, self._clock())
        with self._lock:
            before = self._sessions.pop(key, None)
            self._sessions[key] = session
        _end(before)
        return session

    def find(self, key: str) -> Session | None:
        """Returns the page's session; None if it has none, or it was ended."""
        with self._lock:
            session = self._sessions.get(key)
        if session is not None:
            session.used_s = self._clock()
        return session

    def close(self, key: str, session: Session | None = None) -> None:
        """Ends the page's session, if it has one, and deletes its files.

        Args:
            key: The page's key.
            session: The session to end, possibly replaced by another one since; by default the page's current one.
        """
        with self._lock:
            found = self._sessions.get(key)
            if session is None or found is session:
                self._sessions.pop(key, None)
        _end(session or found)

    def close_all(self) -> None:
        """Ends all sessions."""
        for key in list(self._sessions):
            self.close(key)

    def __len__(self) -> int:
        """Returns the number of sessions."""
        return len(self._sessions)

    def sweep(self) -> None:
        """Ends idle sessions, and removes unused uploads."""
        self._expire(MAX_SESSIONS)
        with self._lock:
            in_use = {session.upload for session in self._sessions.values()}
            folders = {session.folder for session in self._sessions.values()}
        for path in self._uploads.glob("*"):
            if path.name.startswith(SESSION):
                if path not in folders and _is_old(
                    path
                ):  # on Windows, open files could not be removed when the session ended
                    shutil.rmtree(path, ignore_errors=True)
                continue
            if path.name == EXAMPLES:
                continue
            for file in list(path.iterdir()) if path.is_dir() else [path]:
                if file not in in_use and _is_old(file):
                    with suppress(OSError):  # it is open, or was removed meanwhile
                        file.unlink()
                        logger.debug("%s was removed", file)
            if _is_old(path):
                with suppress(OSError):  # it is a file, or not empty
                    path.rmdir()

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Calls `sweep` every 30 s while the `with` block lasts, and ends all sessions at its end."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(SWEEP_S):
                try:
                    self.sweep()
                except OSError as error:  # an upload was added or removed meanwhile
                    logger.debug("%s", error)

        thread = threading.Thread(target=work, name="sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.close_all()

    def _expire(self, most: int) -> None:
        """Ends idle sessions, and the least recently used ones if there are more than `most`."""
        with self._lock:
            by_age = sorted(self._sessions, key=lambda key: self._sessions[key].used_s)
            left = [key for key in by_age if self._clock() - self._sessions[key].used_s > IDLE_S]
            too_many = by_age[: max(0, len(by_age) - most)]
        for key in {*left, *too_many}:
            self.close(key)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > UPLOAD_GRACE_S
    except OSError:
        return False


def _end(session: Session | None) -> None:
    if session is not None:
        session.is_closed.set()
        shutil.rmtree(session.folder, ignore_errors=True)
