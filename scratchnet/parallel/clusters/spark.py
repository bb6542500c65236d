"""Ranks as the tasks of one barrier stage of Spark, which starts all of them at once or none."""

import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Callable
from typing import Any

from ... import checks
from ...data.large.spark import reason_of
from ...errors import ConfigError
from . import launcher

OLDEST = (3, 4)


def run(
    fn: Callable,
    *args: Any,
    ranks: int,
    spark: Any = None,
    restarts: int = 0,
    at_least: int | None = None,
    timeout: float | None = None,
) -> list:
    """`fn(comm, *args)` in `ranks` tasks of Spark; results in rank order.

    comm: an MpiCommunicator; inside, a Trainer works as under mpirun. spark: a SparkSession; None: the active one, or
    a new one. restarts, at_least, timeout: as docs/clusters.md says for all schedulers.
    Raises ConfigError for what cannot start, WorkerError for a rank that raised or died.
    """
    return launcher.run(scheduler(_session(spark)), fn, args, ranks, restarts, at_least, timeout)


def scheduler(session: Any) -> launcher.Scheduler:
    context, group = session.sparkContext, f"scratchnet-{uuid.uuid4().hex}"

    def free() -> int:
        scala = context._jsc.sc()
        total = scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile())
        tracker = context.statusTracker()
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        return total - sum(stage.numActiveTasks for stage in stages if stage)

    def collect(do: Callable[[int], dict], n: int) -> list:
        context.setJobGroup(group, "scratchnet: ranks of an MPI job", interruptOnCancel=True)
        return context.parallelize(range(n), n).barrier().mapPartitions(lambda tasks: [do(next(iter(tasks)))]).collect()

    return launcher.Scheduler(
        "spark",
        context.getConf().get("spark.driver.host"),
        free,
        collect,
        lambda: context.cancelJobGroup(group),
        reason_of,
    )


def _session(spark: Any) -> Any:
    """A session whose tasks can be ranks. Raises ConfigError."""
    try:
        import pyspark
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError(f"spark.run: needs Spark (pip install pyspark), got: {error}") from None
    found = tuple(map(int, pyspark.__version__.split(".")[:2]))
    if found < OLDEST:
        raise ConfigError(f"spark.run: expected Spark {OLDEST[0]}.{OLDEST[1]} or newer, found {pyspark.__version__}")
    if spark is None:
        home = os.environ.get("JAVA_HOME")
        if shutil.which("java", path=os.path.join(home, "bin") if home else None) is None:
            raise ConfigError(
                "spark.run: expected Java (JAVA_HOME, or java on the PATH), which Spark needs, found none"
            )
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else executors take whatever is called python3
        try:
            spark = SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()
        except Exception as error:
            raise ConfigError(f"spark.run: expected a session of Spark, got {reason_of(error)}") from None
    if not hasattr(spark, "_jsparkSession"):
        checks.refuse(
            "spark.run: spark", "a SparkSession (not one of Spark Connect, which has no barrier tasks)", spark
        )
    if spark.sparkContext._jsc is None:
        raise ConfigError("spark.run: spark: expected a session that runs, got one that was stopped")
    conf = spark.sparkContext.getConf()
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise ConfigError(
            "spark.run: expected spark.dynamicAllocation.enabled=false, got true: a barrier stage needs all its "
            "executors from the start"
        )
    if conf.get("spark.speculation", "false") == "true":
        warnings.warn("spark.run: spark.speculation is on; Spark starts no second copy of a rank", stacklevel=3)
    return spark
