"""How far a sound is from the calls that a model learned from: the distance of its embedding to theirs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kenya_birds.errors import UserError
from kenya_birds.files import users_file
from kenya_birds.saved_models import NOVELTY_FILE, SavedModel

if TYPE_CHECKING:
    import torch

# With the second-nearest training call, one odd training call changes little.
RANK = 2
# With fewer known calls, a share of 5% of them is less than one call.
LEAST_KNOWN = 20
NOVELTY_DIGITS = 4
ROWS_AT_ONCE = 512
ARRAYS, RANK_KEY = ("calls", "known"), "rank"


@dataclass(frozen=True)
class NoveltyReference:
    """Embeddings of training calls, and how far known calls of other recordings are from them.

    The distance of a sound is 1 minus the cosine of the angle between its embedding and that of the `rank`-th nearest
    training call (deep nearest neighbours: Sun, Ming, Zhu and Li, ICML 2022). Its novelty is the share of known calls,
    those of the validation recordings, that have a smaller distance or the same.

    Attributes:
        calls: Embeddings of training calls, of length 1, float16 of shape `(calls, size)`.
        known: Distances of known calls, ascending, float32 of shape `(known,)`.
        rank: Rank of the training call whose distance counts, from 1, the nearest.
    """

    calls: np.ndarray
    known: np.ndarray
    rank: int = RANK

    def __post_init__(self) -> None:
        """Checks shapes and values."""
        if self.calls.ndim != 2 or not 1 <= self.rank <= len(self.calls):
            raise ValueError(f"calls have the shape {self.calls.shape}: expected {self.rank} or more rows")
        if self.known.ndim != 1 or not len(self.known) or (np.diff(self.known) < 0).any():
            raise ValueError(f"known has the shape {self.known.shape}: expected one or more ascending distances")
        if not (np.isfinite(self.calls).all() and np.isfinite(self.known).all()):
            raise ValueError("a value is not finite")

    @classmethod
    def of(cls, calls: np.ndarray, known: np.ndarray | None, rank: int = RANK) -> "NoveltyReference":
        """Measures the distances of known calls.

        Args:
            calls: Embeddings of training calls, shape `(calls, size)`.
            known: Embeddings of known calls of other recordings, shape `(known, size)`; None: not measured yet.
            rank: Rank of the training call whose distance counts, from 1.
        """
        reference = cls(unit(calls).astype(np.float16), np.zeros(1, dtype=np.float32), rank)
        if known is None:
            return reference
        return replace(reference, known=np.sort(reference.nearest()(known)).astype(np.float32))

    @property
    def size(self) -> int:
        """Length of an embedding."""
        return int(self.calls.shape[1])

    def nearest(self, device: "torch.device | str" = "cpu") -> "NearestCalls":
        """The training calls on a device, to which distances are measured."""
        return NearestCalls(unit(self.calls), self.rank, device)

    def measure(self, device: "torch.device | str" = "cpu") -> Callable[["torch.Tensor"], np.ndarray]:
        """A function from embeddings on a device to their novelty, float64 of shape `(windows,)`."""
        nearest = self.nearest(device)
        return lambda embeddings: self.novelty(nearest(embeddings))

    @cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances, and the share of known calls up to each of them."""
        distances, counts = np.unique(self.known.astype(np.float64), return_counts=True)
        shares = np.cumsum(counts) / len(self.known)
        return (distances, shares) if distances[0] <= 0 else (np.append(0.0, distances), np.append(0.0, shares))

    def novelty(self, distances: np.ndarray) -> np.ndarray:
        """Novelty of distances: the share of known calls that are as near or nearer, interpolated between them.

        Args:
            distances: Any shape (see `NearestCalls`).

        Returns:
            0 to 1, rounded to 4 digits, same shape. It is 1 from the farthest known call on.
        """
        return np.interp(distances, *self._steps).round(NOVELTY_DIGITS)

    def write(self, path: str | Path) -> None:
        """Writes a safetensors file.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            UserError: If it cannot be written.
        """
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        with users_file(Path(path)) as partial:
            save_file(arrays, partial, {RANK_KEY: str(self.rank)})

    @classmethod
    def of_model(cls, saved: SavedModel) -> "NoveltyReference":
        """Reads the file of a model.

        Raises:
            UserError: If the model has none, or it cannot be read.
        """
        path = saved.folder / NOVELTY_FILE
        if not path.is_file():
            raise UserError(
                f"'{saved.name}' has no {NOVELTY_FILE} with embeddings of its training calls (a published network has "
                "none, nor has a model of an older version, or one whose validation recordings had fewer than "
                f"{LEAST_KNOWN} windows with a call): leave out --novelty, or train again, with {LEAST_KNOWN} such "
                "windows or more"
            )
        return cls.read(path)

    @classmethod
    def read(cls, path: str | Path) -> "NoveltyReference":
        """Reads a file of `write`.

        Raises:
            UserError: If it cannot be read or is not such a file.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                calls, known = map(file.get_tensor, ARRAYS)
                return cls(calls, known, int((file.metadata() or {})[RANK_KEY]))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise UserError(
                f"{path} is not a file with embeddings of training calls ({type(error).__name__}: {error}): "
                "train again, or leave out --novelty"
            ) from None


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 in the same directions, float32 of shape `(vectors, size)`; zeros stay zeros."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


class NearestCalls:
    """Measures how far embeddings are from the nearest training calls.

    Args:
        calls: Embeddings of training calls, of length 1, float32 of shape `(calls, size)`.
        rank: Rank of the training call whose distance counts, from 1.
        device: Device of the embeddings.
    """

    def __init__(self, calls: np.ndarray, rank: int, device: "torch.device | str") -> None:
        import torch

        self._calls = torch.from_numpy(calls).to(device)
        self._rank = rank

    def __call__(self, embeddings: "np.ndarray | torch.Tensor") -> np.ndarray:
        """Distance of each embedding to the training call of the rank: 1 minus the cosine.

        Args:
            embeddings: Shape `(windows, size)`.

        Returns:
            0 to 2, float64 of shape `(windows,)`.
        """
        found = [np.zeros(0)]
        for nearest, _ in self._nearest(embeddings, self._rank):
            found.append(_distance(nearest[:, -1]))
        return np.concatenate(found)

    def without(self, embeddings: "np.ndarray | torch.Tensor", groups: np.ndarray) -> np.ndarray:
        """Distance of each embedding to the training call of the rank, if the calls of a group are left out.

        Args:
            embeddings: Shape `(windows, size)`.
            groups: Whether a call belongs to each group, shape `(calls, groups)`. Each group must leave as many calls
                as the rank.

        Returns:
            0 to 2, float64 of shape `(windows, groups)`.
        """
        # The call of the rank is among so many of the nearest ones, whichever group is left out.
        number = min(len(groups), self._rank + int(groups.sum(axis=0).max(initial=0)))
        found = [np.zeros((0, groups.shape[1]))]
        for nearest, calls in self._nearest(embeddings, number):
            distances, places = _distance(nearest), calls.cpu().numpy()
            rows = np.arange(len(distances))
            kept = [np.cumsum(~group[places], axis=1) for group in groups.T]
            found.append(np.stack([distances[rows, (one == self._rank).argmax(axis=1)] for one in kept], axis=1))
        return np.concatenate(found)

    def _nearest(
        self, embeddings: "np.ndarray | torch.Tensor", number: int
    ) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
        """Yields the cosines of the nearest calls and their places, nearest first, for some embeddings at a time."""
        import torch

        for part in torch.as_tensor(embeddings).split(ROWS_AT_ONCE):
            cosine = torch.nn.functional.normalize(part.float(), dim=1) @ self._calls.T
            nearest = cosine.topk(number, dim=1)
            yield nearest.values, nearest.indices


def _distance(cosine: "torch.Tensor") -> np.ndarray:
    return (1 - cosine.double()).clamp(0, 2).cpu().numpy()


def draw_calls(present: np.ndarray, rng: np.random.Generator, *, per_species: int, most: int) -> np.ndarray:
    """Draws calls so that no species has very many.

    Args:
        present: Whether each species calls in a clip or window, shape `(clips, species)`.
        rng: Random generator.
        per_species: Number of rows that are drawn for each species, if it has so many.
        most: Largest number of all rows.

    Returns:
        Indices of rows, ascending. Rows in which no species calls are never drawn.
    """
    drawn = np.zeros(len(present), dtype=bool)
    for calls in present.T:
        rows = np.flatnonzero(calls)
        drawn[rng.permutation(rows)[:per_species]] = True
    rows = np.flatnonzero(drawn)
    return np.sort(rng.permutation(rows)[:most])
