"""Text: sentences as numbers of words, by a vocabulary that is made of the sentences of the training."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, DataError, DataNotFoundError
from .dataset import TensorDataset
from .files.cells import names_of, read_table
from .tables import _inputs_of, described, label_numbers, require_columns

PADDING, UNKNOWN = 0, 1  # the numbers of no word, and of a word that is not in the vocabulary
LONGEST = 2**20  # words of a sentence
WORD = re.compile(r"\w+|[^\w\s]")


def words_of(sentence: str) -> list[str]:
    """The words and punctuation marks of a sentence, in small letters."""
    return WORD.findall(sentence.lower())


class TextInputs:
    """How sentences become features (b, length) int64: the numbers of their words.

    vocabulary: the words; word i has the number i + 2, 0 fills up, 1 stands for all others. length: words of a
    sentence that count; longer ones are cut.
    """

    kind = "text"

    def __init__(self, vocabulary: Sequence[str], length: int):
        self.vocabulary = names_of("TextInputs: vocabulary", vocabulary)
        self.length = checks.integer("TextInputs: length", length, 1, LONGEST)
        self._number = {word: i for i, word in enumerate(self.vocabulary, 2)}

    @property
    def numbers(self) -> int:
        """How many different numbers there are: what an Embedding needs."""
        return len(self.vocabulary) + 2

    def __call__(self, sentences: Any) -> np.ndarray:
        """The features of a sentence, or of a list of them."""
        given = [sentences] if isinstance(sentences, str) else checks.items("predict", sentences, "sentences")
        out = np.full((len(given), self.length), PADDING, np.int64)
        for row, sentence in zip(out, given, strict=True):
            if not isinstance(sentence, str):
                checks.refuse("predict", "sentences", sentence)
            numbers = [self._number.get(word, UNKNOWN) for word in words_of(sentence)[: self.length]]
            row[: len(numbers)] = numbers
        return out

    def read(self, path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
        """The features of a text file, one sentence a line, and the sentences; empty lines rest."""
        name = checks.path("read", path)
        try:
            with open(name, encoding="utf-8-sig") as file:
                sentences = [line.strip() for line in file if line.strip()]
        except FileNotFoundError:
            raise DataNotFoundError(f"{name}: no such file") from None
        except UnicodeError as error:
            raise DataError(f"{name}: expected text in UTF-8 ({error})") from None
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from error
        if not sentences:
            raise DataError(f"{name}: expected a sentence a line, found none")
        return self(sentences), sentences

    def state_dict(self) -> dict[str, Any]:
        """All there is, as plain values."""
        return {"vocabulary": list(self.vocabulary), "length": self.length}

    def __repr__(self) -> str:
        return f"TextInputs({len(self.vocabulary)} words, length {self.length})"


def vocabulary_of(sentences: Iterable[str], max_words: int = 20_000, min_count: int = 1) -> tuple[str, ...]:
    """The words that occur at least `min_count` times, most frequent first, equally frequent ones sorted."""
    counts = collections.Counter(word for sentence in sentences for word in words_of(sentence))
    ranked = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
    return tuple(ranked[:max_words])


def text_csv(
    path: str | os.PathLike,
    text: str = "text",
    label: str | None = "label",
    *,
    length: int | None = None,
    max_words: int = 20_000,
    min_count: int = 1,
    missing: str = "refuse",
    like: Any = None,
    delimiter: str = ",",
    encoding: str = "utf-8",
) -> TensorDataset:
    """A CSV or Parquet file with a column of sentences as numbers of words (n, length) int64, and labels int64.

    text, label: names of columns; label=None reads sentences alone. `dataset.classes` names the labels, sorted.
    length: words of a sentence that count, at most; features are no longer than the longest sentence.
    max_words, min_count: the vocabulary has at most so many words, each of which occurs at least so often;
    `dataset.inputs` has it, and makes features of other sentences.
    missing: "refuse" names the first row without a sentence or a class, "drop" leaves out such rows.
    like: the data set of the training, whose vocabulary, length and classes are taken.
    Raises DataError naming file and line for a sentence without a word, a class that the training does not know, and
    what read errors there are (see from_csv).
    """
    for what, value in {"text": text, "label": label}.items():
        if not (isinstance(value, str) or (what == "label" and value is None)):
            checks.refuse(f"text_csv: {what}", "the name of a column", value)
    if text == label:
        raise ConfigError(f"text_csv: expected sentences and classes in different columns, got {text!r:.60} as both")
    length = None if length is None else checks.integer("text_csv: length", length, 1, LONGEST)
    max_words = checks.integer("text_csv: max_words", max_words, 1)
    min_count = checks.integer("text_csv: min_count", min_count, 1)
    checks.one_of("text_csv: missing", missing, ("refuse", "drop"))
    inputs = _inputs_of("text_csv", like, TextInputs)
    table = read_table(path, delimiter, encoding)
    require_columns(table, [text] if label is None else [text, label])
    there = [WORD.search(sentence) is not None for sentence in table.columns[text]]
    known = [bool(cell) for cell in table.columns[label]] if label is not None else there
    if missing == "drop" and not (all(there) and all(known)):
        table = table.kept(np.logical_and(there, known))
        if not table.lines:
            raise DataError(f"{table.path}: expected rows with a sentence and a class, found none")
    elif not all(there):
        raise table.refuse(there.index(False), text, "a sentence", "missing='drop' leaves out such rows")
    elif label is not None and not all(known):
        raise table.refuse(known.index(False), label, "a class", "missing='drop' leaves out such rows")
    sentences = table.columns[text]
    if inputs is None:
        vocabulary = vocabulary_of(sentences, max_words, min_count)
        if not vocabulary:
            raise DataError(f"{table.path}: expected a word that occurs {min_count} times (`min_count`), found none")
        longest = max(len(words_of(sentence)) for sentence in sentences)
        inputs = TextInputs(vocabulary, min(length or longest, longest))
    if label is None:
        return described(TensorDataset(inputs(sentences)), inputs)
    labels, classes = label_numbers(table, label, like)
    return described(TensorDataset(inputs(sentences), labels), inputs, classes)
