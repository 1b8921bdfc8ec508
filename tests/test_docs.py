"""What README.md and docs/ say is so: their Python runs, their commands and flags exist, their links lead somewhere.

The Python of a page runs from top to bottom in a folder that holds what the pages speak of: `archive`, its recordings
in `recordings`, a model that was trained on it in `birds` and `someone/birds-of-baringo`, what it detects in `found`,
and `clip.wav`. Of some pages the commands run too, between the Python.
"""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import soundfile
import torch
from doc_pages import PAGES, SHELLS, blocks, commands, inline_code, prose, simple_commands
from drawing import leave_figures_blank
from networks import write_labels, write_tflite
from reference_model import save_reference_model
from running import ROOT, flags, run, train

import kenya_birds
import train_hf
from kenya_birds.model.audio_model_kenya_birds import AUDIO_MODELS

matplotlib.use("Agg")

# Pages whose Python has a test of its own, which prepares what it needs.
TESTED_ELSEWHERE = {"publishing.md": "test_publishing_docs.py"}
WITH_PYTHON = [
    page
    for page in PAGES
    if page.name not in TESTED_ELSEWHERE and any(block.language == "python" for block in blocks(page))
]
# Pages whose commands run too, with what the commands make themselves.
WITH_COMMANDS = {
    "ecologist.md": ("birdnet", "found", "corrected", "better"),
    "tables.md": ("found",),
    "data.md": ("birds",),
}
# Python that would train for minutes, and what trains for seconds in its place.
SMALLER = {
    "README.md": {'"convnext_atto"': '"test_convnext"', "num_train_epochs=30": "num_train_epochs=1"},
}
NOT_FLAGS_OF_OURS = {"--help"}


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """The folder that holds what the pages speak of."""
    from kenya_birds.cli import main
    from kenya_birds.data.synthetic import synthesize_archive

    folder = tmp_path_factory.mktemp("pages")
    archive = synthesize_archive(
        folder / "archive", recordings=9, duration_s=20, species=5, annotations=90, scene="quiet", seed=2
    )
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_blank(patch)
        train(archive, folder / "birds", folder / "cache", num_train_epochs=3, min_annotations=10)
    # So small a model detects hardly anything at its own thresholds.
    thresholds = json.loads((folder / "birds" / "thresholds.json").read_text(encoding="utf-8"))
    thresholds["species"] = dict.fromkeys(thresholds["species"], 0.1)
    (folder / "birds" / "thresholds.json").write_text(json.dumps(thresholds), encoding="utf-8")
    shutil.copytree(folder / "birds", folder / "someone" / "birds-of-baringo")
    # Recordings that the model was not trained on: pages train on what is detected in them.
    elsewhere = synthesize_archive(
        folder / "x", recordings=9, duration_s=20, species=5, annotations=90, scene="quiet", seed=7
    )
    (folder / "kenya").symlink_to(archive)
    (folder / "colombia").symlink_to(elsewhere)
    (folder / "recordings").mkdir()
    # Another recording has a name that only --name_pattern reads.
    names = ["north 07.12.2021 15-38.flac", *(f"KEN_{n:03}_20211207_153852.flac" for n in range(1, 9))]
    for name, recording in zip(names, sorted((elsewhere / "soundscape_data").iterdir()), strict=True):
        (folder / "recordings" / name).symlink_to(recording)
    # Stands in for BirdNET, which has the same input.
    write_tflite(folder / "BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite", samples=144_000)
    write_labels(folder / "BirdNET_GLOBAL_6K_V2.4_Labels.txt")
    first = min((archive / "soundscape_data").iterdir())
    (folder / "KEN_001_20211207_153852.flac").symlink_to(first)
    sound, rate = soundfile.read(first, frames=3 * soundfile.info(first).samplerate)
    soundfile.write(folder / "clip.wav", np.stack([sound, sound], axis=1), rate)
    options = ["--output", f"{folder}/found", "--threshold", "0.1", "--formats", "raven,csv,parquet"]
    with pytest.raises(SystemExit, match="0"):
        main(["detect", f"{folder}/birds", f"{folder}/recordings", *options])
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page in WITH_PYTHON or page.name in WITH_COMMANDS], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page, things, tmp_path, monkeypatch):
    made = WITH_COMMANDS.get(page.name, ())
    for thing in things.iterdir():
        if thing.name not in made:
            (tmp_path / thing.name).symlink_to(thing)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    smaller = SMALLER.get(page.relative_to(ROOT).as_posix(), {})
    python = "".join(block.code for block in blocks(page) if block.language == "python")
    assert all(words in python for words in smaller)
    for block in blocks(page):
        if block.language == "python":
            code = block.code
            for words, small in smaller.items():
                code = code.replace(words, small)
            # So that a traceback shows the page's lines.
            exec(compile("\n" * block.line + code, str(page), "exec"), namespace)
        elif block.language in SHELLS and page.name in WITH_COMMANDS:
            for words in simple_commands(block.code):
                run_command(words, tmp_path)
    assert all((tmp_path / name).exists() for name in made)


