"""scripts/drill/victim.py, but for what SABOTAGE breaks in it."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts" / "drill"), str(ROOT / "tests" / "helpers")]

import sabotage  # noqa: E402
import victim  # noqa: E402

from scratchnet.flags import run_script  # noqa: E402


def main(config):
    victim.Loss = sabotage.Loss
    before = victim.open_files

    def then_sabotage():
        """Called the first time just before the run."""
        found = before()
        victim.open_files = before
        sabotage.apply(config.folder)
        return found

    victim.open_files = then_sabotage
    victim.main(config)


if __name__ == "__main__":
    run_script(main, victim.Config)
