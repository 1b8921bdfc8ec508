"""The notebook runs from top to bottom, in a kernel of its own, and ends with what it tells of.

It is stored with its outputs, so that it can be read where it cannot be run. `make notebook` runs and stores it again.
"""

import base64
import io
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from running import ROOT

NOTEBOOK = ROOT / "examples" / "story.ipynb"
# Runs behind the last cell: what the others left, as JSON.
ASKED = """
print(json.dumps({
    "work": str(work),
    "parts": splits.groupby("split")["recording"].nunique().to_dict(),
    "covered": audit.summary["covered_classes"],
    "classes": run.builder.classes,
    "epochs": summary["result"]["epochs"],
    "macro_f1": metrics["test"]["macro_f1"],
    "share_heard": float(share_heard),
    "detections": [[d.start_s, d.end_s, d.species, d.score] for d in detections],
    "recording": recording,
    "trained_on": splits.loc[splits["split"] == "train", "recording"].tolist(),
}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs, and what its variables hold in the end."""
    folder = tmp_path_factory.mktemp("story")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASKED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TMPDIR", str(folder))
        NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            record_timing=False,
            store_widget_state=False,
            resources={"metadata": {"path": folder}},
        ).execute()
    asked = notebook.cells.pop()
    found = json.loads(asked.outputs[0].text)
    if os.environ.get("KENYA_BIRDS_STORE_NOTEBOOK"):
        nbformat.write(to_store(notebook, found["work"]), NOTEBOOK)
    return notebook, found


def to_store(notebook, work):
    """The executed notebook without this machine's folder, and with small pictures."""
    text = nbformat.writes(notebook).replace(work, "/tmp/kenya_birds_story")
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                file = io.BytesIO()
                image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
                image.quantize(96).save(file, "png", optimize=True)
                output["data"]["image/png"] = base64.b64encode(file.getvalue()).decode()
    return notebook


def kinds(cell):
    """What a cell puts out, without its content."""
    return {output.get("name", ",".join(sorted(output.get("data", {})))) for output in cell.outputs}


def test_it_is_stored_with_the_outputs_of_its_code(executed):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    again = [cell for cell in executed[0].cells if cell.cell_type == "code"]
    assert [kinds(cell) for cell in code] == [kinds(cell) for cell in again], "run: make notebook"
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    assert "%|" not in text  # progress bars
    assert "widgets" not in stored.metadata
    paths = set(re.findall(r"/(?:tmp|home|root|Users|work)/\w+", text))
    assert paths <= {"/tmp/kenya_birds_story"}


def test_every_cell_runs_and_warns_of_nothing(executed):
    notebook, _ = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    told = "".join(output.text for cell in code for output in cell.outputs if output.output_type == "stream")
    assert "Warning" not in told


def test_each_step_shows_a_picture(executed):
    notebook, _ = executed
    pictures, step = {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            step = cell.source.splitlines()[0].split()[-1]
        elif cell.cell_type == "code" and step:
            shown = sum("image/png" in output.get("data", {}) for output in cell.outputs)
            pictures[step] = pictures.get(step, 0) + shown
    assert list(pictures) == ["Explore", "Preprocess", "Split", "Augment", "Train", "Evaluate", "Detect"]
    assert [step for step, shown in pictures.items() if not shown] == ["Split", "Train"]  # a table, a log


def test_species_that_are_frequent_enough_are_in_every_split(executed):
    _, found = executed
    assert set(found["parts"]) == {"train", "validation", "test"}
    assert found["covered"] == len(found["classes"]) == 5


def test_the_model_learns_and_finds_calls_in_a_recording_that_it_has_not_heard(executed):
    _, found = executed
    assert found["macro_f1"] > 0.4  # five classes: chance is below 0.2
    assert found["share_heard"] > 0.4
    assert found["recording"] not in found["trained_on"]
    assert {species for _, _, species, _ in found["detections"]} <= set(found["classes"])
    assert all(0 <= start_s < end_s <= 45 and 0 <= score <= 1 for start_s, end_s, _, score in found["detections"])


def test_all_it_writes_lies_in_one_folder(executed):
    _, found = executed
    assert (Path(found["work"]) / "model" / "model.safetensors").is_file()
