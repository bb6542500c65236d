"""Measures how products are cut best on this machine, in a few seconds, and keeps it for later processes.

python scripts/tune.py             # search, and keep what is faster
python scripts/tune.py --show      # what is in use
python scripts/tune.py --forget    # back to the start for CPUs of this kind
"""

from dataclasses import dataclass

from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.kernels.cpu import gemm_tuning as tuning


@dataclass
class Config:
    """Measure how products are cut best on this machine, and keep it beside the compiled kernels."""

    show: bool = flag(False, "only print what is in use")
    forget: bool = flag(False, "remove what was kept")


def main(config: Config) -> None:
    file = tuning.kept_in()
    if config.show and config.forget:
        raise ConfigError("tune: expected --show or --forget, got both")
    if not config.show and file is not None and file.is_dir():
        raise ConfigError(f"tune: expected a file or nothing at {file}, got a folder; remove it")
    if config.forget and file is not None:
        file.unlink(missing_ok=True)
    tuning.load()
    if not (config.show or config.forget):
        if file is None:
            raise ConfigError(
                "tune: expected a folder that can be written, to keep what is found; set SCRATCHNET_CACHE_DIR"
            )
        if not tuning.is_on():
            raise ConfigError(f"tune: expected {tuning.VARIABLE} to be on, got off: what is found would not be used")
        tuning.keep(tuning.search())
        tuning.load()
    print(tuning.describe())


if __name__ == "__main__":
    run_script(main, Config)
