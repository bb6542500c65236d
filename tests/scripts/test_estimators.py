"""scripts/bench/estimators.py: both train the same network, and the ratios are theirs."""

import re

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def test_both_do_the_same_work(capsys):
    import estimators

    estimators.main(estimators.Config(epochs=2, rounds=1, dtype="float64"))
    head, *lines, ratio = capsys.readouterr().out.splitlines()
    assert head.startswith("digits, float64, threads: all")
    work = {line.partition("of CPU")[2] for line in lines}
    assert len(lines) == 2 and len(work) == 1 and re.search(r"2 epochs, loss \d\.\d{6}, accuracy 0\.\d{4}", work.pop())
    (a, _), (b, _) = (re.findall(r"([\d.]+) s", line) for line in lines)
    assert float(ratio.split()[1]) == pytest.approx(float(a) / float(b), rel=0.2, abs=0.01)
