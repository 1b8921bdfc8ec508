"""Synthetic archives of any size, with invented bird calls, in the format of the Kenyan data set."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import soundfile as sf
from scipy import signal
from tqdm import tqdm

from kenya_birds.data.synthetic_field import (
    DISTANCE_RANGE_M,
    MAX_SOUND_S,
    REVERBERATION_S,
    SAMPLE_RATE_HZ,
    attenuate,
    call_rate,
    plan_other_sounds,
    render_other_sound,
    reverberate,
)
from kenya_birds.defaults import SYNTHETIC_DURATION_S, SYNTHETIC_RECORDINGS, SYNTHETIC_SPECIES
from kenya_birds.errors import UserError
from kenya_birds.folders import check_new_folder
from kenya_birds.values import Count, Seed, SyntheticDuration, checked

Scene = Literal["field", "quiet"]
BLOCK_S = 60.0  # audio held in memory at once
CALL_REACH_S = 0.7  # no call is longer than twice this
MAX_ANNOTATIONS_PER_S = 2.0
NOISE_RANGE_DBFS = (-58.0, -40.0)  # RMS
SNR_RANGE_DB = (6.0, 35.0)  # a call's peak over the noise's RMS
FIELD_SNR_RANGE_DB = (28.0, 36.0)  # the same, 10 m from the bird
# Hours after 5:30 at which the recordings of a site begin.
QUIET_HOURS, FIELD_HOURS = (0, 1, 11, 12), (1, 7, 12, 15)
MAX_CALL_DBFS = -9.0
SOFT_LIMIT, HARD_LIMIT = 0.8, 0.98  # fractions of full scale
# Shape of the real set: annotations of the species at a relative rank (0 the commonest, 1 the rarest).
REAL_RANKS = (0.0, 0.05, 0.165, 0.78, 0.925, 1.0)
REAL_COUNTS = (702.0, 240.0, 91.0, 5.5, 1.4, 0.6)


# Name, Latin and English, and the ranges of frequency (Hz), rate (Hz) and width among the species of a family.
FAMILIES = (
    ("whistle", "sibilans", "Whistler", (900.0, 8000.0), (1.5, 5.0), (0.005, 0.03)),
    ("trill", "tremula", "Triller", (1500.0, 9000.0), (18.0, 45.0), (0.0, 0.2)),
    ("sweep", "labens", "Sweeper", (1200.0, 7500.0), (1.0, 1.0), (0.5, 1.2)),
    ("harmonic", "canora", "Harmonist", (600.0, 2600.0), (5.0, 14.0), (0.01, 0.05)),
    ("buzz", "stridens", "Buzzer", (1500.0, 8500.0), (25.0, 90.0), (0.15, 0.45)),
)


class SyntheticSpecies(NamedTuple):
    """An invented species and its call."""

    code: str
    scientific_name: str
    common_name: str
    family: str
    frequency_hz: float  # carrier, middle of a sweep or buzz, or fundamental of a harmonic stack
    rate_hz: float  # pulses (trill, buzz) or cycles of frequency modulation (whistle, harmonic) per second
    width: float  # frequency width relative to the carrier; for a sweep, in octaves
    direction: int  # 1 for a rising sweep or trill pulse, -1 for a falling one
    syllables: int
    duration_s: float  # of the whole call


class _PlannedRecording(NamedTuple):
    """A recording before it is rendered."""

    name: str
    calls: list[tuple[float, SyntheticSpecies]]  # centre in seconds, in order of time
    audio_seed: np.random.SeedSequence


def synthetic_species(species: int) -> list[SyntheticSpecies]:
    """Invents species whose calls differ from those of neighbours in the list and of the same family.

    Args:
        species: Number of species. A longer list begins with the species of a shorter one.

    Returns:
        The species; calls are 0.2 to 1.2 s long.
    """
    birds = []
    for index in range(species):
        member, family_index = divmod(index, len(FAMILIES))
        family, latin, english, (low_hz, high_hz), rate_range_hz, width_range = FAMILIES[family_index]
        # Multiples of irrational numbers fill [0, 1) evenly for any number of species.
        position = member * np.array([(5**0.5 - 1) / 2, 2**0.5, 3**0.5, 7**0.5, 11**0.5])
        position += 0.5 + family_index * np.array([0.2, 0.37, 0.61, 0.23, 0.43])
        frequency, rate, width, syllables, duration = (float(value) for value in position % 1.0)
        birds.append(
            SyntheticSpecies(
                f"syn{family[:3]}{member + 1}",
                f"Avis {latin} {member + 1}",
                f"Synthetic {english} {member + 1}",
                family,
                frequency_hz=low_hz * (high_hz / low_hz) ** frequency,
                rate_hz=float(np.interp(rate, (0, 1), rate_range_hz)),
                width=float(np.interp(width, (0, 1), width_range)),
                direction=1 - 2 * (member % 2),
                syllables=1 + int(syllables * min(4, (0.2 + duration) // 0.2)),
                duration_s=0.2 + duration,
            )
        )
    return birds


def species_counts(species: int, annotations: int) -> list[int]:
    """Distributes annotations over species as unevenly as in the real data set.

    Args:
        species: Number of species, at least 1.
        annotations: Number of annotations, at least `species`.

    Returns:
        Annotations of each species, descending, at least 1. From six species on, the last has five or fewer.

    Raises:
        UserError: A number is too small.
    """
    if species < 1 or annotations < species:
        raise UserError(
            f"expected at least one species and one annotation for each, found {species} species and {annotations} "
            "annotations; change one of the numbers"
        )
    depth = np.log(REAL_COUNTS[0]) - np.interp(np.linspace(0, 1, species), REAL_RANKS, np.log(REAL_COUNTS))
    # The commonest species has 702 of 10,294 annotations among 176 species, and a larger share among fewer.
    steepness = _largest(lambda value: 1 / np.exp(-value * depth).sum() <= species**-0.52, 20.0)

    def rounded(scale: float) -> np.ndarray:
        return np.maximum(1, np.rint(scale * np.exp(-steepness * depth))).astype(int)

    counts = rounded(_largest(lambda scale: rounded(scale).sum() <= annotations, 2.0 * annotations))
    if species >= 6:
        counts[-1] = min(counts[-1], 5)
    counts[0] += annotations - counts.sum()
    return [int(count) for count in counts]


def _largest(holds: Callable[[float], bool], high: float) -> float:
    """Returns the largest number up to `high` that fulfils a condition, which 0 fulfils."""
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def render_call(bird: SyntheticSpecies, rng: np.random.Generator) -> np.ndarray:
    """Renders one call with random variation: frequency +-2 %, duration +-10 %.

    Args:
        bird: The species.
        rng: Source of randomness.

    Returns:
        Samples at `SAMPLE_RATE_HZ`, faded in and out, with a peak of 1 and the call's centre in the middle.
    """
    frequency_hz = bird.frequency_hz * rng.uniform(0.98, 1.02)
    frames = bird.duration_s * rng.uniform(0.9, 1.1) * SAMPLE_RATE_HZ
    gap = 0.4  # of a syllable
    syllable_frames = int(frames / (bird.syllables + (bird.syllables - 1) * gap))
    starts = [round(i * syllable_frames * (1 + gap)) for i in range(bird.syllables)]
    call = np.zeros(starts[-1] + syllable_frames)
    for start in starts:
        call[start : start + syllable_frames] = _render_syllable(bird, frequency_hz, syllable_frames, rng)
    return call / np.abs(call).max()


def _render_syllable(bird: SyntheticSpecies, frequency_hz: float, frames: int, rng: np.random.Generator) -> np.ndarray:
    progress = (np.arange(frames) + 0.5) / frames
    envelope = signal.windows.tukey(frames, 0.5)
    cycles = bird.rate_hz * frames / SAMPLE_RATE_HZ
    pulses = max(2, round(cycles))  # whole ones, so that the energy is centred
    ratio = np.ones(frames)
    if bird.family == "buzz":
        envelope *= 0.55 - 0.45 * np.cos(2 * np.pi * pulses * progress)
        edges_hz = frequency_hz * (1 + bird.width * np.array([-0.5, 0.5]))
        band = signal.butter(3, edges_hz, "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
        settle = 1024
        return envelope * signal.sosfilt(band, rng.standard_normal(settle + frames))[settle:]
    if bird.family == "trill":
        envelope *= np.sin(np.pi * pulses * progress) ** 4
        ratio += bird.direction * bird.width * (pulses * progress % 1.0 - 0.5)
    elif bird.family == "sweep":
        ratio = 2.0 ** (bird.direction * bird.width * (progress - 0.5))
    else:
        ratio += bird.width * np.sin(2 * np.pi * cycles * progress)
    phase = 2 * np.pi * np.cumsum(frequency_hz * ratio) / SAMPLE_RATE_HZ
    harmonics = range(1, 7 if bird.family == "harmonic" else 2)
    return envelope * sum(n**-0.7 * np.sin(n * phase) for n in harmonics if n * frequency_hz < 14_000)


class _Noise:
    """Generator of approximately pink noise with an RMS of 1, continuous from block to block."""

    def __init__(self, rumble: float, rng: np.random.Generator) -> None:
        """Takes the level of low-frequency rumble relative to the pink noise, and the source of randomness."""
        pink_b = [0.049922035, -0.095993537, 0.050612699, -0.004408786]
        pink_a = [1, -2.494956002, 2.017265875, -0.5221894]
        rumble_b, rumble_a = signal.butter(2, 120.0, fs=SAMPLE_RATE_HZ)
        gain = rumble * _white_gain(pink_b, pink_a) / _white_gain(rumble_b, rumble_a)
        b = np.polyadd(np.polymul(pink_b, rumble_a), gain * np.polymul(rumble_b, pink_a))
        self._a = np.polymul(pink_a, rumble_a)
        self._b = b / _white_gain(b, self._a)
        self._state = np.zeros(len(self._a) - 1)
        self._rng = rng
        self.draw(SAMPLE_RATE_HZ // 4)  # past the filter's start

    def draw(self, frames: int) -> np.ndarray:
        samples, self._state = signal.lfilter(self._b, self._a, self._rng.standard_normal(frames), zi=self._state)
        return samples


def _white_gain(b: np.ndarray | list[float], a: np.ndarray | list[float]) -> float:
    return float(np.linalg.norm(signal.lfilter(b, a, signal.unit_impulse(SAMPLE_RATE_HZ))))


def _write_recording(path: Path, duration_s: float, recording: _PlannedRecording, scene: Scene) -> None:
    """Writes noise with calls; in the field also with other sounds."""
    calls, is_field = recording.calls, scene == "field"
    noise_seed, calls_seed, field_seed = recording.audio_seed.spawn(3)
    call_seeds = calls_seed.spawn(len(calls))
    rng = np.random.default_rng(noise_seed)
    noise_dbfs = rng.uniform(*NOISE_RANGE_DBFS)
    highest_db = MAX_CALL_DBFS - noise_dbfs
    noise = _Noise(rng.uniform(0.4, 1.0) if rng.random() < 0.4 else 0.0, rng)
    others = _OtherSounds(duration_s, _hour(recording.name), np.random.default_rng(field_seed)) if is_field else None
    centres = np.array([round(centre_s * SAMPLE_RATE_HZ) for centre_s, _ in calls])
    total, block_frames = round(duration_s * SAMPLE_RATE_HZ), round(BLOCK_S * SAMPLE_RATE_HZ)
    before_s = CALL_REACH_S + (REVERBERATION_S if is_field else 0.0)
    before, after = round(before_s * SAMPLE_RATE_HZ), round(CALL_REACH_S * SAMPLE_RATE_HZ)
    with sf.SoundFile(path, "w", SAMPLE_RATE_HZ, channels=1, subtype="PCM_16", format="FLAC") as file:
        for begin in range(0, total, block_frames):
            end = min(begin + block_frames, total)
            block = noise.draw(end - begin)
            for i in range(*np.searchsorted(centres, (begin - before, end + after))):
                # A call across two blocks is rendered twice, with the same result because it has its own seed.
                call_rng = np.random.default_rng(call_seeds[i])
                render = _field_call if is_field else _quiet_call
                to_centre, call = render(calls[i][1], highest_db, call_rng)
                _add(block, begin, int(centres[i]) - to_centre, call)
            if others is not None:
                others.add_to(block, begin)
            file.write(_to_pcm16(block * 10 ** (noise_dbfs / 20)))


def _quiet_call(bird: SyntheticSpecies, highest_db: float, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A call in units of the noise's RMS, and how many samples before its centre it begins."""
    level = 10 ** (rng.uniform(SNR_RANGE_DB[0], min(SNR_RANGE_DB[1], highest_db)) / 20)
    call = level * render_call(bird, rng)
    return len(call) // 2, call


