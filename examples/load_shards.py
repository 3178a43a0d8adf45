"""Load the shards of `mimexport embed … --out FOLDER/` into FAISS, Qdrant, LanceDB or pgvector.

python examples/load_shards.py faiss vectors/ index.faiss
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mimruntime.storage import Codec, read_codec

ROWS = 10_000


def batches(folder: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield paths and vectors, float32 (n, D), of the images that could be read, some thousand at a time."""
    stored = codec(folder)
    return ((paths, stored.decode(codes)) for paths, codes in code_batches(folder))


def code_batches(folder: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield paths and what is stored of vectors, (n, width): float32, float16, int8, or bits in bytes."""
    whole = ds.dataset(shards(folder), format="parquet")
    good = whole.scanner(["path", "vector"], filter=ds.field("error").is_null(), batch_size=ROWS)
    for batch in good.to_batches():
        if len(batch):
            vectors = batch.column("vector").flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
            yield batch.column("path").to_pylist(), vectors


def shards(folder: str) -> list[str]:
    """Return the files of a finished job, in order; an index of an unfinished one would lack images in silence."""
    job = record(folder)
    files = [Path(folder) / f"part-{index:07d}-{job['digest'][:12]}.parquet" for index in range(job["shards"])]
    missing = sum(not file.exists() for file in files)
    if missing:
        raise SystemExit(f"{folder} lacks {missing} of {job['shards']} shards; run its `mimexport embed` again first")
    return [str(file) for file in files]


def codec(folder: str) -> Codec:
    """Return what reads vectors of these shards back; every shard has the same."""
    labels = {key.decode(): text.decode() for key, text in pq.read_schema(shards(folder)[0]).metadata.items()}
    return read_codec(labels, *about(folder))


def about(folder: str) -> tuple[str, int]:
    """Return the embedding space and the length of a vector; an index never mixes two spaces."""
    job = record(folder)
    return job["embedding_space"], job["dim"]


def record(folder: str) -> dict[str, Any]:
    """Return what the job wrote of itself."""
    return json.loads((Path(folder) / "_job" / "record.json").read_text())


def into_faiss(folder: str, file: str) -> None:
    """Write an index, and beside it the space and the paths, in the order of its rows."""
    import faiss  # noqa: PLC0415 - each store is optional

    stored, names = codec(folder), []
    if stored.store == "bits":
        index = faiss.IndexBinaryFlat(8 * stored.width)  # by the number of bits that differ
    elif stored.store in {"fp16", "int8"}:
        kind = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[stored.store]
        index = faiss.IndexScalarQuantizer(stored.dim, kind, faiss.METRIC_INNER_PRODUCT)
    else:  # unit vectors: the inner product is the cosine
        index = faiss.IndexFlatIP(stored.dim)
    for paths, codes in code_batches(folder):
        numbers = codes if stored.store == "bits" else stored.decode(codes)
        if not index.is_trained:  # 8 bits have a range for each dimension, here that of the shards' own codes
            index.train(np.stack([stored.mean - 127 * stored.scale, stored.mean + 127 * stored.scale]))
        index.add(numbers)
        names += paths
    save = faiss.write_index_binary if stored.store == "bits" else faiss.write_index
    save(index, file)
    Path(f"{file}.json").write_text(json.dumps({"space": stored.space, "paths": names, **stored.labels()}))


def into_qdrant(folder: str, client: Any) -> str:
    """Upload into a collection named after the embedding space, and return its name."""
    from qdrant_client.models import Datatype, Distance, PointStruct, VectorParams  # noqa: PLC0415

    stored = codec(folder)
    space = stored.space.replace("/", "-")  # a name of a collection has no slash
    kept = Datatype.FLOAT16 if stored.store == "fp16" else Datatype.FLOAT32
    client.create_collection(space, VectorParams(size=stored.dim, distance=Distance.COSINE, datatype=kept))
    row = 0
    for paths, vectors in batches(folder):
        pairs = enumerate(zip(paths, vectors, strict=True), start=row)
        points = (PointStruct(id=i, vector=vector.tolist(), payload={"path": path}) for i, (path, vector) in pairs)
        client.upload_points(space, points)
        row += len(paths)
    return space


def into_lancedb(folder: str, uri: str) -> Any:
    """Write a table named after the embedding space, batch by batch, and return it."""
    import lancedb  # noqa: PLC0415

    stored = codec(folder)
    kept = {"fp16": pa.float16(), "bits": pa.uint8()}.get(stored.store, pa.float32())  # of bits, search by "hamming"
    width = stored.width if stored.store == "bits" else stored.dim
    schema = pa.schema([("path", pa.string()), ("vector", pa.list_(kept, width))])
    rows = (
        pa.record_batch(
            [pa.array(paths), pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel(), kept), width)], schema=schema
        )
        for paths, codes in code_batches(folder)
        for numbers in [stored.decode(codes) if stored.store == "int8" else codes]
    )
    return lancedb.connect(uri).create_table(f"space_{stored.space.replace('/', '_')}", rows, schema=schema)


def into_pgvector(folder: str, connection: Any) -> str:
    """Copy into a table named after the embedding space, in binary form, and return its name.

    Args:
        folder: of the shards.
        connection: of psycopg, to a database that may have the extension `vector`.

    """
    from pgvector.psycopg import register_vector  # noqa: PLC0415

    space, dim = about(folder)
    table = f"space_{space.replace('/', '_')}"
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    register_vector(connection)
    connection.execute(f"CREATE TABLE {table} (path text, embedding vector({int(dim)}))")
    with connection.cursor().copy(f"COPY {table} (path, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["text", "vector"])
        for paths, vectors in batches(folder):
            for path, vector in zip(paths, vectors, strict=True):
                copy.write_row([path, vector])
    connection.execute(f"CREATE INDEX ON {table} USING hnsw (embedding vector_ip_ops)")
    return table


def main(store: str, folder: str, place: str) -> None:
    """Load `folder` into `place`: a file, a URL of Qdrant, a URI of LanceDB, or a connection string."""
    if store == "faiss":
        into_faiss(folder, place)
        print(f"{place}, {place}.json")
    elif store == "qdrant":
        from qdrant_client import QdrantClient  # noqa: PLC0415

        print(into_qdrant(folder, QdrantClient(place)))
    elif store == "lancedb":
        print(into_lancedb(folder, place))
    elif store == "pgvector":
        import psycopg  # noqa: PLC0415

        with psycopg.connect(place) as connection:
            print(into_pgvector(folder, connection))
    else:
        raise SystemExit(f"unknown store {store}; expected faiss, qdrant, lancedb or pgvector")


if __name__ == "__main__":
    main(*sys.argv[1:])
