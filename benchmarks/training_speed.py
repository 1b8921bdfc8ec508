"""Overhead of training: the time that is not spent in the backbone.

    python benchmarks/training_speed.py clip        # one clip from int16 to features: beside the seed's way; one core
    python benchmarks/training_speed.py mel         # log-mel alone: beside librosa and torchaudio; one core
    python benchmarks/training_speed.py trainer     # KenyaBirdsTrainer's steps: beside the bare backbone's
    python benchmarks/training_speed.py recordings  # the same, on windows of whole recordings
    python benchmarks/training_speed.py teacher     # the same, in the first stage, with answers in the cache
    python benchmarks/training_speed.py step        # the same without `datasets`; on a GPU also where the time goes

The seed's way is that of the project's first classifier: noisereduce, pre-emphasis, audiomentations, librosa; it
needs the `dev` extra. `step` needs torch, transformers, accelerate and timm alone. Times are the least of
several runs that take turns, or medians of steps that do, so that other work on the machine hits both.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model.signal_kenya_birds import in_chunks, power_to_db
from kenya_birds.process import keep_freed_memory
from kenya_birds.training.augmentation import DRAWS, Augmentation, AugmentationArguments, cut_windows

CLASSES = 100
# Of BirdNET 2.4, which is a common teacher.
EMBEDDING_SIZE = 1024
STORED_CLIPS = 512


def least_s(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Least time of each function, in turns, after one run of each that does not count."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, measured in zip(functions, times, strict=True):
            begin_s = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                measured.append(time.perf_counter() - begin_s)
    return [min(measured) for measured in times]


def stored_waveforms(extractor: KenyaBirdsFeatureExtractor, device: str) -> torch.Tensor:
    """int16 noise in place of clean clips with 0.9 s of context on both sides."""
    samples = extractor.clip_samples + 2 * round(0.9 * extractor.sampling_rate)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-20_000, 20_000, (STORED_CLIPS, samples), dtype=torch.int16, generator=generator).to(device)


def measure_clip(options: argparse.Namespace) -> None:
    """One clip's way from int16 to augmented features on one core."""
    import audiomentations
    import librosa
    import noisereduce

    torch.set_num_threads(1)
    extractor = KenyaBirdsFeatureExtractor()
    augmentation = Augmentation(AugmentationArguments(), extractor, torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    stored = stored_waveforms(extractor, "cpu")[: options.batch_size]
    clean = torch.from_numpy(np.stack([row.numpy() for row in stored])).float() / 32768

    def every_epoch() -> torch.Tensor:
        amounts = augmentation.amounts(rng.random((len(stored), len(DRAWS))))
        start = torch.zeros(len(stored), dtype=torch.int64)
        waveform = cut_windows(stored, torch.arange(len(stored)), start, extractor.clip_samples) / 32768
        return augmentation(waveform, amounts)

    def once() -> torch.Tensor:
        return in_chunks(extractor.clean, clean[:, : extractor.clip_samples])

    rate = extractor.sampling_rate
    changes = audiomentations.Compose(
        [
            audiomentations.AddColorNoise(min_snr_db=5, max_snr_db=35, min_f_decay=-6, max_f_decay=-3, p=0.5),
            audiomentations.Shift(min_shift=-0.3, max_shift=0.3, p=0.5),
            audiomentations.PitchShift(min_semitones=-4, max_semitones=4, p=0.3),
            audiomentations.TimeStretch(min_rate=0.8, max_rate=1.25, p=0.3),
            audiomentations.Gain(min_gain_db=-12, max_gain_db=12, p=0.5),
        ]
    )
    few = stored[: min(8, len(stored)), : extractor.clip_samples].numpy().astype(np.float32) / 32768

    def seed_way() -> None:
        for waveform in few:
            cleaned = noisereduce.reduce_noise(y=waveform, sr=rate, stationary=True, prop_decrease=0.9)
            cleaned = librosa.util.normalize(librosa.effects.preemphasis(cleaned, coef=0.97))
            changed = changes(samples=cleaned.astype(np.float32), sample_rate=rate)
            mel = librosa.feature.melspectrogram(
                y=changed, sr=rate, n_fft=2048, hop_length=512, n_mels=128, fmin=150, fmax=15_000
            )
            librosa.power_to_db(mel)

    times_s = least_s(every_epoch, once, seed_way, repeats=options.repeats)
    ours_ms, clean_ms, seed_ms = (
        1000 * seconds / len(batch) for seconds, batch in zip(times_s, (stored, stored, few), strict=True)
    )
    print("| one clip, one core | ms | relative to the first classifier |\n| --- | --- | --- |")
    print(f"| first classifier, each time | {seed_ms:.2f} | 1 |")
    print(f"| kenya_birds, each time: augmentation and log-mel | {ours_ms:.2f} | {ours_ms / seed_ms:.3f} |")
    print(
        f"| kenya_birds, once: noise reduction, high-pass, normalisation | {clean_ms:.2f} | {clean_ms / seed_ms:.3f} |"
    )
    print(f"| kenya_birds, without the cache | {ours_ms + clean_ms:.2f} | {(ours_ms + clean_ms) / seed_ms:.3f} |")


def measure_mel(options: argparse.Namespace) -> None:
    """Log-mel alone on one core."""
    import librosa
    import torchaudio

    torch.set_num_threads(1)
    extractor = KenyaBirdsFeatureExtractor(do_standardize=False)
    waveform = stored_waveforms(extractor, "cpu")[: options.batch_size, : extractor.clip_samples] / 32768
    settings = {"n_fft": extractor.n_fft, "hop_length": extractor.hop_length, "n_mels": extractor.n_mels}
    band = extractor.f_min_hz, extractor.f_max_hz
    mel = torchaudio.transforms.MelSpectrogram(
        extractor.sampling_rate, f_min=band[0], f_max=band[1], norm="slaney", mel_scale="slaney", **settings
    )

    def ours() -> torch.Tensor:
        return in_chunks(lambda chunk: extractor.to_level(extractor.band_power(chunk)), waveform)

    def of_torchaudio() -> torch.Tensor:
        return power_to_db(mel(waveform), extractor.top_db)

    def of_librosa() -> list[np.ndarray]:
        spectra = (
            librosa.feature.melspectrogram(
                y=row, sr=extractor.sampling_rate, fmin=band[0], fmax=band[1], pad_mode="constant", **settings
            )
            for row in waveform.numpy()
        )
        return [librosa.power_to_db(power) for power in spectra]

    times_ms = [
        1000 * seconds / len(waveform) for seconds in least_s(ours, of_torchaudio, of_librosa, repeats=options.repeats)
    ]
    print("| log-mel of one clip, one core | ms | kenya_birds / this |\n| --- | --- | --- |")
    for name, clip_ms in zip(("ours", "torchaudio", "librosa"), times_ms, strict=True):
        print(f"| {name} | {clip_ms:.2f} | {times_ms[0] / clip_ms:.2f} |")


def make_model(
    backbone: str, device: str, problem_type: str = "single_label_classification"
) -> KenyaBirdsForAudioClassification:
    """A classifier with random weights, laid out in memory as the trainer does."""
    torch.manual_seed(0)
    config = KenyaBirdsConfig(backbone=backbone, num_labels=CLASSES, problem_type=problem_type)
    model = KenyaBirdsForAudioClassification(config)
    return model.to(device, memory_format=torch.channels_last).train()


def bare_step(
    model: KenyaBirdsForAudioClassification, device: str, options: argparse.Namespace
) -> Callable[[torch.Tensor | None], None]:
    """Forward, backward and AdamW on ready tensors, or on the features that are passed."""
    ready = torch.randn(options.batch_size, *KenyaBirdsFeatureExtractor().feature_shape, device=device)
    labels = torch.randint(CLASSES, (options.batch_size,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if options.compile else model

    def step(features: torch.Tensor | None = None) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=options.bf16):
            loss = forward(ready if features is None else features, labels=labels).loss
        loss.backward()
        optimizer.step()

    return step


def measure_step(options: argparse.Namespace) -> None:
    """A whole step, waveforms on the device, over the bare backbone's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor = KenyaBirdsFeatureExtractor()
    stored = stored_waveforms(extractor, device)
    augmentation = Augmentation(
        AugmentationArguments(), extractor, torch.Generator().manual_seed(0), device=torch.device(device)
    )
    rng = np.random.default_rng(0)
    bare = bare_step(make_model(options.backbone, device), device, options)

    def features() -> torch.Tensor:
        with torch.no_grad():
            amounts = {
                name: values.to(device, non_blocking=True)
                for name, values in augmentation.amounts(rng.random((options.batch_size, len(DRAWS)))).items()
            }
            clip = torch.from_numpy(rng.integers(STORED_CLIPS, size=options.batch_size)).to(device)
            start = torch.zeros_like(clip)
            waveform = cut_windows(stored, clip, start, extractor.clip_samples) / 32768
            return augmentation(waveform, amounts)

    def many(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(options.steps):
                step()

        return run

    steps = least_s(many(bare), many(lambda: bare(features())), many(features), repeats=options.repeats)
    bare_s, whole_s, features_s = (seconds / options.steps for seconds in steps)
    print(f"{options.backbone}, batch {options.batch_size}, {'bf16' if options.bf16 else 'fp32'}, {device}")
    print(f"noise reduction: {options.noise_reduction}")
    print("| step | ms | clips/s | relative to the bare backbone |\n| --- | --- | --- | --- |")
    for name, seconds in (
        ("bare backbone", bare_s),
        ("with waveforms to features", whole_s),
        ("features alone", features_s),
    ):
        print(f"| {name} | {1000 * seconds:.2f} | {options.batch_size / seconds:.0f} | {bare_s / seconds:.3f} |")
    if options.peak_tflops:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            bare()
        share = counter.get_total_flops() / whole_s / 1e12 / options.peak_tflops
        print(f"{counter.get_total_flops() / 1e12:.3f} TFLOP a step: {share:.1%} of {options.peak_tflops} TFLOP/s")
    if device == "cuda":
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
            many(lambda: bare(features()))()
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=15))


def measure_trainer(options: argparse.Namespace) -> None:
    """Steps of the trainer, everything on, over the bare backbone's, in turns."""
    from transformers import TrainerCallback

    from kenya_birds.data.dataset import clips_builder, load_clips
    from kenya_birds.data.synthetic import synthesize_archive
    from kenya_birds.evaluation.window_scoring import plan_windows
    from kenya_birds.training.distillation import Student, StudentTrainer, TaughtWindows
    from kenya_birds.training.trainer import KenyaBirdsTrainer
    from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments
    from kenya_birds.training.window_training import WindowPlan

    class Clock(TrainerCallback):
        """Notes when each step ends; between steps, runs a bare one and takes its time off."""

        def __init__(self, bare: Callable[[], None]) -> None:
            self.bare = bare
            self.bare_s: list[float] = []
            self.step_s: list[float] = []
            self.last_s = 0.0

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            now_s = self.now_s()
            if self.last_s:
                self.step_s.append(now_s - self.last_s)
            self.bare()
            self.last_s = self.now_s()
            self.bare_s.append(self.last_s - now_s)

        def now_s(self) -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_recordings = options.measure != "trainer"
    extractor = KenyaBirdsFeatureExtractor(noise_reduction=options.noise_reduction)
    model = make_model(options.backbone, device, f"{'multi' if on_recordings else 'single'}_label_classification")
    with quiet_folder() as folder:
        archive = synthesize_archive(
            folder / "archive", recordings=10, duration_s=120, species=8, annotations=700, scene="quiet"
        )
        if on_recordings:
            builder = clips_builder(archive, cache_dir=folder / "cache", one_split="train")
            found = builder.archive
            codes = [f"class{index}" for index in range(CLASSES - len(found.species))]
            grid, targets = plan_windows(
                builder,
                list(found.headers),
                [*found.species.index, *codes],
                extractor,
                overlap_s=0.0,
                margin_s=0.25,
            )
            learned = WindowPlan(grid.decoded, targets)
        else:
            learned = load_clips(archive, cache_dir=folder / "cache", context_s=0.9)["train"]
        args = KenyaBirdsTrainingArguments(
            str(folder / "run"),
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps * options.repeats,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            bf16=options.bf16,
            torch_compile=options.compile,
            auto_mixed_precision=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        if options.measure == "teacher":
            generator = torch.Generator().manual_seed(0)
            answers = torch.randn(len(grid.start), EMBEDDING_SIZE, generator=generator).numpy()
            windows = TaughtWindows(
                grid, answers, Augmentation(AugmentationArguments(), extractor, generator, device=device)
            )
            trainer = StudentTrainer(Student(model, answers, EMBEDDING_SIZE, generator), args, windows)
        else:
            trainer = KenyaBirdsTrainer(model, args, extractor, learned, None, augmentation=AugmentationArguments())
        clock = Clock(bare_step(make_model(options.backbone, device), device, options))
        trainer.add_callback(clock)
        trainer.train()
    bare_s, step_s = np.median(clock.bare_s[2:]), np.median(clock.step_s[2:])
    print(f"{options.backbone}, batch {options.batch_size}, {'bf16' if options.bf16 else 'fp32'}, {device}")
    print(f"medians of {len(clock.step_s) - 2} steps")
    print(f"noise reduction: {options.noise_reduction}")
    print("| step | ms | clips/s | relative to the bare backbone |\n| --- | --- | --- | --- |")
    for name, seconds in (("bare backbone", bare_s), ("trainer", step_s)):
        print(f"| {name} | {1000 * seconds:.1f} | {options.batch_size / seconds:.1f} | {bare_s / seconds:.3f} |")


@contextmanager
def quiet_folder() -> Iterator[Path]:
    """A folder that goes away again."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


MEASURES = {
    "clip": measure_clip,
    "mel": measure_mel,
    "trainer": measure_trainer,
    "recordings": measure_trainer,
    "teacher": measure_trainer,
    "step": measure_step,
}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--backbone", default="convnext_atto")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="steps of one run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--noise_reduction", default="stationary", help="of trainer and recordings")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--peak_tflops", type=float, help="peak speed of the device, to print the used share")
    options = parser.parse_args()
    keep_freed_memory()  # as commands do
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    MEASURES[options.measure](options)


if __name__ == "__main__":
    main()
