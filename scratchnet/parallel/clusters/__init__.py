"""The ranks of an MPI job as tasks of Spark, Ray, Dask or Kubernetes; each is loaded when it is named.

from scratchnet.parallel.clusters import spark
results = spark.run(fn, *args, ranks=4)     like sn.parallel.run, in the executors of a Spark application
"""
