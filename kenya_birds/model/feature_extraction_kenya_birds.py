"""The feature extractor, from waveforms to the model's input, for training, `pipeline`, detection and export."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

from .noise_reduction_kenya_birds import gate_bands, reduce_noise
from .signal_kenya_birds import (
    FLOAT,
    MEL_SCALES,
    MEL_SPECTRA,
    USUAL_MEL,
    MelKind,
    high_pass,
    high_pass_gain,
    in_chunks,
    mel_band_frequencies_hz,
    mel_spectrogram,
    pad_middle,
    peak_normalize,
    power_spectrogram,
    power_to_db,
    pre_emphasize,
    reassigned_spectrogram,
    standardize,
)

logger = logging.get_logger(__name__)

FEATURE_TYPES = ("mel", "stft", "reassigned")
# No features: the model takes the waveform.
WAVEFORM = "waveform"
# The noise reduction of the features' own spectrogram.
SPECTROGRAM = "spectrogram"
NOISE_REDUCTIONS = ("stationary", "nonstationary", SPECTROGRAM, "none")
PAD_MODES = ("symmetric", "constant")
# Values for models that were saved before these settings existed: a model needs the features of its training.
EARLIER_SETTINGS: dict[str, Any] = {"pad_mode": "constant", "min_peak_dbfs": -80.0}
# Share of a clip: scores of shorter sound are unreliable, with any padding.
LEAST_SOUND_SHARE = 0.25
# Spectra of larger values would overflow. Such values come from damaged files.
MAX_AMPLITUDE = 1e9


class KenyaBirdsFeatureExtractor(SequenceFeatureExtractor):
    """Cuts or pads clips to one length, cleans the waveform, and computes a log power spectrogram.

    The waveform stage is noise reduction, high-pass, pre-emphasis and peak normalisation, in this order. Each step can
    be turned off. Then power is computed in mel bands (`mel`), in the bins of the Fourier transform (`stft`) or
    reassigned in time and frequency (`reassigned`), converted to dB, limited to `top_db` below the clip's maximum, and
    standardised. With `noise_reduction="spectrogram"`, noise reduction and high-pass are not part of the waveform
    stage: they change the power, which needs no further Fourier transforms.

    `mel_scale`, `mel_spectrum`, `win_length`, `min_level_db`, `fixed_mean_db` and `fixed_std_db` are for fine-tuning
    networks that were trained elsewhere, on other features.

    The defaults are those of the winner of BirdCLEF 2023 (Kenyan birds) with a range of 150 to 15,000 Hz. This
    project's first classifier used
    `sampling_rate=22050, f_min_hz=280, f_max_hz=7600, pre_emphasis=0.97, high_pass_hz=0`.

    Args:
        sampling_rate (`int`, defaults to 32000): Rate of the waveforms in Hz.
        clip_s (`float`, defaults to 3.0): Length of a clip in seconds. Longer input is centre-cropped, shorter input
            is padded on both sides.
        noise_reduction (`str`, defaults to `"stationary"`): `"stationary"` and `"nonstationary"` clean the waveform as
            `noisereduce` does. `"spectrogram"` applies the rule of `"stationary"` to the bands of the features, which
            is faster; it is not for `"waveform"` features. `"none"` is off. `"spectrogram"` with `prop_decrease=0` is
            off too, and the high-pass takes no time.
        prop_decrease (`float`, defaults to 0.9): Share of the noise that is removed, 0 to 1.
        high_pass_hz (`float`, defaults to 150.0): Cutoff of the high-pass; 0 is off.
        pre_emphasis (`float`, defaults to 0.0): Coefficient of `y[t] = x[t] - c * x[t - 1]`; 0 is off.
        do_peak_normalize (`bool`, defaults to `True`): Whether each clip is scaled to a peak of 1, so that features
            do not depend on the level of the recording. Without it they depend on the level, except with
            `do_standardize` for clips whose loudest band is above `top_db - 100` dB.
        feature_type (`str`, defaults to `"mel"`): `"mel"`, `"stft"` or `"reassigned"`; or `"waveform"`, for a model
            with a published network: the result is the waveform after the waveform stage.
        n_fft (`int`, defaults to 2048): Samples per frame.
        hop_length (`int`, defaults to 512): Samples between frames.
        n_mels (`int`, defaults to 128): Number of bands of `mel` and `reassigned` features.
        f_min_hz (`float`, defaults to 150.0): Lowest frequency of the features.
        f_max_hz (`float`, defaults to 15000.0): Highest frequency of the features.
        top_db (`float`, defaults to 80.0): Dynamic range of the features in dB.
        do_standardize (`bool`, defaults to `True`): Whether each clip's features get mean 0 and standard deviation 1.
        mel_scale (`str`, defaults to `"slaney"`): Scale of `mel` features: `"slaney"` with area normalisation, or
            `"htk"` without.
        mel_spectrum (`str`, defaults to `"power"`): What `mel` bands sum: `"power"`, or `"magnitude"`; sums of
            magnitudes are squared.
        win_length (`int`, *optional*): Samples of the window of `mel` features, in the middle of the frame; by default
            `n_fft`.
        min_level_db (`float`, defaults to -100.0): Lowest level of the features in dB.
        fixed_mean_db (`float`, *optional*): With `do_standardize`, this level becomes 0, instead of each clip's mean.
        fixed_std_db (`float`, *optional*): With `do_standardize`, this difference of levels becomes 1, instead of each
            clip's standard deviation.
        min_peak_dbfs (`float`, defaults to -200.0): With `do_peak_normalize`, clips with a lower peak are scaled as if
            their peak were this value, in dBFS. Models that were saved without this setting have -80.
        pad_mode (`str`, defaults to `"symmetric"`): How shorter input is padded. `"symmetric"` reflects the sound at
            both ends, which changes scores least. `"constant"` is zeros, which may cause false detections. Models that
            were saved without this setting have `"constant"`.

    Raises:
        ValueError: If an argument is out of range.
    """

    model_input_names = ["input_features"]  # noqa: RUF012  (the base class declares it so)

    def __init__(
        self,
        sampling_rate: int = 32_000,
        clip_s: float = 3.0,
        noise_reduction: str = "stationary",
        prop_decrease: float = 0.9,
        high_pass_hz: float = 150.0,
        pre_emphasis: float = 0.0,
        do_peak_normalize: bool = True,
        feature_type: str = "mel",
        n_fft: int = 2048,
        hop_length: int = 512,
        n_mels: int = 128,
        f_min_hz: float = 150.0,
        f_max_hz: float = 15_000.0,
        top_db: float = 80.0,
        do_standardize: bool = True,
        min_peak_dbfs: float = -200.0,
        pad_mode: str = "symmetric",
        mel_scale: str = "slaney",
        mel_spectrum: str = "power",
        win_length: int | None = None,
        min_level_db: float = -100.0,
        fixed_mean_db: float | None = None,
        fixed_std_db: float | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("feature_size", None)
        kwargs.pop("padding_value", None)
        # Clips have one length. Trainer's collator would give the model a mask, which its `forward` does not take.
        kwargs["return_attention_mask"] = False
        super().__init__(feature_size=n_mels, sampling_rate=sampling_rate, padding_value=0.0, **kwargs)
        self.clip_s = clip_s
        self.noise_reduction = noise_reduction
        self.prop_decrease = prop_decrease
        self.high_pass_hz = high_pass_hz
        self.pre_emphasis = pre_emphasis
        self.do_peak_normalize = do_peak_normalize
        self.feature_type = feature_type
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.n_mels = n_mels
        self.f_min_hz = f_min_hz
        self.f_max_hz = f_max_hz
        self.top_db = top_db
        self.do_standardize = do_standardize
        self.min_peak_dbfs = min_peak_dbfs
        self.pad_mode = pad_mode
        self.mel_scale = mel_scale
        self.mel_spectrum = mel_spectrum
        self.win_length = win_length
        self.min_level_db = min_level_db
        self.fixed_mean_db = fixed_mean_db
        self.fixed_std_db = fixed_std_db
        self._check()

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> "KenyaBirdsFeatureExtractor":
        """An extractor from saved settings; missing settings get the values of earlier versions."""
        return super().from_dict({**EARLIER_SETTINGS, **feature_extractor_dict}, **kwargs)

    def _check(self) -> None:
        rate, bin_hz = self.sampling_rate, self.sampling_rate / max(self.n_fft, 1)
        rules = [
            (
                self.feature_type in (*FEATURE_TYPES, WAVEFORM),
                f"feature_type is {self.feature_type!r}, expected one of {(*FEATURE_TYPES, WAVEFORM)}",
            ),
            (
                self.noise_reduction in NOISE_REDUCTIONS,
                f"noise_reduction is {self.noise_reduction!r}, expected one of {NOISE_REDUCTIONS}",
            ),
            (
                # In this range the gate's smoothing, 500 Hz and 50 ms wide, spans at least a bin and a hop.
                self.noise_reduction in ("none", SPECTROGRAM) or 5120 <= rate <= 256_000,
                f"sampling_rate is {rate}, expected 5120 to 256000 Hz where noise_reduction is "
                f"{self.noise_reduction!r}",
            ),
            (
                self.noise_reduction != SPECTROGRAM or self.feature_type != WAVEFORM,
                f"noise_reduction is {SPECTROGRAM!r} and feature_type is {WAVEFORM!r}, which has no spectrogram: "
                "expected another noise_reduction",
            ),
            (self.pad_mode in PAD_MODES, f"pad_mode is {self.pad_mode!r}, expected one of {PAD_MODES}"),
            (
                -600 <= self.min_peak_dbfs <= 0,
                f"min_peak_dbfs is {self.min_peak_dbfs}, expected -600 to 0",
            ),
            (0 <= self.prop_decrease <= 1, f"prop_decrease is {self.prop_decrease}, expected 0 to 1"),
            (
                self.high_pass_hz == 0 or 1 <= self.high_pass_hz < rate / 2,
                f"high_pass_hz is {self.high_pass_hz}, expected 0 (off), or 1 to half of sampling_rate={rate}",
            ),
            (0 <= self.pre_emphasis <= 1, f"pre_emphasis is {self.pre_emphasis}, expected 0 (off) to 1"),
            (
                0 < self.hop_length <= self.n_fft,
                f"hop_length and n_fft are {self.hop_length} and {self.n_fft}, expected 0 < hop_length <= n_fft",
            ),
            (
                0 <= self.f_min_hz <= self.f_max_hz - bin_hz and self.f_max_hz <= rate / 2,
                f"f_min_hz and f_max_hz are {self.f_min_hz} and {self.f_max_hz}, expected them in this order, from 0 "
                f"to half of sampling_rate={rate}, at least one bin ({bin_hz:.1f} Hz) apart",
            ),
            (
                self.clip_samples >= max(2048, self.n_fft),
                f"clip_s is {self.clip_s}, expected at least 2048 samples and one frame of n_fft={self.n_fft} samples",
            ),
            (
                self.n_mels > 0 and self.top_db > 0,
                f"n_mels is {self.n_mels} and top_db is {self.top_db}, expected both above 0",
            ),
            (
                self.mel_scale in MEL_SCALES and self.mel_spectrum in MEL_SPECTRA,
                f"mel_scale is {self.mel_scale!r} and mel_spectrum is {self.mel_spectrum!r}, expected one of "
                f"{MEL_SCALES} and one of {MEL_SPECTRA}",
            ),
            (
                self.win_length is None or 0 < self.win_length <= self.n_fft,
                f"win_length is {self.win_length}, expected at most n_fft={self.n_fft} samples",
            ),
            (
                self.feature_type == "mel" or self._mel_kind() == USUAL_MEL,
                f"mel_scale, mel_spectrum and win_length are for feature_type 'mel', which is {self.feature_type!r}",
            ),
            (-300 <= self.min_level_db <= 100, f"min_level_db is {self.min_level_db}, expected -300 to 100"),
            (
                (self.fixed_mean_db is None) == (self.fixed_std_db is None)
                and (self.fixed_std_db is None or (self.fixed_std_db > 0 and self.do_standardize)),
                f"fixed_mean_db is {self.fixed_mean_db} and fixed_std_db is {self.fixed_std_db}, expected both or "
                "none, the latter above 0, and do_standardize",
            ),
        ]
        for holds, problem in rules:
            if not holds:
                raise ValueError(problem)

    @property
    def clip_samples(self) -> int:
        """Samples per clip."""
        return round(self.clip_s * self.sampling_rate)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Bands and frames of a clip's features."""
        return len(self.band_frequencies_hz()), 1 + self.clip_samples // self.hop_length

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | Sequence[float] | Sequence[np.ndarray] | Sequence[torch.Tensor],
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Computes the features of one waveform or a batch.

        Args:
            raw_speech: A mono waveform of shape `(samples,)` or a batch: shape `(batch, samples)`, or a sequence of
                waveforms of any lengths. Floats in [-1, 1], or int16. The name is that of transformers.
            sampling_rate: Rate of the waveforms in Hz. If it is given, it is checked.
            return_tensors: `"pt"` or `"np"`; by default a list of numpy arrays.
            device: Device for the computation; by default the device of the tensors, or the CPU.
            **kwargs: Further arguments of transformers' extractors; not used.

        Returns:
            `input_features`: float32, shape `(batch, bands, frames)`; `(batch, samples)` if they are waveforms.

        Raises:
            ValueError: If the sampling rate is not the extractor's, or a waveform is empty, not mono, neither float
                nor int16, or has samples that are NaN, infinite or far beyond full scale.
        """
        if sampling_rate is None:
            logger.warning_once(
                f"It is strongly recommended to pass the `sampling_rate` argument to `{type(self).__name__}()`. "
                "Failing to do so can result in silent errors that might be hard to debug."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"{type(self).__name__} expects waveforms sampled at {self.sampling_rate} Hz, but was given "
                f"sampling_rate={sampling_rate}: resample them first (librosa.resample or soxr.resample)"
            )
        batch = self._batch(raw_speech, device)
        # Under a caller's autocast, mel power would lose precision or overflow.
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            features = self.extract(batch)
        if return_tensors == "pt":
            return BatchFeature({"input_features": features})
        arrays = features.cpu().numpy()
        return BatchFeature({"input_features": list(arrays)}, tensor_type=return_tensors)

    def extract(self, waveform: torch.Tensor) -> torch.Tensor:
        """Features of waveforms of the right length: the three stages below in sequence.

        Args:
            waveform: Float, finite, shape `(batch, clip_samples)`.

        Returns:
            Shape `(batch, bands, frames)`, or `(batch, clip_samples)` if features are waveforms; float32, on the same
            device.
        """
        if self.feature_type == WAVEFORM:
            return in_chunks(self.clean, waveform)
        return in_chunks(lambda chunk: self.to_level(self.band_power(self.clean(chunk))), waveform)

    def clean(self, waveform: torch.Tensor) -> torch.Tensor:
        """The waveform stage: noise reduction, high-pass, pre-emphasis, peak normalisation; keeps the shape.

        Args:
            waveform: Float, finite, shape `(batch, samples)`, with 2048 samples or more.
        """
        if self.noise_reduction in ("stationary", "nonstationary"):
            stationary = self.noise_reduction == "stationary"
            waveform = in_chunks(
                lambda clip: reduce_noise(clip, self.sampling_rate, stationary, self.prop_decrease), waveform, clips=1
            )
        if self.high_pass_hz and self.noise_reduction != SPECTROGRAM:
            waveform = high_pass(waveform, self.sampling_rate, self.high_pass_hz)
        if self.pre_emphasis:
            waveform = pre_emphasize(waveform, self.pre_emphasis)
        return peak_normalize(waveform, 10 ** (self.min_peak_dbfs / 20)) if self.do_peak_normalize else waveform

    def band_power(self, waveform: torch.Tensor) -> torch.Tensor:
        """The spectral stage: clean waveform `(batch, samples)` to power `(batch, bands, frames)`.

        With `noise_reduction="spectrogram"` it includes high-pass and noise reduction.
        """
        if self.noise_reduction != SPECTROGRAM:
            return in_chunks(lambda clip: self._raw_power(clip, high_pass_hz=0.0), waveform, clips=1)
        power = in_chunks(lambda clip: self._raw_power(clip, self.high_pass_hz), waveform, clips=1)
        if not self.prop_decrease:
            return power
        return gate_bands(power, self._bands_hz(), self.hop_length / self.sampling_rate, self.prop_decrease)

    def _raw_power(self, waveform: torch.Tensor, high_pass_hz: float) -> torch.Tensor:
        """Power `(batch, bands, frames)` after a high-pass; 0: no high-pass."""
        if self.feature_type == "stft":
            low, high = self._stft_bins()
            power = power_spectrogram(waveform, self.n_fft, self.hop_length)[:, low : high + 1]
            if high_pass_hz:
                gain = high_pass_gain(self.n_fft, self.sampling_rate, high_pass_hz, waveform.device)
                power = power * gain[low : high + 1, None].square()
            return power
        frames_and_bands = {
            "sampling_rate": self.sampling_rate,
            "n_fft": self.n_fft,
            "hop_length": self.hop_length,
            "n_mels": self.n_mels,
            "f_min_hz": self.f_min_hz,
            "f_max_hz": self.f_max_hz,
        }
        if self.feature_type == "mel":
            return mel_spectrogram(waveform, **frames_and_bands, kind=self._mel_kind(high_pass_hz))
        return reassigned_spectrogram(waveform, **frames_and_bands, high_pass_hz=high_pass_hz)

    def _mel_kind(self, high_pass_hz: float = 0.0) -> MelKind:
        return MelKind(self.mel_scale, self.mel_spectrum, self.win_length, high_pass_hz)

    def to_level(self, power: torch.Tensor) -> torch.Tensor:
        """The last stage: power `(batch, bands, frames)` to dB, standardised with `do_standardize`."""
        features = power_to_db(power, self.top_db, self.min_level_db)
        if self.fixed_mean_db is not None and self.fixed_std_db is not None:
            return (features - self.fixed_mean_db) / self.fixed_std_db
        return standardize(features) if self.do_standardize else features

    def band_frequencies_hz(self) -> torch.Tensor:
        """Centre frequency of each band of the features in Hz, shape `(bands,)`, float32."""
        return torch.tensor(self._bands_hz(), dtype=FLOAT)

    def _bands_hz(self) -> tuple[float, ...]:
        if self.feature_type == "stft":
            low, high = self._stft_bins()
            return tuple(number * (self.sampling_rate / self.n_fft) for number in range(low, high + 1))
        is_mel = self.feature_type == "mel"
        return mel_band_frequencies_hz(self.n_mels, self.f_min_hz, self.f_max_hz, self.mel_scale, is_mel)

    def _stft_bins(self) -> tuple[int, int]:
        """First and last bin of `stft` features."""
        bin_hz = self.sampling_rate / self.n_fft
        return math.ceil(self.f_min_hz / bin_hz), int(self.f_max_hz // bin_hz)

    def _batch(self, raw_speech: Any, device: str | torch.device | None) -> torch.Tensor:
        """The input as a float32 tensor of shape `(batch, clip_samples)` on the device."""
        is_array = isinstance(raw_speech, np.ndarray | torch.Tensor)
        if is_array and raw_speech.ndim == 2:
            if not 0 < len(raw_speech) <= raw_speech.shape[1]:
                raise ValueError(
                    f"the batch has shape {tuple(raw_speech.shape)}, expected (batch, samples): mono, not empty"
                )
            return self._clips(raw_speech, 0, device)
        if is_array or (len(raw_speech) and np.ndim(raw_speech[0]) == 0):
            raw_speech = [raw_speech]
        if not raw_speech:
            raise ValueError("expected at least one waveform, found an empty batch")
        rows = [_row(waveform, i) for i, waveform in enumerate(raw_speech)]
        # There is no warning about batches of shape (batch, samples): a program has cut them.
        if max(row.shape[1] for row in rows) > 2 * self.clip_samples:
            logger.warning_once(
                f"A waveform is longer than {2 * self.clip_s:g} s, but the model scores clips of {self.clip_s:g} s: "
                "only the middle of the waveform is scored. Cut recordings into windows, as the model's card shows"
            )
        return torch.cat([self._clips(row, i, device) for i, row in enumerate(rows)])

    def _clips(
        self, waveform: np.ndarray | torch.Tensor, first: int, device: str | torch.device | None
    ) -> torch.Tensor:
        """Waveforms `(n, samples)`, centre-cropped or padded on both sides."""
        surplus = waveform.shape[1] - self.clip_samples
        if surplus > 0:
            waveform = waveform[:, surplus // 2 : surplus // 2 + self.clip_samples]
        elif waveform.shape[1] < LEAST_SOUND_SHARE * self.clip_samples:
            logger.warning_once(
                f"A waveform is shorter than {LEAST_SOUND_SHARE * self.clip_s:g} s, but the model's clips have "
                f"{self.clip_s:g} s: scores of so little sound are unreliable"
            )
        if isinstance(waveform, np.ndarray):
            # A copy: torch refuses foreign byte order and negative strides, and warns of read-only memory.
            waveform = torch.from_numpy(waveform.astype(waveform.dtype.newbyteorder("="), order="C"))
        clips = waveform.to(device)
        if clips.dtype == torch.int16:
            clips = clips.to(torch.float32) / 32768
        elif clips.is_floating_point():
            clips = clips.to(torch.float32)
            # The comparison is false for NaN too.
            sane = clips.abs().amax(dim=1) < MAX_AMPLITUDE
            if not sane.all():
                index = first + int(sane.int().argmin())
                raise ValueError(
                    f"waveform {index} of the batch has samples that are NaN, infinite or far beyond full scale: "
                    "skip it or repair it"
                )
        else:
            raise ValueError(f"waveform {first} of the batch is {clips.dtype}, expected floats in [-1, 1] or int16")
        return pad_middle(clips, self.clip_samples, self.pad_mode)


def _row(waveform: Any, index: int) -> np.ndarray | torch.Tensor:
    """A waveform of shape `(samples,)` as `(1, samples)`."""
    if not isinstance(waveform, torch.Tensor):
        waveform = np.asarray(waveform)
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(
            f"waveform {index} of the batch has shape {tuple(waveform.shape)}, expected (samples,): mono, not empty"
        )
    return waveform[None]


KenyaBirdsFeatureExtractor.register_for_auto_class()
