import pytest

from kenya_birds import fingerprints
from kenya_birds.fingerprints import code_fingerprint, library_versions


@pytest.fixture
def package(tmp_path, monkeypatch):
    sources = {
        "__init__": "from kenya_birds.data import unused",
        "data/__init__": "",
        "data/audio": "import numpy\n\n\ndef read():\n    from kenya_birds.data import decoders\n",
        "data/decoders": "x = 1\n",
        "data/unused": "x = 1\n",
        "model/signal": "x = 1\n",
        "model/features": "from .signal import x\nimport kenya_birds.errors, kenya_birds.data.audio\n",
        "errors": "x = 1\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    code_fingerprint.cache_clear()
    yield tmp_path
    code_fingerprint.cache_clear()


def fingerprint():
    code_fingerprint.cache_clear()
    return code_fingerprint("kenya_birds.model.features")


@pytest.mark.parametrize("name", ["model/features", "model/signal", "data/audio", "data/decoders", "errors"])
def test_code_changes_the_fingerprint_of_what_imports_it(package, name):
    before = fingerprint()
    path = package / f"{name}.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert fingerprint() == before
    path.write_text("x = 2\n")
    assert fingerprint() != before


def test_other_code_does_not(package):
    before = fingerprint()
    (package / "data" / "unused.py").write_text("x = 2\n")
    assert fingerprint() == before


def test_versions_are_of_what_is_installed():
    assert list(library_versions(["torch", "no-such-library"])) == ["torch"]
