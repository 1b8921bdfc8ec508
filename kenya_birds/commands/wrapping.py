"""The command that turns published networks into models of this package: wrap."""

import argparse
from pathlib import Path
from typing import Any, Literal

from kenya_birds.parsing import add_general, add_option, new_command
from kenya_birds.values import Count, Duration, NotNegative, Positive, Share

PRESET_NAMES = Literal["birdnet-2.4", "birdnet-v3", "birdnet-stm32", "perch-2"]


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    command = new_command(
        commands,
        "wrap",
        "turn a published network into a model folder, without training",
        "Turns a published classifier, such as BirdNET or Perch, into a model folder for all "
        "commands. The model gives the scores of the network. ONNX graphs need onnxruntime, TFLite files "
        "ai-edge-litert.",
        "kenya-birds wrap BirdNET.tflite --labels labels.txt --preset birdnet-2.4 --output birdnet\n"
        "kenya-birds detect birdnet recordings --output found",
    )
    add_option(command, "graph", Path, help="file of the network: an ONNX graph or a TFLite file")
    model = command.add_argument_group("Model")
    add_option(
        model,
        "--labels",
        Path,
        required=True,
        metavar="FILE",
        help="labels of the network, in the order of its scores: text with one per line, or CSV with a header",
    )
    add_option(model, "--output", Path, required=True, metavar="FOLDER", help="model folder to write: new or empty")
    add_option(
        model,
        "--preset",
        PRESET_NAMES | None,
        help="take the settings of this network as defaults of the options below",
    )
    add_option(
        model,
        "--species",
        Path,
        metavar="FILE",
        help="keep only these species: text with one name per line, or an archive's species.csv (the model then has "
        "its codes); by default all",
    )
    add_option(
        model,
        "--threshold",
        Share | None,
        help="decision threshold of all species; by default that of the preset's own program, if it has one",
    )
    add_option(
        model,
        "--bundle",
        bool,
        False,
        help="copy the network's file into the model folder; otherwise the folder refers to it by path and SHA-256",
    )
    _add_network(command)
    add_general(command)
    command.set_defaults(run=_wrap, after_stop="nothing was written; run the same command again")


def _add_network(command: Any) -> None:
    network = command.add_argument_group("Network")
    add_option(network, "--sampling_rate", Count | None, metavar="HZ", help="rate of its waveforms")
    add_option(
        network, "--clip_s", Duration | None, help="length of a window, if the network takes windows of any length"
    )
    add_option(
        network,
        "--activation",
        Literal["sigmoid", "softmax", "none"] | None,
        help="what turns its scores into probabilities; none: they are probabilities",
    )
    add_option(
        network,
        "--peak",
        Positive | None,
        help="remove the mean of each window and scale it to this peak; by default not",
    )
    add_option(
        network,
        "--spectrogram",
        Literal["magnitude"] | None,
        help="the network takes spectrograms: magnitudes scaled to [0, 1], as birdnet-stm32; by default the waveform",
    )
    add_option(network, "--input", str, metavar="TENSOR", help="name of its input; by default its only one")
    add_option(
        network,
        "--scores",
        str,
        metavar="TENSOR",
        help="name of its scores; by default the output that fits the labels",
    )
    add_option(
        network,
        "--embedding",
        str,
        metavar="TENSOR",
        help="name of its embedding, for kenya-birds embed and for a head on it (a wrong name, such as x, lists the "
        "tensors); by default none",
    )
    add_option(
        network, "--f_min_hz", NotNegative | None, metavar="HZ", help="lowest frequency that it uses; by default 0"
    )
    add_option(
        network,
        "--f_max_hz",
        Positive | None,
        metavar="HZ",
        help="highest frequency that it uses; by default half of the sampling rate",
    )
    card = command.add_argument_group("Card")
    add_option(card, "--name", str, help="name of the network; by default that of the preset or the file")
    add_option(card, "--license", str, metavar="NAME", help="licence of the network, as the Hub spells it")
    add_option(card, "--source", str, help="where the network comes from")


def _wrap(options: argparse.Namespace) -> None:
    from dataclasses import fields

    from kenya_birds.folders import check_new_folder
    from kenya_birds.inference.published_networks import plan_network
    from kenya_birds.waveform_networks import NetworkSettings

    check_new_folder(options.output)
    given = NetworkSettings(**{field.name: getattr(options, field.name) for field in fields(NetworkSettings)})
    plan = plan_network(options.graph, options.labels, given, preset=options.preset, species=options.species)
    from kenya_birds.inference.wrapping import wrap_network

    difference = wrap_network(plan, options.output, bundle=options.bundle)
    settings = plan.settings
    print(
        f"{settings.name}: {len(plan.labels):,} species, windows of {settings.clip_s:g} s at {settings.sampling_rate} "
        f"Hz; its scores and the model's differ by at most {difference:.1e}"
    )
    if settings.threshold is None:
        print("It has no decision threshold: kenya-birds detect needs --threshold")
    else:
        print(f"Decision threshold of all species: {settings.threshold:g} (set by hand, not checked on recordings)")
    print(f"Licence: {settings.license or 'not stated: look it up before you share results'}")
    print(f"The model is in {options.output}")
