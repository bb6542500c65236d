"""Exercises of the book: start one, fill in its blank, and let it be checked.

python -m scratchnet exercises             # what there is
python -m scratchnet exercises start 1     # writes exercise_1.py, with a blank
python -m scratchnet exercises check 1     # says in words what is right or wrong
python -m scratchnet exercises hint 1
python -m scratchnet exercises solution 1
"""

import sys
import traceback
import types
from dataclasses import dataclass
from pathlib import Path

from exercise_checks import EXERCISES, Exercise, Wrong

import scratchnet as sn
from scratchnet.flags import flag, run_script

HERE = Path(__file__).parent
ACTIONS = ["list", "start", "check", "hint", "solution"]


@dataclass
class Config:
    """Exercises of the book."""

    action: str = flag("list", "what to do", ACTIONS, is_word=True)
    number: int | None = flag(None, "the number of the exercise", is_word=True)
    file: str | None = flag(None, "your file; exercise_N.py unless given")


def load(file: Path) -> types.ModuleType:
    """The student's file as a module. Raises Wrong where it does not run."""
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    try:
        exec(compile(file.read_bytes(), file, "exec"), vars(module))
    except FileNotFoundError:
        raise sn.ConfigError(f"{file}: expected your solution, found no such file; begin with `start`") from None
    except Exception as error:
        raise Wrong(f"the file does not run: {where(error, file)}") from error
    return module


def where(error: BaseException, file: Path) -> str:
    """The line of the student's file in which an error came up, and what it says."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{f'line {line}: ' if line else ''}{type(error).__name__}: {error}"


def verdict(exercise: Exercise, file: Path) -> str | None:
    """What is wrong with a file, in words; None if nothing is."""
    try:
        module = load(file)
        if not callable(function := getattr(module, exercise.function, None)):
            raise Wrong(f"the file has no function {exercise.function}")
        exercise.check(function)
    except Wrong as wrong:
        return str(wrong)
    except NotImplementedError:
        return f"the blank in {exercise.function} is not filled in yet"
    except sn.ConfigError:
        raise
    except Exception as error:
        return f"{exercise.function} failed in {where(error, file)}"
    return None


def main(config: Config) -> None:
    if config.action == "list":
        for number, exercise in EXERCISES.items():
            print(f"{number:>2}  chapter {exercise.chapter}  {exercise.title}")
        return
    if config.number not in EXERCISES:
        given = "none" if config.number is None else config.number
        raise sn.ConfigError(f"number: expected one of {', '.join(map(str, EXERCISES))}, got {given}")
    exercise, name = EXERCISES[config.number], f"exercise_{config.number}.py"
    file = Path(config.file or name)
    if config.action == "hint":
        print(exercise.hint)
    elif config.action == "solution":
        print((HERE / "solutions" / name).read_text(), end="")
    elif config.action == "start":
        if file.exists():
            raise sn.ConfigError(f"{file}: expected no such file yet, found one; it is left as it is")
        file.write_text((HERE / "tasks" / name).read_text())
        print(f"{file} has a blank. Fill it in, then: python -m scratchnet exercises check {config.number}")
    elif (wrong := verdict(exercise, file)) is None:
        print(f"exercise {config.number}: right")
    else:
        print(f"exercise {config.number}: {wrong}\na hint: python -m scratchnet exercises hint {config.number}")
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, Config)
