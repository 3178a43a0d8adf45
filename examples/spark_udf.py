"""Embed a column of images in Spark: `predict_batch_udf` opens one embedder per Python worker.

frame = spark.read.format("binaryFile").load("photos/*.jpg")
frame.withColumn("embedded", embed_udf("artifacts/mae-tiny-topk")("content")).write.parquet("vectors/")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mimruntime.batch import BatchEmbedder

BATCH = 64


def predict_function(artifact: str) -> Callable[[np.ndarray], dict[str, Any]]:
    """Return what `predict_batch_udf` calls with a batch: a column of bytes or paths in, columns out."""
    batches = BatchEmbedder(artifact, threads=1, workers=1)

    def predict(images: np.ndarray) -> dict[str, Any]:
        out = batches({"image": [bytes(image) if isinstance(image, bytearray) else image for image in images]})
        return {name: out[name] for name in ("vector", "error", "embedding_space")}

    return predict


def embed_udf(artifact: str) -> Any:
    """Return the function to put on a column; its result has vector, error ("" where there is none) and space."""
    from pyspark.ml.functions import predict_batch_udf  # noqa: PLC0415 - optional
    from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType  # noqa: PLC0415

    fields = [("vector", ArrayType(FloatType())), ("error", StringType()), ("embedding_space", StringType())]
    return predict_batch_udf(
        lambda: predict_function(artifact),
        return_type=StructType([StructField(name, kind) for name, kind in fields]),
        batch_size=BATCH,
    )
