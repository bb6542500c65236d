"""Text: sentences as numbers of words, by a vocabulary that the training fixes."""

import numpy as np
import pytest
from messages import refused

from scratchnet.data import TextInputs, text_csv
from scratchnet.data.text import vocabulary_of, words_of
from scratchnet.errors import ConfigError, DataError, DataNotFoundError

REVIEWS = 'text,label\n"Good, good film!",yes\nA bad film,no\n"Good\nfilm",yes\n'


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(REVIEWS)
    return path


def test_words_and_marks_in_small_letters():
    assert words_of("Don't STOP, Zürich 2!") == ["don", "'", "t", "stop", ",", "zürich", "2", "!"]


def test_the_vocabulary_ranks_words_by_frequency():
    sentences = ["b a b", "c b a d"]
    assert vocabulary_of(sentences) == ("b", "a", "c", "d")
    assert vocabulary_of(sentences, max_words=3) == ("b", "a", "c")
    assert vocabulary_of(sentences, min_count=2) == ("b", "a")


def test_sentences_become_numbers_of_words(reviews):
    dataset = text_csv(reviews)
    assert dataset.inputs.vocabulary == ("film", "good", "!", ",", "a", "bad") and dataset.inputs.numbers == 8
    assert dataset.classes == ("no", "yes")
    x, y = dataset[:]
    assert x.tolist() == [[3, 5, 3, 2, 4], [6, 7, 2, 0, 0], [3, 2, 0, 0, 0]] and x.dtype == np.int64
    assert y.tolist() == [1, 0, 1]
    assert dataset.inputs(["a new film, a very good one", ""]).tolist() == [[6, 1, 2, 5, 6], [0, 0, 0, 0, 0]]
    assert text_csv(reviews, length=2)[:][0].tolist() == [[3, 5], [6, 7], [3, 2]]


def test_the_test_file_takes_the_words_and_classes_of_the_training(reviews, tmp_path):
    train = text_csv(reviews)
    (tmp_path / "test.csv").write_text("label,text\nno,a film noir\n")
    x, y = text_csv(tmp_path / "test.csv", like=train)[:]
    assert x.tolist() == [[6, 2, 1, 0, 0]] and y.tolist() == [0]
    (x,) = text_csv(tmp_path / "test.csv", label=None, like=train)[:]
    assert x.shape == (1, 5)


def test_a_file_of_sentences_is_read_line_by_line(reviews, tmp_path):
    (tmp_path / "new.txt").write_text("good\n\n a bad film \n")
    features, names = text_csv(reviews).inputs.read(tmp_path / "new.txt")
    assert features[:, 0].tolist() == [3, 6] and names == ["good", "a bad film"]


BAD = {
    "no words": ("text,label\na,yes\n ,no\n", {}, "line 3: column 'text': expected a sentence, found ''"),
    "no class": ("text,label\na,yes\nb,\n", {}, "line 3: column 'label': expected a class, found ''"),
    "one class": ("text,label\na,yes\nb,yes\n", {}, "at least two classes"),
    "a value": ("text,label\na,1\nb,2.5\n", {}, "line 3: column 'label': expected a class, a name or a whole number"),
    "no column": ("words,label\na,yes\n", {}, "expected a column 'text', found 'words', 'label'"),
    "new class": ("text,label\na,perhaps\n", {"like": REVIEWS}, "a class of the training (no, yes), found 'perhaps'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_good_is_named_by_file_and_line(tmp_path, case):
    content, options, message = BAD[case]
    (tmp_path / "bad.csv").write_text(content)
    if "like" in options:
        (tmp_path / "train.csv").write_text(options["like"])
        options = {"like": text_csv(tmp_path / "train.csv")}
    line = refused(DataError, lambda: text_csv(tmp_path / "bad.csv", **options))
    assert line.startswith(str(tmp_path / "bad.csv")) and message in line


def test_what_are_no_sentences_is_refused(tmp_path):
    inputs = TextInputs(["a"], 3)
    assert repr(inputs) == "TextInputs(1 words, length 3)"
    assert "expected sentences" in refused(ConfigError, lambda: inputs([1]))
    with pytest.raises(DataNotFoundError):
        inputs.read(tmp_path / "none.txt")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xfa")
    assert "expected text in UTF-8" in refused(DataError, lambda: inputs.read(tmp_path / "x.txt"))
    assert "cannot be read (Is a directory)" in refused(DataError, lambda: inputs.read(tmp_path))
    (tmp_path / "x.txt").write_text("\n")
    assert "a sentence a line" in refused(DataError, lambda: inputs.read(tmp_path / "x.txt"))


def test_a_vocabulary_without_words_and_classes_that_are_the_sentences_are_refused(reviews):
    with pytest.raises(DataError, match=r"expected a word that occurs 9 times \(`min_count`\), found none"):
        text_csv(reviews, min_count=9)
    with pytest.raises(ConfigError, match="expected sentences and classes in different columns, got 'text' as both"):
        text_csv(reviews, label="text")


def test_rows_without_a_sentence_or_a_class_are_dropped_if_asked(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,yes\n ,no\nb,\nc,no\n")
    dataset = text_csv(tmp_path / "x.csv", missing="drop")
    assert dataset.inputs.vocabulary == ("a", "c") and dataset[:][1].tolist() == [1, 0]
    (tmp_path / "x.csv").write_text("text,label\n,yes\n")
    with pytest.raises(DataError, match="expected rows with a sentence and a class, found none"):
        text_csv(tmp_path / "x.csv", missing="drop")
