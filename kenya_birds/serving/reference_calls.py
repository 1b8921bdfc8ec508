"""Reference calls of species, from an archive of annotations."""

import threading
from dataclasses import dataclass
from pathlib import Path

from kenya_birds.data.archive import Archive
from kenya_birds.exploration.call_examples import find_clear_call
from kenya_birds.verification.clips import draw_clip, write_clip

LENGTH_S, SEED = 4.0, 0


@dataclass(frozen=True)
class Reference:
    """An annotated call: `sound` (FLAC) and `picture` (PNG)."""

    sound: Path
    picture: Path


class ReferenceCalls:
    """Finds a clear call of a species when it is first asked for, and keeps it.

    Args:
        archive: The archive.
        sampling_rate: Sampling rate of the clips in Hz.
        folder: An existing folder for the clips.

    Attributes:
        species: eBird codes of the species with annotated calls.
    """

    def __init__(self, archive: Archive, sampling_rate: int, folder: Path) -> None:
        self._archive = archive.without_partial()
        self.species = frozenset(self._archive.annotations["species"])
        self._sampling_rate = sampling_rate
        self._folder = folder
        self._lock = threading.Lock()
        self._found: dict[str, Reference | None] = {}

    def find(self, species: str) -> Reference | None:
        """Returns the call of a species; None if the archive has no readable call of it.

        It is the clearest one of a few random calls (see `find_clear_call`), in the middle of a clip of 4 s.

        Args:
            species: eBird code, one of `species`.

        Raises:
            UserError: If the clip cannot be written.
        """
        with self._lock:
            if species not in self._found:
                self._found[species] = self._make(species)
            return self._found[species]

    def _make(self, species: str) -> Reference | None:
        call = find_clear_call(self._archive, self._sampling_rate, LENGTH_S, SEED, species=species)
        if call is None:
            return None
        stem = f"reference_{len(self._found)}"
        reference = Reference(self._folder / f"{stem}.flac", self._folder / f"{stem}.png")
        write_clip(call.clip, self._sampling_rate, reference.sound, "flac")
        begin_s = max(0.0, call.center_s - LENGTH_S / 2)
        draw_clip(reference.sound, reference.picture, (begin_s, begin_s + LENGTH_S), None)
        return reference
