import io
import mmap
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kenya_birds.inference.table_formats import Outputs
from kenya_birds.process import cleaned_up_at_signals, print_anything

needs_posix = pytest.mark.skipif(os.name != "posix", reason="Windows has its file names in Unicode")


@needs_posix
def test_names_are_read_printed_and_written_in_a_locale_without_their_letters(tmp_path):
    (tmp_path / "Forêt 鳥.wav").touch()
    code = (
        "import sys; from kenya_birds.process import use_utf8; use_utf8(); from pathlib import Path;"
        "names = [path.name for path in Path(sys.argv[1]).iterdir()]; print(*names, sys.argv[2])"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    words = [sys.executable, "-c", code, str(tmp_path), "é"]
    done = subprocess.run(words, env=environment, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode("utf-8").split() == ["Forêt", "鳥.wav", "é"]


def test_a_console_that_lacks_a_letter_shows_another(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    print_anything()
    print("Forêt 鳥")
    stream.flush()
    assert stream.buffer.getvalue().decode("cp1252").strip() == "Forêt ?"
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # what notebooks put there has no encoding
    print_anything()


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="other C libraries differ")
@pytest.mark.parametrize("variable", ["", "MALLOC_ARENA_MAX"])
def test_freed_memory_is_used_again_unless_the_user_has_settings(variable):
    code = (
        "import resource; from kenya_birds.process import keep_freed_memory; keep_freed_memory();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "fill = lambda: len(b'1' * 20_000_000); fill(); before = faults();"
        "[fill() for _ in range(20)]; print(faults() - before)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"PYTHONPATH": str(Path(__file__).parent.parent)} | ({variable: "4"} if variable else {})
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
    pages = 20 * 20_000_000 / mmap.PAGESIZE
    if variable:
        assert int(done.stdout) > pages / 1000  # the system may give pages of 2 MB
    else:
        assert int(done.stdout) < pages / 1000


@needs_posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_parts_of_files_go_when_the_process_is_asked_to_end(tmp_path, capsys, name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # it is ignored in tests that nohup started

    def work():
        with cleaned_up_at_signals("me"), Outputs(tmp_path) as outputs:
            outputs.open("a.csv").write("half")
            assert list(tmp_path.iterdir())
            os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == f"me: stopped by {name}\n"
    assert signal.signal(number, before) is signal.SIG_DFL


@needs_posix
def test_an_ignored_signal_stays_ignored_and_a_launcher_s_processes_end_at_once(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)  # as nohup does
    taken = []
    monkeypatch.setattr(signal, "signal", lambda *words: taken.append(words))
    with cleaned_up_at_signals("me"):
        pass
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(signal, "signal", lambda *words: taken.append(words))
    with cleaned_up_at_signals("me"):
        pass
    assert taken == []