def _field_call(bird: SyntheticSpecies, highest_db: float, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A call as it is heard from a random distance, with echoes; otherwise as `_quiet_call`."""
    level = 10 ** (min(rng.uniform(*FIELD_SNR_RANGE_DB), highest_db) / 20)
    distance_m = float(np.exp(rng.uniform(*np.log(DISTANCE_RANGE_M))))
    call = attenuate(level * render_call(bird, rng), distance_m)
    return len(call) // 2, reverberate(call, distance_m, rng)


class _OtherSounds:
    """The sounds of a recording that are no birds, in units of the noise's RMS."""

    def __init__(self, duration_s: float, hour: float, rng: np.random.Generator) -> None:
        self._sounds = plan_other_sounds(duration_s, hour, rng)
        self._starts = np.array([round(sound.start_s * SAMPLE_RATE_HZ) for sound in self._sounds], dtype=np.int64)

    def add_to(self, block: np.ndarray, begin: int) -> None:
        """Adds what lies in a block, which begins at a sample of the recording."""
        longest = round(MAX_SOUND_S * SAMPLE_RATE_HZ)
        for i in range(*np.searchsorted(self._starts, (begin - longest, begin + len(block)))):
            sound = self._sounds[i]
            rendered = render_other_sound(sound.kind, sound.duration_s, np.random.default_rng(sound.seed))
            _add(block, begin, int(self._starts[i]), 10 ** (sound.level_db / 20) * rendered)


def _add(block: np.ndarray, begin: int, start: int, sound: np.ndarray) -> None:
    """Adds the part of a sound that lies in a block; both positions are samples of the recording."""
    first, last = max(start, begin), min(start + len(sound), begin + len(block))
    if first < last:
        block[first - begin : last - begin] += sound[first - start : last - start]


def _to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Converts samples with soft limiting near full scale, so that coinciding calls do not clip."""
    loud, room = np.flatnonzero(np.abs(samples) > SOFT_LIMIT), HARD_LIMIT - SOFT_LIMIT
    bent = SOFT_LIMIT + room * np.tanh((np.abs(samples[loud]) - SOFT_LIMIT) / room)
    samples[loud] = np.copysign(bent, samples[loud])
    return np.rint(samples * 32767).astype(np.int16)


def _share_out(
    counts: list[int], sites: np.ndarray, rng: np.random.Generator, rates: np.ndarray | float = 1.0
) -> np.ndarray:
    """Distributes species over recordings: common species widely, and each species more at some sites.

    Args:
        counts: Calls of each species.
        sites: Site of each recording.
        rng: Source of randomness.
        rates: How often birds call in each recording, in any unit.

    Returns:
        Number of calls per (species, recording).
    """
    recordings = len(sites)
    plan = np.zeros((len(counts), recordings), dtype=int)
    frequent = [index for index, count in enumerate(counts) if count >= 10]
    # Species with enough calls for training, but in too few recordings for grouped folds.
    local = frequent[-1 - len(counts) // 24 :][:2] if len(counts) >= 12 and len(frequent) >= 6 else []
    for index, count in enumerate(counts):
        presence = max(6, round(recordings * (count / counts[0]) ** 0.3)) if count >= 10 else max(1, count // 2)
        presence = min(2 + index % 2 if index in local else presence, count, recordings)
        weight = rates * rng.uniform(0.3, 1.0, recordings)[sites] * rng.lognormal(0.0, 0.6, recordings)
        chosen = rng.choice(recordings, presence, replace=False, p=weight / weight.sum())
        plan[index, chosen] = 1 + rng.multinomial(count - presence, weight[chosen] / weight[chosen].sum())
    return plan


def _call_times_s(calls: int, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the times of one species' calls in a recording: random bouts, with 1 to 6 s between calls of a bout."""
    gaps_s = rng.uniform(1.0, 6.0, calls)
    gaps_s[0] = 0.0
    gaps_s *= min(1.0, 0.8 * duration_s / max(gaps_s.sum(), 1.0))
    bout_starts = np.flatnonzero(np.append(True, rng.random(calls - 1) < 0.3))
    pauses_s = rng.dirichlet(np.ones(len(bout_starts) + 1)) * (duration_s - gaps_s.sum())
    gaps_s[bout_starts] += pauses_s[:-1]
    tenths, last, order = np.rint(np.cumsum(gaps_s) * 10).astype(int), int(duration_s * 10 - 1), np.arange(calls)
    # No two calls of a species may round to the same tenth of a second.
    tenths = np.maximum.accumulate(np.maximum(tenths, 1) - order) + order
    return np.clip(np.minimum(tenths, last - order[::-1]), 1, last) / 10


def _hour(name: str) -> float:
    """Time of day at the start of a recording, in hours."""
    start = datetime.strptime(Path(name).stem[-15:], "%Y%m%d_%H%M%S")
    return start.hour + start.minute / 60


def _recording_names(recordings: int, hours: tuple[int, ...] = QUIET_HOURS) -> tuple[list[str], np.ndarray]:
    """Returns sorted file names, and the index of each one's site."""
    sites = np.sort(np.arange(recordings) % max(min(recordings, 2), round(recordings / 4)))
    digits = max(3, len(str(sites[-1] + 1)))
    names = []
    for index, site in enumerate(sites.tolist()):
        visit = index - int(np.searchsorted(sites, site))
        start = datetime(2021, 12, 7, 5, 30) + timedelta(days=site + visit, hours=hours[visit % len(hours)])
        names.append(f"SYN_{site + 1:0{digits}d}_{start:%Y%m%d_%H%M%S}.flac")
    return names, sites


@checked
def synthesize_archive(
    data_dir: str | Path,
    *,
    recordings: Count = SYNTHETIC_RECORDINGS,
    duration_s: SyntheticDuration = SYNTHETIC_DURATION_S,
    species: Count = SYNTHETIC_SPECIES,
    annotations: Count | None = None,
    scene: Scene = "field",
    seed: Seed = 0,
) -> Path:
    """Writes an archive of synthetic soundscapes in the format of the Kenyan data set.

    The same arguments give the same files, byte for byte. `annotations.csv` is written last, so an archive without it
    is incomplete.

    Args:
        data_dir: Folder to create; may exist if it is empty.
        recordings: Number of recordings, at least 1.
        duration_s: Length of each recording, at least 3 s.
        species: Number of species, at least 1.
        annotations: Number of annotated calls, at least `species` and at most two per second of audio. By default one
            per 3.5 s up to a total of one hour of audio, and fewer in larger archives, down to one per 12 s as in the
            real data set.
        scene: `field`: calls from 5 to 150 m away, with the loss of high frequencies and the echoes of the distance;
            most calls at dawn and dusk; and insects, frogs, wind, rain, engines and people, which are not annotated
            (see `synthetic_field`). `quiet`: clear calls in steady noise, at any hour.
        seed: Random seed, at least 0.

    Returns:
        The folder.

    Raises:
        UserError: A number is out of range, or the folder is not empty or cannot be created.
    """
    data_dir = Path(data_dir)
    plan = _plan_recordings(recordings, duration_s, species, annotations, scene, seed)
    check_new_folder(data_dir, "folder")
    try:
        (data_dir / "soundscape_data").mkdir(parents=True)
    except OSError as error:
        raise UserError(f"the folder cannot be created: {error}; give another path") from error
    rows: list[tuple] = [(bird.scientific_name, bird.code, bird.common_name) for bird in synthetic_species(species)]
    table = pd.DataFrame(rows, columns=["Scientific Name", "Species eBird Code", "Common Name"])
    table.to_csv(data_dir / "species.csv", index=False, lineterminator="\n")
    (data_dir / "recording_location.txt").write_text("Nowhere: synthetic soundscapes\n", encoding="utf-8")

    rows = []
    for recording in tqdm(plan, desc="Synthesising recordings", unit="recording"):
        path = data_dir / "soundscape_data" / recording.name
        _write_recording(path, duration_s, recording, scene)
        rows += [(recording.name, centre_s, centre_s, bird.code) for centre_s, bird in recording.calls]
    table = pd.DataFrame(rows, columns=["Filename", "Start Time (s)", "End Time (s)", "Species eBird Code"])
    table.to_csv(data_dir / "annotations.csv", index=False, float_format="%.1f", lineterminator="\n")
    return data_dir


@checked
def synthetic_annotations(
    *,
    recordings: Count = SYNTHETIC_RECORDINGS,
    duration_s: SyntheticDuration = SYNTHETIC_DURATION_S,
    species: Count = SYNTHETIC_SPECIES,
    annotations: Count | None = None,
    scene: Scene = "field",
    seed: Seed = 0,
) -> pd.DataFrame:
    """Returns the annotations of the archive that `synthesize_archive` makes from the same arguments, without audio.

    Args:
        recordings: See `synthesize_archive`.
        duration_s: See `synthesize_archive`.
        species: See `synthesize_archive`.
        annotations: See `synthesize_archive`.
        scene: See `synthesize_archive`.
        seed: See `synthesize_archive`.

    Returns:
        `recording` (file name), `center_s` (seconds from its start) and `species` (code), sorted by the first two.

    Raises:
        UserError: A number is out of range.
    """
    plan = _plan_recordings(recordings, duration_s, species, annotations, scene, seed)
    rows = [(recording.name, centre_s, bird.code) for recording in plan for centre_s, bird in recording.calls]
    return pd.DataFrame(rows, columns=["recording", "center_s", "species"])


def _plan_recordings(
    recordings: int, duration_s: float, species: int, annotations: int | None, scene: Scene, seed: int
) -> list[_PlannedRecording]:
    """Returns the calls of each recording, sorted by name."""
    total_s = recordings * duration_s
    if annotations is None:
        annotations = max(species, round(total_s / np.clip(3.5 * (total_s / 3600) ** 0.352, 3.5, 12.24)))
    counts = species_counts(species, annotations)
    if annotations > MAX_ANNOTATIONS_PER_S * total_s:
        raise UserError(
            f"expected at most {MAX_ANNOTATIONS_PER_S:g} annotations per second, found {annotations} in {total_s:g} s "
            "of audio; reduce the annotations, or use more or longer recordings"
        )

    birds = synthetic_species(species)
    is_field = scene == "field"
    names, sites = _recording_names(recordings, FIELD_HOURS if is_field else QUIET_HOURS)
    rates = np.array([call_rate(_hour(name) + duration_s / 7200) for name in names]) if is_field else 1.0
    plan_seed, *recording_seeds = np.random.SeedSequence(seed).spawn(1 + recordings)
    calls_of = _share_out(counts, sites, np.random.default_rng(plan_seed), rates)
    plan = []
    for column, name in enumerate(names):
        times_seed, audio_seed = recording_seeds[column].spawn(2)
        rng = np.random.default_rng(times_seed)
        calls = []
        for index in np.flatnonzero(calls_of[:, column]):
            times_s = _call_times_s(calls_of[index, column], duration_s, rng)
            calls += [(float(time_s), birds[index]) for time_s in times_s]
        plan.append(_PlannedRecording(name, sorted(calls), audio_seed))
    return plan
