"""Ranks as tasks of Spark: in a local session, and on a master with two executors."""

import functools
import os
import signal
import sys
import types

import pytest
import ranks
import schedulers

from scratchnet.errors import ConfigError
from scratchnet.parallel.clusters import spark
from scratchnet.testing.schedulers import SparkCluster, spark_session

needs_spark = ranks.needs("pyspark")


@needs_spark
def test_a_local_session(tmp_path, capsys):
    with spark_session() as session:
        run = functools.partial(spark.run, spark=session)
        schedulers.check_contract(run, tmp_path, capsys)
        schedulers.check_loss(run, tmp_path, schedulers.lose_task)
        schedulers.check_loss(run, tmp_path, lambda pids: session.sparkContext.cancelAllJobs(), comes_back=False)
        assert run(ranks.trained, ranks=2) == ranks.expected(2)  # nothing holds a slot


@needs_spark
def test_a_cluster_of_two_executors(tmp_path, capsys):
    with SparkCluster(tmp_path) as cluster, spark_session(cluster.master) as session:
        run = functools.partial(spark.run, spark=session)
        schedulers.wait_for_slots(session)
        schedulers.check_contract(run, tmp_path, capsys)
        schedulers.check_loss(run, tmp_path, lambda pids: kill(schedulers.ancestor(pids[0], "CoarseGrained")))


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def fake_spark(monkeypatch, version="4.3.0"):
    """A package that looks like Spark, with a session that is nothing."""
    module, sql = types.ModuleType("pyspark"), types.ModuleType("pyspark.sql")
    module.__version__, sql.SparkSession = version, type("SparkSession", (), {})
    monkeypatch.setitem(sys.modules, "pyspark", module)
    monkeypatch.setitem(sys.modules, "pyspark.sql", sql)


class Session:
    _jsparkSession = None

    def __init__(self, java="running", **options):
        self.sparkContext = types.SimpleNamespace(_jsc=java, getConf=lambda: options)


def test_what_spark_cannot_do_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(ConfigError, match=r"spark.run: needs Spark \(pip install pyspark\), got: "):
        spark.run(print, ranks=2)
    fake_spark(monkeypatch, "3.3.1")
    with pytest.raises(ConfigError, match=r"spark.run: expected Spark 3.4 or newer, found 3.3.1"):
        spark.run(print, ranks=2)
    fake_spark(monkeypatch)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(
        ConfigError, match=r"spark.run: expected Java \(JAVA_HOME, or java on the PATH\), .* found none"
    ):
        spark.run(print, ranks=2)
    with pytest.raises(ConfigError, match=r"spark.run: spark: expected a SparkSession .*, got 3"):
        spark.run(print, ranks=2, spark=3)
    with pytest.raises(ConfigError, match=r"spark.run: spark: expected a session that runs, got one that was stopped"):
        spark.run(print, ranks=2, spark=Session(java=None))
    with pytest.raises(ConfigError, match=r"expected spark.dynamicAllocation.enabled=false, got true: a barrier stage"):
        spark.run(print, ranks=2, spark=Session(**{"spark.dynamicAllocation.enabled": "true"}))
    with pytest.warns(UserWarning, match=r"spark.speculation is on; Spark starts no second copy of a rank"):
        spark._session(Session(**{"spark.speculation": "true"}))
