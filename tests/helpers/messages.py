"""Messages of errors."""

import pytest


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def error_line(error) -> str:
    message = one_line(error)
    assert len(message) < 300
    return message


def refused(kind, call) -> str:
    """The line of the error that call raises."""
    with pytest.raises(kind) as error:
        call()
    return error_line(error)
