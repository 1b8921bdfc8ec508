"""What makes synthetic soundscapes like the field: other sounds than birds, distance, and the time of day."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import signal

SAMPLE_RATE_HZ = 32_000
REFERENCE_M = 10.0  # where a call has the level at which it is rendered
DISTANCE_RANGE_M = (5.0, 150.0)
# Absorption by air at 20 degrees Celsius and 70% humidity, within 20% of ISO 9613-1 from 1 to 10 kHz.
AIR_DB_PER_M, AIR_DB_PER_M_KHZ2 = 0.004, 0.0012
# Echoes from trees and ground: they decay by 60 dB in this time, and are as strong as the direct sound at a distance.
REVERBERATION_S, CRITICAL_M = 0.8, 60.0
# Call rate by hour: a floor at night, a dawn chorus and a smaller one at dusk.
NIGHT_RATE, DAY_RATE = 0.1, 0.3
DAWN_HOUR, DUSK_HOUR, CHORUS_HOURS = 6.5, 18.0, 1.0
DAWN_RATE, DUSK_RATE = 1.0, 0.6
MAX_SOUND_S = 30.0
FADE_S = 1.0


def call_rate(hour: float) -> float:
    """How often birds call at a time of day, relative to the height of the dawn chorus.

    Args:
        hour: Local time, 0 to 24.
    """
    is_day = DAWN_HOUR - 0.5 <= hour <= DUSK_HOUR + 0.5
    choruses = ((DAWN_RATE, DAWN_HOUR), (DUSK_RATE, DUSK_HOUR))
    bumps = [rate * np.exp(-0.5 * ((hour - middle) / CHORUS_HOURS) ** 2) for rate, middle in choruses]
    return float(max(DAY_RATE if is_day else NIGHT_RATE, *bumps))


def air_loss_db(frequency_hz: np.ndarray, distance_m: float) -> np.ndarray:
    """What air absorbs between the reference distance and another one, in dB; negative if it is nearer.

    Args:
        frequency_hz: Any shape.
        distance_m: Distance of the source.
    """
    per_m = AIR_DB_PER_M + AIR_DB_PER_M_KHZ2 * (np.asarray(frequency_hz) / 1000) ** 2
    return per_m * (distance_m - REFERENCE_M)


def attenuate(sound: np.ndarray, distance_m: float) -> np.ndarray:
    """A sound as it is heard from a distance: 6 dB quieter at twice the distance, and duller by what air absorbs.

    Args:
        sound: As it is heard at `REFERENCE_M`, shape `(samples,)`.
        distance_m: Distance of the source.
    """
    spectrum = np.fft.rfft(sound)
    loss_db = air_loss_db(np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE_HZ), distance_m)
    return REFERENCE_M / distance_m * np.fft.irfft(spectrum * 10 ** (-loss_db / 20), len(sound))


def reverberate(sound: np.ndarray, distance_m: float, rng: np.random.Generator) -> np.ndarray:
    """Adds echoes: noise that decays by 60 dB in `REVERBERATION_S`.

    The echoes have the energy of the direct sound at `CRITICAL_M`. They are 6 dB weaker at half of this distance and
    6 dB stronger at twice this distance, because they fill the place evenly while the direct sound becomes quieter.

    Args:
        sound: The direct sound at the listener, shape `(samples,)`.
        distance_m: Distance of the source.
        rng: Source of randomness.

    Returns:
        The sound, longer by the echoes.
    """
    time_s = np.arange(round(REVERBERATION_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    echoes = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / REVERBERATION_S)
    echoes *= distance_m / CRITICAL_M / np.linalg.norm(echoes)
    heard = signal.fftconvolve(sound, echoes)
    heard[: len(sound)] += sound
    return heard


class OtherSound(NamedTuple):
    """A sound that is no bird, and is not annotated."""

    start_s: float  # may be before the recording
    duration_s: float
    kind: str
    level_db: float  # RMS over that of the steady noise
    seed: int


class _Kind(NamedTuple):
    """A kind of sound: how it is rendered, how often it happens by day and by night, and how loud and long it is."""

    render: Callable[[int, np.random.Generator], np.ndarray]
    by_day_per_min: float
    by_night_per_min: float
    level_range_db: tuple[float, float]
    duration_range_s: tuple[float, float]


def plan_other_sounds(duration_s: float, hour: float, rng: np.random.Generator) -> list[OtherSound]:
    """Chooses the sounds of a recording that are no birds.

    Args:
        duration_s: Length of the recording.
        hour: Local time at its start; night is from 18:30 to 6:00.
        rng: Source of randomness.

    Returns:
        In order of time.
    """
    is_night = not 6.0 <= hour % 24 < 18.5
    sounds = []
    for name, kind in KINDS.items():
        rate_per_min = kind.by_night_per_min if is_night else kind.by_day_per_min
        for _ in range(rng.poisson(rate_per_min * duration_s / 60)):
            length_s = rng.uniform(*kind.duration_range_s)
            start_s = rng.uniform(-length_s, duration_s)
            level_db = rng.uniform(*kind.level_range_db)
            sounds.append(OtherSound(start_s, length_s, name, level_db, int(rng.integers(2**63))))
    return sorted(sounds)


def render_other_sound(kind: str, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Renders a sound that is no bird.

    Args:
        kind: A key of `KINDS`.
        duration_s: Its length, at most `MAX_SOUND_S`.
        rng: Source of randomness.

    Returns:
        Samples at `SAMPLE_RATE_HZ` with an RMS of 1, faded in and out.
    """
    frames = round(duration_s * SAMPLE_RATE_HZ)
    sound = KINDS[kind].render(frames, rng)
    fade = min(2 * FADE_S / duration_s, 1.0)
    sound = sound * signal.windows.tukey(frames, fade)
    return sound / np.sqrt(np.mean(sound**2))


