"""Command lines from dataclasses: each field is a flag, with its default and its help text."""

import argparse
import atexit
import dataclasses
import errno
import gc
import io
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from .errors import ConfigError, ScratchnetError

Config = TypeVar("Config")


def flag(
    default: Any, help: str, choices: Sequence[Any] | None = None, stored: bool = True, is_word: bool = False
) -> Any:
    """A dataclass field that `parse_flags` offers as a flag. A tuple takes one value or more.

    is_word: it stands on the command line without its name, in the order of fields; a tuple takes all that are left.
    stored: does it belong to the results? Not if it only says where and how fast they come, or from where to go on.
    """
    metadata = {"help": help, "choices": choices, "stored": stored, "is_word": is_word}
    return dataclasses.field(default=default, metadata=metadata)


def stored(config: Any) -> dict[str, Any]:
    """The values to keep beside results: the same however often a run was interrupted, and wherever it went on."""
    fields = [field for field in dataclasses.fields(config) if field.metadata["stored"]]
    return {field.name: getattr(config, field.name) for field in fields}


def parse_flags(config: type[Config], argv: Sequence[str] | None = None) -> Config:
    """An instance of the dataclass `config` filled from the command line (argv, or the process's own).

    Field types: int, float, str, bool (`--name` and `--no-name`), tuple[T, ...], any of these with None, and int | str.
    `--config FILE` reads flags from a TOML or YAML file, {name: value}; those on the command line count more.
    Bad flags end the program with a message and status 2, as argparse does.
    """
    parser = argparse.ArgumentParser(description=config.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    hints = get_type_hints(config)
    in_files: dict[str, tuple[type, bool]] = {}  # the type of a value, and whether it takes several
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        kind = next(t for t in (*get_args(hints[field.name]), hints[field.name]) if t not in (type(None), Ellipsis))
        options: dict[str, Any] = {"default": field.default, "help": field.metadata["help"]}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": _number_or_text if hints[field.name] == int | str else kind}
            options |= {"choices": field.metadata["choices"]}
            options |= {"nargs": "+"} if isinstance(field.default, tuple) else {}
            options |= {"metavar": kind.__name__.upper()} if not field.metadata["choices"] else {}
        if field.metadata["is_word"]:
            parser.add_argument(
                field.name,
                **options | {"nargs": "*" if isinstance(field.default, tuple) else "?", "metavar": field.name.upper()},
            )
        else:
            in_files[field.name] = kind, isinstance(field.default, tuple)
            parser.add_argument("--" + field.name.replace("_", "-"), **options)
    parser.add_argument("--config", metavar="FILE", help="TOML or YAML file with flags; those given here count more")
    given = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", action="append", default=[])
    files = first.parse_known_args(given)[0].config
    if len(files) > 1:
        parser.error(f"expected --config once, got {' and '.join(files)}")
    try:
        words = _words_of(files[0], in_files) if files else []
    except ConfigError as error:
        parser.error(str(error))
    values = vars(parser.parse_args(given, parser.parse_args(words)))
    del values["config"]
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _words_of(file: str, flags: dict[str, tuple[type, bool]]) -> list[str]:
    """The flags in a file as a command line. Raises ConfigError for a file that is none.

    flags: of each name the type of a value, and whether it takes several.
    """
    try:
        text = Path(file).read_text("utf-8")
        if file.endswith((".yaml", ".yml")):
            try:
                import yaml
            except ImportError:
                raise ConfigError(f"{file}: expected PyYAML for a YAML file, found none; pip install pyyaml") from None
            found = yaml.safe_load(text)
        else:
            found = tomllib.loads(text)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{file}: expected a file of flags: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: expected TOML or YAML: {str(error).splitlines()[0]}") from None
    except Exception as error:  # yaml.YAMLError, whose module may not be there
        raise ConfigError(f"{file}: expected YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{file}: expected flags as name: value, got a {type(found).__name__}")
    words: list[str] = []
    keys = dict[str, Any]()
    for key, value in (found or {}).items():
        name = str(key).replace("-", "_")
        if (other := keys.setdefault(name, key)) != key:
            raise ConfigError(f"{file}: expected {other!r} once, got {key!r} as well")
        if name not in flags:
            raise ConfigError(f"{file}: expected names of flags, got {key!r}; --help lists them")
        flag_name, (kind, takes_several) = "--" + name.replace("_", "-"), flags[name]
        given = value if takes_several and isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, bool if kind is bool else int | float | str) for one in given) or (
            kind is not bool and any(isinstance(one, bool) for one in given)
        ):
            expected = "true or false" if kind is bool else "a number or a text"
            raise ConfigError(f"{file}: {key}: expected {expected}{', or several' * takes_several}, got {value!r}")
        if kind is bool:
            words += [flag_name if one else flag_name.replace("--", "--no-", 1) for one in given]
        elif takes_several:
            words += [flag_name, *map(str, given)] if given else []
        else:
            words += [f"{flag_name}={one}" for one in given]  # in one word: a value may begin with -
    return words


def _number_or_text(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG  # said where a file is closed, which has no name then


def run_script(main: Callable[[Config], Any], config: type[Config]) -> None:
    """Parses the flags, calls main, and turns what scratchnet raises into one line and status 1 (130 for Ctrl-C)."""
    atexit.register(gc.freeze)  # Python would look through all that was imported as it ends, for 0.05 s
    for stream in (sys.stdout, sys.stderr):  # None, or of a kind of its own, where somebody has replaced it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a path may have letters that the terminal does not show
    try:
        main(parse_flags(config))
        if sys.stdout is not None:
            sys.stdout.flush()
    except ScratchnetError as error:
        # Where several processes raise the same error, one says it.
        sys.exit(1 if getattr(error, "already_reported", False) else f"{Path(sys.argv[0]).name}: {error}")
    except BrokenPipeError:  # who read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        sys.exit(f"{Path(sys.argv[0]).name}: {where}{error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
