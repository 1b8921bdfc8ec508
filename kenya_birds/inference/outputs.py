"""Files that appear together or not at all."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO


class Outputs:
    """Files of one folder, written under other names until `commit` gives all of them theirs.

    A context manager: what was not committed at its end is removed.

    Args:
        folder: Their folder; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._partials: dict[Path, Path] = {}
        self._open: list[IO[str]] = []

    def __enter__(self) -> "Outputs":
        """Makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes what is open and removes what was not committed."""
        for file in self._open:
            # A full disk lets closing fail too.
            with contextlib.suppress(OSError):
                file.close()
        for partial in self._partials.values():
            partial.unlink(missing_ok=True)

    def open(self, name: str) -> IO[str]:
        """Opens a text file, UTF-8 with LF; what cannot be UTF-8 is escaped.

        Args:
            name: Its path in the folder, parts divided by `/`.
        """
        file = open(self.partial(name), "w", encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115
        self._open = [other for other in self._open if not other.closed] + [file]
        return file

    def partial(self, name: str) -> Path:
        """Where to write a file in the meantime."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partials[path] = path.with_name(path.name + ".part")
        return self._partials[path]

    def commit(self) -> list[Path]:
        """Gives all files their names, replacing what was there; returns them in the order of their opening."""
        for file in self._open:
            file.close()
        paths = list(self._partials)
        for path in paths:
            os.replace(self._partials.pop(path), path)
        return paths