def test_the_probabilities_of_a_page_are_those_of_a_multi_label_model(tmp_path, monkeypatch):
    save_reference_model("multi", tmp_path / "someone" / "birds-of-baringo")
    monkeypatch.chdir(tmp_path)
    (code,) = (block.code for block in blocks(ROOT / "docs" / "hub_user.md") if "probabilities =" in block.code)
    told = {}
    exec(code, told)
    with torch.no_grad():
        expected = told["model"](**told["features"]).logits.sigmoid()
    torch.testing.assert_close(told["probabilities"], expected)


def run_command(words, folder):
    """Runs a command of ours in this process; a training is a small one. Other programs and loops are left out."""
    from kenya_birds.cli import main

    if words[:1] == ["kenya-birds"]:
        code = 0
        try:
            main(words[1:])
        except SystemExit as ended:
            code = ended.code
        assert code == 0, words
    elif "train_hf.py" in words and not any("$" in word for word in words):
        small = flags("", "", folder / "cache", num_train_epochs=1)
        with pytest.MonkeyPatch.context() as patch:
            leave_figures_blank(patch)
            train_hf.main([*small, *words[words.index("train_hf.py") + 1 :]])


def test_the_first_page_trains_in_ten_lines_and_detects_in_four(things, tmp_path, monkeypatch, capsys):
    detecting, training, _ = [block.code for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert "trainer.train()" in training
    assert len([line for line in training.splitlines() if line]) <= 10
    assert "detect(" in detecting
    assert len(detecting.splitlines()) <= 4
    monkeypatch.chdir(things)
    exec(compile(detecting, "README.md", "exec"), {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows
    assert all(0.1 <= float(row[-1]) <= 1 for row in rows)


def test_pages_install_a_torch_that_the_package_accepts():
    bound = re.search(r"^    (torch>=[\d.]+,)(<[\d.]+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.M)
    for page in PAGES:
        for block in blocks(page):
            if "download.pytorch.org" in block.code:
                assert f'"torch{bound[2]}"' in block.code, f"{page.name}, line {block.line}"


@pytest.mark.parametrize(("page", "test"), TESTED_ELSEWHERE.items())
def test_the_python_of_other_pages_has_a_test(page, test):
    assert page in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_page_exists(page):
    called = commands(page)
    for command in called:
        unknown = [flag for flag in command.flags if flag not in known_flags(command.program)]
        assert not unknown, f"{page.name}: {command.program} has no {unknown}"
    named = [*parsers(), *(command.program for command in called)]
    anywhere = NOT_FLAGS_OF_OURS.union(*map(known_flags, named))
    for code in inline_code(page):
        if code.startswith("--"):
            unknown = [flag for flag in re.findall(r"--\w+", code) if flag not in anywhere]
            assert not unknown, f"{page.name}: no program has {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_block_can_be_parsed(page, capsys):
    for command in commands(page):
        if command.is_whole and not Path(command.program).parent.name:
            # What a variable holds, a number will do for; lists of words may be empty.
            words = [re.sub(r"\$\w+", "1", word) for word in command.words if "[@]}" not in word]
            try:
                parser_of(command.program).parse_args(words)
            except SystemExit:
                pytest.fail(f"{page.name}: {command.program} {' '.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_for_the_shell_are_whole(page):
    for block in blocks(page):
        if block.language in SHELLS:
            checked = run("bash", "-n", "-c", block.code)
            assert checked.returncode == 0, f"{page.name}, line {block.line}: {checked.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_of_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"
    for code in inline_code(page):
        if re.fullmatch(r"(tests|docs|benchmarks|examples|kenya_birds)/[\w/]*\w(\.\w+)?", code):
            assert (ROOT / code).exists(), f"{page.name} names {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    shell = "\n".join(block.code for block in blocks(page) if block.language in SHELLS)
    named = re.findall(r"^(?:make) ([a-z]+)", "\n".join([shell, *inline_code(page)]), flags=re.M)
    assert set(named) <= targets


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


def test_the_reference_names_the_public_api():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in set(kenya_birds.__all__) - {"__version__"}:
        assert f"::: kenya_birds.{name}\n" in page


def test_the_container_installs_what_there_is():
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    container = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.M))
    assert "devcontainers/python:3.11" in container["image"]  # a version that setup.cfg allows
    made = run("make", "--dry-run", *container["postCreateCommand"].split()[1:], "VENV=nowhere")
    assert container["postCreateCommand"].startswith("make ")
    assert made.returncode == 0, made.stderr
    assert '--editable ".[dev]"' in made.stdout
    tools = container["customizations"]["vscode"]
    assert tools["settings"]["python.defaultInterpreterPath"] == "${containerWorkspaceFolder}/.venv/bin/python"
    assert re.search(r"^VENV \?= \.venv$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {"ms-python.python", "ms-toolsai.jupyter", "charliermarsh.ruff"} <= set(tools["extensions"])


def test_the_checks_notice_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Flags of `kenya-birds split --strategies x`.\n```bash\n"
        "accelerate launch --num_gpus 2 \\\n  train_hf.py --data_dir a --output_dir b --epochs 3  # --remark\n"
        "kenya-birds tune archive --trials 3 -- --learn 1 | sort --reverse && python push_model.py --model m\n```\n"
    )
    unknown = [
        (command.program, flag)
        for command in commands(page)
        for flag in command.flags
        if flag not in known_flags(command.program)
    ]
    assert unknown == [
        ("accelerate launch", "--num_gpus"),
        ("train_hf.py", "--epochs"),
        ("train_hf.py", "--learn"),
        ("push_model.py", "--model"),
        ("kenya-birds split", "--strategies"),
    ]


@cache
def parsers():
    """The parsers of programs that the pages call, by their names."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    import push_model
    from kenya_birds.cli import _parser
    from kenya_birds.training.flags import train_parser

    (ours,) = (action.choices for action in _parser()._actions if action.dest == "command")
    return {
        "train_hf.py": train_parser(),
        "push_model.py": push_model._parser(),
        "accelerate launch": launch_command_parser(),
        "torchrun": get_args_parser(),
        **{f"kenya-birds {name}": parser for name, parser in ours.items()},
        **{f"kenya-birds verify {name}": parser for name, parser in steps_of(ours["verify"]).items()},
        "kenya-birds train": train_parser("kenya-birds train"),
    }


def steps_of(parser):
    """The parsers of the steps of a command, by their names."""
    (steps,) = (action.choices for action in parser._actions if action.dest == "step")
    return steps


def parser_of(program):
    if program not in parsers():
        pytest.fail(f"there is no {program}")
    return parsers()[program]


def known_flags(program):
    if Path(program).parent.name:  # a script with a parser of its own
        text = (ROOT / program).read_text(encoding="utf-8")
        if "add_arguments(parser" in text:  # the options of arms are declared once
            text += (ROOT / "benchmarks" / "arms.py").read_text(encoding="utf-8")
        return set(re.findall(r'"(--\w+)"', text))
    return set(parser_of(program)._option_string_actions)


def anchors(page):
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_lists_the_types_of_audio_models():
    page = (ROOT / "docs" / "embeddings.md").read_text(encoding="utf-8")
    listed = page.partition("must be one of these: ")[2].partition(".")[0]
    assert re.findall("`(.*?)`", listed) == sorted(AUDIO_MODELS)
