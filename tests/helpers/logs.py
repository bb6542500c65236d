"""What a program says in its log."""

import logging


def log_lines(name: str = "scratchnet.parallel") -> list[str]:
    """A list that grows by each line of information, or worse, of this log from now on."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger(name)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return lines
