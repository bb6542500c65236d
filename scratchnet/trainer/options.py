"""Settings of a Trainer: the range of some, and which of them may change while a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import checks
from ..errors import ConfigError


def require_workers(workers: Any) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        checks.refuse("Trainer", "workers to be 'auto' or an integer of at least 1", workers)


def check_count(name: str, value: Any) -> None:
    """Raises ConfigError for what is neither an integer of at least 1 nor None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        checks.refuse("Trainer", f"{name} >= 1 or None", value)


def check_merges(strategy: Any) -> None:
    """Raises ConfigError for a strategy without the merged gradients that some settings change."""
    if not strategy.merges_gradients:
        raise ConfigError(
            "Trainer: expected a strategy that merges gradients with accumulate, clip_norm or nonfinite='skip', "
            f"got {strategy}"
        )


# What a run reads between its steps, besides the workers, which `Trainer.resize` sets; and what checks it then.
LIVE: dict[str, Callable[[Any], Any]] = {
    "progress": lambda value: checks.flag("Trainer: progress", value),
    "save_every": lambda value: check_count("save_every", value),
}


def check_live(name: str, value: Any) -> None:
    """Raises ConfigError for a setting that a run in progress would not see, or for a value outside its range."""
    if name not in LIVE:
        checks.refuse("Trainer", f"{name} to stay as it is while fit runs", value, remedy="set it before")
    LIVE[name](value)
