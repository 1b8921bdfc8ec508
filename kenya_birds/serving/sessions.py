"""What is kept of each visitor: a folder and what was heard, until the page is closed; the upload goes soon after."""

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
# For visitors whose browser does not say good-bye.
IDLE_S = 3600.0
# Files that no session uses are removed so long after they were last written to. Not at once: of files with the same
# content the web server has one, and somebody else may just have sent it.
UPLOAD_GRACE_S = 120.0
SWEEP_S = 30.0
SESSION = "session-"  # begins the names of sessions' folders
EXAMPLES = "examples"  # the folder of recordings that visitors can choose: they stay
KEPT_OUTPUTS = 2


@dataclass
class Session:
    """What a visitor's page shows.

    Attributes:
        folder: Of this session alone, with a name that cannot be guessed.
        upload: The file as the web server keeps it.
        recording: The same file in the session's folder: it stays there while the session lasts.
        findings: What was heard; None before.
        used_s: When it was last asked for, on the monotonic clock.
        is_closed: Whether nobody waits any more.
    """

    folder: Path
    upload: Path
    recording: Path
    used_s: float
    findings: Findings | None = None
    is_closed: threading.Event = field(default_factory=threading.Event)
    _overlap_s: float | None = None
    _outputs: list[Path] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin_hearing(self, overlap_s: float) -> bool:
        """Whether nobody has begun to hear it with this overlap yet: of two events of one page, one hears."""
        with self._lock:
            before, self._overlap_s = self._overlap_s, overlap_s
        return before != overlap_s

    def is_wanted(self, overlap_s: float) -> bool:
        """Whether this overlap is the last that was asked for."""
        return self._overlap_s == overlap_s

    def new_folder(self, kind: str) -> Path:
        """A new folder for files that the page shows; of one kind the last two stay.

        Args:
            kind: Name of the kind.
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
    """The sessions of a server, by the key that each page has.

    Args:
        uploads: The folder in which the web server keeps what is sent to it. No other file is ever opened.
        clock: Monotonic time in seconds.
    """

    def __init__(self, uploads: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._uploads = uploads.resolve()
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, key: str, upload: str | Path) -> Session:
        """Begins a session with a file, and ends the one that the page had before.

        Args:
            key: The page's key.
            upload: Path that the page says its file has. It is not believed.

        Raises:
            UserError: If it is no file that was sent to this server.
        """
        # Links are followed before it is looked where it is; the server puts each upload in a folder of its own.
        try:
            path = Path(upload).resolve()
            is_upload = path.parent.parent == self._uploads and not path.parent.name.startswith(SESSION)
            is_here = is_upload and path.is_file()
        except (OSError, ValueError):  # what is no path
            is_here = False
        if not is_here:
            raise UserError("this file is not here, or not any more: drop it again")
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
        """The page's session; None if it has none, or had to make room."""
        with self._lock:
            session = self._sessions.get(key)
        if session is not None:
            session.used_s = self._clock()
        return session

    def close(self, key: str, session: Session | None = None) -> None:
        """Ends the page's session, if it has one, and removes what was kept of it.

        Args:
            key: The page's key.
            session: The session to end, which another one may have replaced since; by default the page's, whichever.
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
        """How many there are."""
        return len(self._sessions)

    def sweep(self) -> None:
        """Ends sessions that were left, and removes uploads that no session uses."""
        self._expire(MAX_SESSIONS)
        with self._lock:
            in_use = {session.upload for session in self._sessions.values()}
            folders = {session.folder for session in self._sessions.values()}
        for path in self._uploads.glob("*"):
            if path.name.startswith(SESSION):
                if path not in folders and _is_old(path):  # Windows kept files that were open when the session ended
                    shutil.rmtree(path, ignore_errors=True)
                continue
            if path.name == EXAMPLES:
                continue
            for file in list(path.iterdir()) if path.is_dir() else [path]:
                if file not in in_use and _is_old(file):
                    with suppress(OSError):  # it is open, or went meanwhile
                        file.unlink()
                        logger.debug("%s was removed", file)
            if _is_old(path):
                with suppress(OSError):  # it is a file, or not empty
                    path.rmdir()

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Sweeps every 30 s while the `with` block lasts, and ends all sessions at its end."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(SWEEP_S):
                try:
                    self.sweep()
                except OSError as error:  # an upload came or went meanwhile
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
        """Ends sessions that were left, and the ones that were used least lately of more than `most`."""
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
