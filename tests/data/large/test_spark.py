"""DataFrames of Spark as stored rows: no row lost or twice, and an order that no partition changes."""

import os

import numpy as np
import pytest
import ranks
import schedulers

from scratchnet.data import from_folder, from_spark
from scratchnet.data.large.spark import reason_of
from scratchnet.errors import ConfigError, DataError
from scratchnet.parallel.clusters import spark
from scratchnet.testing.schedulers import SparkCluster, own_disk, spark_session


def test_what_is_no_dataframe_is_refused():
    with pytest.raises(ConfigError, match="from_spark: expected a DataFrame of Spark, got"):
        from_spark([1], features=["a"], label="y", order_by="a", store="store")


@ranks.needs("pyspark", "pyarrow")
def test_the_rows_are_those_of_the_frame_in_order_whatever_its_partitions(tmp_path):
    from pyspark.sql import functions as F

    with spark_session() as session:
        n = 1000
        frame = session.range(n).select(
            (F.col("id") % 7).alias("key"), F.when(F.col("id") % 5 == 0, "Oslo").otherwise("Lima").alias("city"),
            (F.col("id") * 0.5).alias("a"), (F.col("id") % 13).cast("int").alias("b"),
            F.when(F.col("id") % 3 == 0, "no").otherwise("yes").alias("y"),
        )  # fmt: skip
        ids = np.array(sorted(range(n), key=lambda i: (i % 7, i * 0.5)))
        x = np.stack([ids * 0.5, ids % 5 != 0, ids % 5 == 0, ids % 13], axis=1).astype(np.float32)
        for partitions in (1, 3, 8):
            cut = frame.orderBy(F.rand(partitions)).repartition(partitions)
            arguments = {
                "features": ["a", "city", "b"],
                "label": "y",
                "order_by": ["key"],
                "store": tmp_path / f"{partitions}",
            }
            found = from_spark(cut, **arguments)
            assert found.feature_names == ("a", "city=Lima", "city=Oslo", "b")
            features, labels = found[:]
            assert np.array_equal(features, x) and np.array_equal(labels, (ids % 3 != 0).astype(int))
        frame.orderBy("key", "a").write.parquet(str(tmp_path / "files"))  # for machines that share no folder
        copied = from_folder(tmp_path / "files", "y", features=["a", "city", "b"], store=tmp_path / "copied")
        assert all(map(np.array_equal, copied[:], found[:])) and copied.feature_names == found.feature_names
        values = from_spark(frame, features=["b"], label="a", order_by="a", store=tmp_path / "values")
        assert values.classes is None and np.array_equal(values[:][1][:, 0], np.arange(n, dtype=np.float32) * 0.5)

        holes = frame.withColumn("a", F.when(F.col("a") != 1.5, F.col("a")))
        store = tmp_path / "holes"
        words = r"column 'a': row 0 in the order of order_by: expected a value, found None"
        with pytest.raises(DataError, match=words):
            from_spark(holes, features=["a"], label="y", order_by="a", store=store)
        dropped = from_spark(holes, features=["a"], label="y", order_by="a", store=store, missing="drop")
        assert len(dropped) == n - 1 and 1.5 not in dropped[:][0]
        no_city = frame.withColumn("city", F.when(F.col("city") == "Oslo", F.col("city")))
        with pytest.raises(
            DataError, match=r"column 'city': row \d+ in the order of order_by: expected a value, found N"
        ):
            from_spark(no_city, features=["city"], label="y", order_by="a", store=store)
        dates = frame.withColumn("day", F.lit("2026-01-01").cast("date"))
        with pytest.raises(DataError, match=r'from_spark: .*"DATE" to "DOUBLE"'):
            from_spark(dates, features=["day"], label="y", order_by="a", store=store)
        texts = frame.withColumn("text", F.col("a").cast("string"))
        with pytest.raises(DataError, match=r"column 'text': expected 1 to 100 texts, found 102; cast it to double if"):
            from_spark(texts, features=["text"], label="y", order_by="a", store=store)
        with pytest.raises(DataError, match=r"from_spark: expected a column 'c', found key, city, a, b, y"):
            from_spark(frame, features=["c"], label="y", order_by="a", store=store)
        with pytest.raises(DataError, match=r"column 'a': expected 2 to 100 classes, found 102; classes=False makes"):
            from_spark(frame, features=["b"], label="a", order_by="a", store=store, classes=True)
        with pytest.raises(DataError, match=r"column 'y': expected 2 to 100 classes, found 0|at least one row"):
            from_spark(frame.filter("a < 0"), features=["a"], label="y", order_by="a", store=store)


def bytes_of(data):
    return b"".join(array.tobytes() for array in data[:])


def where_they_lie(comm, rows):
    """(this rank's parts before it meets the others, the bytes of all rows afterwards)."""
    before = len(list(rows.files.glob("part-*")))
    return before, bytes_of(rows.all_gather(comm))


@ranks.needs("pyspark", "pyarrow")
@pytest.mark.skipif(os.geteuid() != 0, reason="expected root, who can give each executor a disk of its own")
def test_executors_that_share_no_folder_keep_their_parts_and_ranks_bring_them_together(tmp_path):
    store, shared = tmp_path / "store", tmp_path / "shared"
    store.mkdir()
    with SparkCluster(tmp_path, own_disk(store)) as cluster, spark_session(cluster.master) as session:
        schedulers.wait_for_slots(session)
        frame = session.range(1000).selectExpr("id % 7 as a", "id * 0.25 as b", "id % 2 as y").repartition(5)
        words = {"features": ["a", "b"], "label": "y", "order_by": "b"}
        expected = bytes_of(from_spark(frame, **words, store=shared))
        with pytest.raises(
            DataError, match=r"expected the driver's folder .*, found none or another; store= must name"
        ):
            from_spark(frame, **words, store=store)
        rows = from_spark(frame, **words, store=store, shared=False)
        found = spark.run(where_they_lie, rows, spark=session, ranks=2)
        assert [data for _, data in found] == [expected] * 2 and len(rows) == 1000
        assert 0 < found[0][0] < len(rows.bounds) - 1  # parts lay on both
        assert spark.run(where_they_lie, rows, spark=session, ranks=2) == [(len(rows.bounds) - 1, expected)] * 2
        assert not list(store.glob("rows-*/part-*"))  # nothing came to the driver


def test_an_error_of_spark_is_the_last_line_of_python():
    stack = "An error\n: org.apache.spark.SparkException: Job aborted: x\n  File\nModuleNotFoundError: No y\n SQL"
    assert reason_of(Exception(stack)) == "ModuleNotFoundError: No y"
    assert reason_of(Exception("a\n: org.SparkException: Job aborted: b\n")).endswith("Job aborted: b")
    assert reason_of(Exception("a\nJob aborted\njava.io.IOException: Cannot run program x\n")).endswith("run program x")
    assert reason_of(ValueError("c\nd")) == "ValueError: c"
    stack = "An error occurred while calling None.org.x\n: java.lang.IllegalStateException: context stopped\n\tat y\n"
    assert reason_of(Exception(stack)) == "java.lang.IllegalStateException: context stopped"