def _time_s(frames: int) -> np.ndarray:
    return np.arange(frames) / SAMPLE_RATE_HZ


def _pulses(time_s: np.ndarray, rate_hz: float, sharpness: float) -> np.ndarray:
    """Pulses from 0 to 1; the sharper, the shorter they are."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * rate_hz * time_s)) ** sharpness


def _smooth_noise(frames: int, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Random numbers with a standard deviation of about 1 that change about `rate_hz` times a second."""
    knots = rng.standard_normal(max(4, round(frames / SAMPLE_RATE_HZ * rate_hz) + 2))
    return np.interp(np.linspace(0, len(knots) - 1, frames), np.arange(len(knots)), knots)


def _filtered_noise(
    frames: int, rng: np.random.Generator, order: int, edges_hz: float | list[float], kind: str
) -> np.ndarray:
    sos = signal.butter(order, edges_hz, kind, fs=SAMPLE_RATE_HZ, output="sos")
    return signal.sosfilt(sos, rng.standard_normal(frames))


def _insects(frames: int, rng: np.random.Generator) -> np.ndarray:
    """A cricket or bush-cricket: one frequency from 4 to 9 kHz, in fast pulses, with or without pauses."""
    time_s = _time_s(frames)
    carrier = np.sin(2 * np.pi * rng.uniform(4000, 9000) * time_s)
    song = carrier * _pulses(time_s, rng.uniform(25, 60), 2.0)
    return song * _pulses(time_s, rng.uniform(1.5, 4.0), 1.5) if rng.random() < 0.5 else song


def _frogs(frames: int, rng: np.random.Generator) -> np.ndarray:
    """A frog: croaks of fast pulses round one frequency from 600 Hz to 2.5 kHz, about one a second."""
    time_s = _time_s(frames)
    carrier = np.sin(2 * np.pi * rng.uniform(600, 2500) * time_s)
    return carrier * _pulses(time_s, rng.uniform(40, 90), 3.0) * _pulses(time_s, rng.uniform(0.7, 1.5), 4.0)


def _wind(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Gusts in the microphone: noise below 200 Hz that swells and fades."""
    rumble = _filtered_noise(frames, rng, 2, rng.uniform(100, 200), "lowpass")
    return rumble * np.exp(_smooth_noise(frames, 0.7, rng))


def _rain(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Steady noise from 1 to 14 kHz, and single drops."""
    drops = (rng.random(frames) < 30 / SAMPLE_RATE_HZ) * rng.exponential(1.0, frames)
    click = np.exp(-_time_s(640) / 0.002) * rng.standard_normal(640)
    steady = _filtered_noise(frames, rng, 1, [1000.0, 14_000.0], "bandpass")
    return steady / steady.std() + signal.fftconvolve(drops, click)[:frames]


def _engine(frames: int, rng: np.random.Generator) -> np.ndarray:
    """A vehicle that passes: multiples of 40 to 110 Hz, louder in the middle."""
    time_s = _time_s(frames)
    phase = 2 * np.pi * rng.uniform(40, 110) * time_s + rng.uniform(1, 4) * np.sin(2 * np.pi * 0.3 * time_s)
    sound = sum(rng.uniform(0.3, 1) / n * np.sin(n * phase + rng.uniform(0, 6)) for n in range(1, 16))
    return sound * signal.windows.hann(frames)


def _people(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Speech without words: syllables of a voice of 100 to 240 Hz with two formants, and pauses."""
    time_s = _time_s(frames)
    phase = np.cumsum(rng.uniform(100, 240) * (1 + 0.08 * _smooth_noise(frames, 3.0, rng))) / SAMPLE_RATE_HZ
    voice = signal.sawtooth(2 * np.pi * phase)
    speech, syllable = np.zeros(frames), round(0.22 * SAMPLE_RATE_HZ)
    for start in range(0, frames - syllable, syllable * 3 // 4):
        for low_hz, high_hz, share in ((300, 800, 1.0), (900, 2300, 0.5)):
            formant_hz = rng.uniform(low_hz, high_hz)
            b, a = signal.iirpeak(formant_hz, 6.0, fs=SAMPLE_RATE_HZ)
            part = signal.lfilter(b, a, voice[start : start + syllable])
            speech[start : start + syllable] += share * part * signal.windows.hann(syllable)
    pauses = np.sin(2 * np.pi * rng.uniform(0.2, 0.4) * time_s + rng.uniform(0, 6))
    return speech * np.clip(10 * (pauses + 0.4), 0, 1)


KINDS = {
    "insects": _Kind(_insects, 0.8, 2.0, (-3.0, 10.0), (8.0, 30.0)),
    "frogs": _Kind(_frogs, 0.2, 1.0, (0.0, 12.0), (5.0, 20.0)),
    "wind": _Kind(_wind, 1.0, 0.5, (5.0, 20.0), (4.0, 15.0)),
    "rain": _Kind(_rain, 0.2, 0.2, (0.0, 10.0), (20.0, 30.0)),
    "engine": _Kind(_engine, 0.4, 0.1, (3.0, 15.0), (8.0, 20.0)),
    "people": _Kind(_people, 0.4, 0.1, (0.0, 12.0), (3.0, 12.0)),
}
