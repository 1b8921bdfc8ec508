"""Files that appear together or not at all."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq


class Closable(Protocol):
    """Something open."""

    def close(self) -> None:
        """Closes it; a second time does nothing."""


F = TypeVar("F", bound=Closable)


class Outputs:
    """Files of one folder, written under other names until `commit` gives all of them theirs.

    A context manager: what was not committed at its end is removed.

    Args:
        folder: Their folder; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._partials: dict[Path, Path] = {}
        self._open: list[Closable] = []

    def __enter__(self) -> "Outputs":
        """Makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes what is open and removes what was not committed."""
        for file in reversed(self._open):
            # A full disk lets closing fail too.
            with contextlib.suppress(OSError):
                file.close()
        for partial in self._partials.values():
            partial.unlink(missing_ok=True)

    def open(self, name: str) -> TextIO:
        """Opens a text file, UTF-8 with LF; what cannot be UTF-8 is escaped.

        Args:
            name: Its path in the folder, parts divided by `/`.
        """
        file = open(self._partial(name), "w", encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115
        return self._keep(file)

    def open_parquet(self, name: str, schema: pa.Schema) -> pq.ParquetWriter:
        """Opens a Parquet file (see `open`)."""
        return self._keep(pq.ParquetWriter(self._partial(name), schema, compression="zstd"))

    def _keep(self, file: F) -> F:
        self._open = [*(other for other in self._open if not getattr(other, "closed", False)), file]
        return file

    def _partial(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partials[path] = path.with_name(path.name + ".part")
        return self._partials[path]

    def commit(self) -> list[Path]:
        """Gives all files their names, replacing what was there; returns them in the order of their opening."""
        for file in self._open:
            file.close()
        paths = list(self._partials)
        # On Windows a file that a program such as Excel has open cannot be replaced: then none shall be.
        for path in filter(os.path.exists, paths):
            try:
                os.replace(path, path)
            except PermissionError as error:
                raise PermissionError(
                    error.errno, f"{path.name} cannot be replaced; close the program in which it is open"
                ) from None
        for path in paths:
            os.replace(self._partials.pop(path), path)
        return paths
