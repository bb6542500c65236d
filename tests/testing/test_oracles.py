"""The oracles that no library outside has."""

import pytest
from philox import KNOWN

from scratchnet.testing import oracles


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_oracle_draws_known_random_numbers(counter, key, words):
    assert " ".join(f"{word:08x}" for word in oracles.philox(counter, key)) == words
