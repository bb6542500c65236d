"""Messages of errors."""


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message
