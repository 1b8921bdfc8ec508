"""Copies the files of the top level that commands need into the wheel; all metadata is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("model_card.md", "LICENSE")


class BuildPackage(build_py):
    """Builds the package with `SHIPPED` in it. An editable installation uses them where they are."""

    def run(self) -> None:
        """Runs the command."""
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                shutil.copyfile(Path(__file__).parent / name, Path(self.build_lib) / "kenya_birds" / name)


setup(cmdclass={"build_py": BuildPackage})
