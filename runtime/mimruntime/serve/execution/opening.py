"""Open the artifacts of the service under their served names."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from mimruntime.artifact import Artifact
from mimruntime.cpus import available_cpus
from mimruntime.embedder import Embedder
from mimruntime.engines import engine_module
from mimruntime.engines.auto import choose_engine
from mimruntime.errors import OptionError
from mimruntime.serve.settings import Settings


def open_embedders(
    settings: Settings, stack: contextlib.ExitStack, spaces: Sequence[str] | None = None
) -> list[tuple[str, Embedder]]:
    """Open every artifact, and return them with their names.

    Args:
        settings: the service's settings.
        stack: closes the artifacts.
        spaces: the expected embedding space of each artifact, in order; others are refused. None accepts all.

    Raises:
        OptionError: two artifacts have the same name.
        MimError: as `Embedder.open`.

    """
    opened: dict[str, Embedder] = {}
    expected: Sequence[str | None] = spaces or [None] * len(settings.artifacts)
    for served, space in zip(settings.artifacts, expected, strict=True):
        embedder = stack.enter_context(open_embedder(served.folder, settings, space))
        name = served.name or embedder.artifact.manifest.name
        if name in opened:
            raise OptionError(
                f"two artifacts are named '{name}': {opened[name].artifact.path} and {served.folder};"
                f" give one another name: {name}-2={served.folder}"
            )
        opened[name] = embedder
    return [*opened.items()]


def open_embedder(path: object, settings: Settings, expect_space: str | None = None) -> Embedder:
    """Open one artifact with the settings; its own decoding thread stays idle, since the service has a pool."""
    engine, threads = settings.engine, settings.threads
    if threads is None and settings.workers > 1:
        # An engine is chosen as for one process, and on a CPU then has its share of it.
        if engine == "auto":
            engine = choose_engine(Artifact.open(str(path), public_key=settings.public_key), settings.provider)
        threads = None if engine_module(engine).NEEDS_GPU else max(1, available_cpus() // settings.workers)
    return Embedder.open(
        str(path),
        engine=engine,
        provider=settings.provider,
        threads=threads,
        batch_size=settings.max_batch,
        expect_space=expect_space,
        workers=1,
        scaled_decoding=settings.scaled_decoding,
        public_key=settings.public_key,
        check_reference=settings.check_reference,
    )
