"""`verify` finds what a deployment can break: a file, a reference, an engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mimruntime import artifact, manifest
from mimruntime.artifact import Artifact
from mimruntime.errors import ArtifactError, ParityError
from mimruntime.verification import verify


def replace_reference(folder: Path, **arrays: np.ndarray) -> None:
    current = manifest.decode((folder / artifact.MANIFEST).read_bytes())
    np.savez(folder / artifact.REFERENCE, **arrays)
    artifact.seal(folder, current)


def reference(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / artifact.REFERENCE) as arrays:
        return dict(arrays)


def test_a_sound_artifact_verifies(toy_artifact: Path) -> None:
    checked = verify(toy_artifact, engine="onnxruntime")
    assert checked.provider == "cpu"
    assert checked.parity.engine == "onnxruntime"
    assert checked.parity.images == 8
    assert checked.parity.worst_cosine > 0.99999
    assert checked.parity.batch_invariance < 1e-6


def test_embeddings_that_are_not_the_references_are_found(toy_copy: Path) -> None:
    arrays = reference(toy_copy)
    arrays["embedding"][3] = -arrays["embedding"][3]
    replace_reference(toy_copy, **arrays)
    with pytest.raises(ParityError, match=r"worst cosine -(1|0\.99)"):
        verify(toy_copy)


@pytest.mark.parametrize("damage", ["dim", "dtype", "count", "empty", "names", "pickle"])
def test_a_reference_that_does_not_fit_the_manifest_is_refused(toy_copy: Path, damage: str) -> None:
    images, embedding = reference(toy_copy)["images"], reference(toy_copy)["embedding"]
    damaged = {
        "dim": {"images": images, "embedding": embedding[:, :8]},
        "dtype": {"images": images.astype(np.float32), "embedding": embedding},
        "count": {"images": images[:3], "embedding": embedding},
        "empty": {"images": images[:0], "embedding": embedding[:0]},
        "names": {"pictures": images, "embedding": embedding},
        "pickle": {"images": np.array([{}], dtype=object), "embedding": embedding},
    }[damage]
    replace_reference(toy_copy, **damaged)
    with pytest.raises(ArtifactError, match=r"reference\.npz (holds images|cannot be read)"):
        verify(toy_copy)


def test_an_artifact_without_reference_is_refused(toy_copy: Path) -> None:
    current = Artifact.open(toy_copy).manifest
    (toy_copy / artifact.REFERENCE).unlink()
    artifact.seal(toy_copy, msgspec.structs.replace(current, files={}))
    with pytest.raises(ArtifactError, match=r"reference\.npz cannot be read"):
        verify(toy_copy)
