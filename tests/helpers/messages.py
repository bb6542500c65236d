"""Messages of errors."""


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def error_line(error) -> str:
    message = one_line(error)
    assert len(message) < 300
    return message
