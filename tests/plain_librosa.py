"""Imports librosa without numba, which compiles for twenty seconds where it has no cache, and nothing that is tested.

What it would compile stays as it is written, so functions that it makes universal ones are not to be called.
"""

import sys
import types

import pytest


def _plain(*arguments, **_):
    """A decorator that leaves a function as it is."""
    return arguments[0] if arguments and callable(arguments[0]) else _plain


_numba = types.ModuleType("numba")
_numba.jit = _numba.stencil = _numba.vectorize = _numba.guvectorize = _plain
with pytest.MonkeyPatch.context() as _patch:
    _patch.setitem(sys.modules, "numba", _numba)
    import librosa

    # librosa imports its parts when they are used.
    _PARTS = librosa.stft, librosa.filters.mel, librosa.util.normalize, librosa.feature.melspectrogram

__all__ = ["librosa"]
