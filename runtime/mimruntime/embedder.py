"""The main class of the Python API: an opened artifact that turns images into vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mimruntime.artifact import Artifact
from mimruntime.batching import BatchPipeline, NewBatch, Outcome, sizes_for, window
from mimruntime.decode import MAX_PIXELS, Source, refuse_single
from mimruntime.decoders import Decode, open_decoders
from mimruntime.decoding.budget import DEFAULT_MB, MemoryBudget
from mimruntime.decoding.formats import FORMATS
from mimruntime.engines.base import EMBEDDING, KEPT, SELECTION, Engine
from mimruntime.engines.opening import check_precision, open_for, precision_of
from mimruntime.errors import ImageError, OptionError
from mimruntime.preparation import prepare
from mimruntime.results import Description, Result
from mimruntime.times import Times


class Embedder:
    """An opened artifact that embeds images. Use it with `with`; it is thread-safe.

    >>> from pathlib import Path
    >>> from mimruntime import Embedder
    >>> with Embedder.open("artifacts/tiny") as embedder:
    ...     vectors = embedder.embed(["photos/a.jpg", Path("photos/b.jpg").read_bytes()])
    >>> vectors.shape, vectors.dtype  # of length 1, so that a @ b is the cosine
    ((2, 192), dtype('float32'))

    Images are decoded while the engine runs. On a CPU only one batch runs at a time, because the engine already uses all
    CPUs; so memory is needed for only one batch. Batch sizes are `batch_size` and the powers of two below it. The
    remaining images run in batches of these sizes (13 = 8 + 4 + 1) without padding.
    """

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        max_decode_mb: int = DEFAULT_MB,
        scaled_decoding: bool = False,
        decode: Decode = "threads",
    ) -> None:
        sizes = sizes_for(engine, batch_size, workers, artifact.path)
        self._artifact = artifact
        self._engine = engine
        self._budget = MemoryBudget(max_decode_mb)
        self._scaled = scaled_decoding
        decoders = open_decoders(
            decode,
            artifact.manifest.preprocess,
            self._budget,
            workers=workers,
            scaled=scaled_decoding,
            # With a GPU the files of all batches in flight wait in memory; together they fit into the budget.
            most_bytes=max_decode_mb * 1_000_000 // (window(engine) * sizes[0]),
        )
        self._pipeline = BatchPipeline(engine, decoders, sizes, workers)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        engine: str = "auto",
        provider: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
        expect_space: str | None = None,
        expect_precision: str | None = None,
        workers: int | None = None,
        max_decode_mb: int = DEFAULT_MB,
        scaled_decoding: bool = False,
        decode: Decode = "threads",
        public_key: str | Path | None = None,
        check_reference: bool = True,
    ) -> Embedder:
        """Open the artifact at `path` and check all its digests.

        Args:
            path: the artifact folder.
            engine: a name in `mimruntime.engines.ENGINES`, or "auto"; see `mimruntime.engines.auto`.
            provider: the hardware, by the engine's own name; None takes the compiled engine's, else the CPU.
            threads: CPU threads of one run; None takes the tuned number, else all CPUs of this process.
            batch_size: largest batch; None takes the tuned size, else 16.
            expect_space: raise SpaceError unless the artifact has this embedding space.
            expect_precision: raise PrecisionError unless the engine computes in this precision ("fp32", "fp16", "bf16", "int8").
            workers: number of decoding threads; None takes one per CPU, at most 32.
            max_decode_mb: memory for all images decoded at once, 10^6 bytes; an image that needs more is rejected.
            scaled_decoding: decode large JPEGs at a smaller size, at least twice the resized one; vectors change slightly.
            decode: "threads"; "processes", for many CPUs: they do not share the interpreter's lock; or "gpu": JPEGs are decoded
                and resized on an NVIDIA GPU, all other images by threads (`mimruntime.gpu.coded`).
            public_key: a minisign public key, as text or file; require its signature on the artifact and compiled engines.
            check_reference: compare the vectors of two images with torch's; see `mimruntime.engines.opening.open_for`.

        Raises:
            ArtifactError: the folder is missing, damaged, changed, or not an artifact.
            SignatureError: `public_key` did not sign it.
            ParityError: the engine's vectors differ from torch's.
            SpaceError: the embedding space is not `expect_space`; PrecisionError: the precision is not `expect_precision`.
            EngineError, MissingExtraError, UnknownNameError: the engine or provider is unknown, missing or cannot run this.
            OptionError: a number is below 1, or the compiled engine does not support the batch size.

        """
        artifact = Artifact.open(path, expect_space=expect_space, public_key=public_key)
        opened = open_for(artifact, engine, provider=provider, threads=threads, check_reference=check_reference)
        try:
            check_precision(artifact, opened, expect_precision)
            return cls(
                artifact,
                opened,
                batch_size=batch_size,
                workers=workers,
                max_decode_mb=max_decode_mb,
                scaled_decoding=scaled_decoding,
                decode=decode,
            )
        except BaseException:
            opened.close()
            raise

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._artifact.manifest.embedding.dim

    @property
    def space(self) -> str:
        """The embedding space; store it with the vectors."""
        return self._artifact.manifest.embedding_space

    @property
    def has_selection(self) -> bool:
        """Whether `outputs` includes the weight of each patch."""
        return SELECTION in self._engine.outputs

    @property
    def artifact(self) -> Artifact:
        """The opened artifact."""
        return self._artifact

    @property
    def times(self) -> Times:
        """Time spent so far by `embed`, `select` and `stream`, by stage."""
        return self._pipeline.times

    def describe(self) -> Description:
        """Return the engine, provider and precision in use."""
        return Description(
            name=self._artifact.manifest.name,
            space=self.space,
            dim=self.dim,
            engine=f"{self._engine.name} {self._engine.version}",
            provider=self._engine.provider,
            precision=precision_of(self._artifact, self._engine),
            batch_sizes=self._pipeline.sizes,
            compiled=self._engine.compiled,
        )

    def embed(self, images: Iterable[Source]) -> np.ndarray:
        """Return one vector per image, float32 (n, D), in order; an empty list gives (0, D).

        Args:
            images: paths, encoded bytes, Pillow images, uint8 arrays (H, W, 3) or (H, W), in any mix.

        Raises:
            ImageError: an image cannot be decoded (the message has the index of the first), or `images` is a single image.
            EngineError: a run failed, or the embedder is closed.

        """
        return self._stacked(images, EMBEDDING, (self.dim,))

    def select(self, images: Iterable[Source]) -> np.ndarray:
        """Return the weight of each patch, float32 (n, gh, gw): rows from top, columns from left, after the crop.

        Raises:
            OptionError: the artifact was built without `with_selection`.
            ImageError, EngineError: as `embed`.

        """
        if not self.has_selection:
            raise OptionError(
                f"{self._artifact.path} has no output '{SELECTION}'; build it again: mimexport build … --with-selection"
            )
        return self._stacked(images, SELECTION, self._artifact.manifest.backbone.grid)

    def kept(self, images: Iterable[Source]) -> np.ndarray | None:
        """Return which patches stayed in the encoder, bool (n, gh, gw); None if the graph does not say, or drops none.

        Raises:
            ImageError, EngineError: as `embed`.

        """
        if KEPT not in self._engine.outputs:
            return None
        return self._stacked(images, KEPT, self._artifact.manifest.backbone.grid) > 0

    def stream(self, sources: Iterable[Source | ImageError | NewBatch]) -> Iterator[Result]:
        """Yield a result per source, in order. Sources are read only a few batches ahead.

        A source that cannot be decoded yields a result with its error, and the stream continues; an ImageError in the place of
        a source is such an error. The value `mimruntime.batching.NEW_BATCH` between two sources starts a new batch.

        Raises:
            ImageError: `sources` is a single image.
            EngineError: a run failed, or the embedder is closed.

        """
        refuse_single(sources)
        return (_result(outcome) for outcome in self._pipeline.outcomes(sources, EMBEDDING))

    def prepare(
        self,
        source: Source,
        *,
        max_pixels: int = MAX_PIXELS,
        formats: Iterable[str] = FORMATS,
        budget: MemoryBudget | None = None,
    ) -> np.ndarray:
        """Return the graph's input for one image, uint8 (size, size, 3); thread-safe.

        Args:
            source: an image, as in `embed`.
            max_pixels: largest number of pixels; larger images are rejected by their header.
            formats: allowed formats, names in `mimruntime.decoding.formats.FORMATS`.
            budget: memory that decoders share; None uses this embedder's own.

        Raises:
            ImageError: the image cannot be decoded; see `mimruntime.decode.decode`.
            OptionError: a format is not in `mimruntime.decoding.formats.FORMATS`.

        """
        spec = self._artifact.manifest.preprocess
        own = budget or self._budget
        return prepare(source, spec, own, max_pixels=max_pixels, formats=formats, scaled=self._scaled)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Return the vectors of one prepared batch, float32 (B, D), in one run of the engine.

        Args:
            pixels: uint8 (B, size, size, 3). Use B from `describe().batch_sizes`; other sizes may need more memory.

        Raises:
            EngineError: pixels have another shape or dtype, or the run failed.

        """
        return self.outputs(pixels)[EMBEDDING]

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return all outputs for one prepared batch: "embedding", and "selection" and "kept" if the graph has them.

        Raises:
            EngineError: as `run`.

        """
        return self._pipeline.run(pixels)

    def close(self) -> None:
        """Stop the threads and close the engine; further calls do nothing."""
        self._pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stacked(self, images: Iterable[Source], output: str, shape: tuple[int, ...]) -> np.ndarray:
        refuse_single(images)
        rows = []
        for index, outcome in enumerate(self._pipeline.outcomes(images, output)):
            if outcome.row is None:
                raise ImageError(f"image {index}: {outcome.error}") from outcome.error
            rows.append(outcome.row)
        return np.stack(rows) if rows else np.empty((0, *shape), np.float32)


def _result(outcome: Outcome) -> Result:
    return Result(outcome.source, outcome.row, None if outcome.error is None else str(outcome.error))
