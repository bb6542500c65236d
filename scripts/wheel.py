"""How a wheel is built: setuptools' way, and scripts/ goes into the package, where `python -m scratchnet` finds it."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

SCRIPTS = Path(__file__).parent


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in SCRIPTS.rglob("*.py"):
                target = Path(self.build_lib) / "scratchnet" / "scripts" / path.relative_to(SCRIPTS)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
