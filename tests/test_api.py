"""The Python API, used as its users do: from names, from models in memory, with types, and by the examples of its docstrings."""

from __future__ import annotations

import doctest
import importlib
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from catalogue import built, copied, take
from PIL import Image

import mimeval
import mimexport
import mimruntime
from mimeval.datasets import open_dataset
from mimruntime import Embedder, MimError

PACKAGES = (mimruntime, mimexport, mimeval)
ROOT = Path(__file__).parent.parent


def small_model(seed: int = 0, **changes: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **options | changes)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, photos):
    """A folder as the docstrings have it: photographs, and others in class folders."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "photos").mkdir()
    for name, photo in zip("abcdefgh", photos, strict=True):
        Image.open(photo).convert("RGB").resize((96, 80)).save(folder / f"photos/{name}.jpg")
    for label, photo in zip(("east", "west"), photos[:2], strict=True):
        (folder / "labelled" / label).mkdir(parents=True)
        whole = Image.open(photo).convert("RGB").resize((200, 200))
        for turn in range(10):
            whole.crop((turn, 2 * turn, 150 + turn, 150)).save(folder / f"labelled/{label}/{turn}.png")
    return folder


@pytest.fixture(scope="module")
def in_memory(workplace):
    return mimexport.build(small_model(), agg="topk", out=workplace / "mine", license="mit", with_selection=True)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_offers_a_dozen_names_each_described(package):
    assert len(package.__all__) <= 12
    assert {*package.__all__} <= {*dir(package)}
    for name in package.__all__:
        offered = getattr(package, name)
        if isinstance(offered, type) or callable(offered):
            assert offered.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_importing_a_package_imports_nothing_heavy(package):
    script = (
        f"import sys, {package.__name__}; print([n for n in ('torch', 'numpy', 'scipy', 'PIL') if n in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout.strip()
        == "[]"
    )


def test_a_timm_model_in_memory_is_built_and_stays_as_it_was(in_memory, photos):
    model = small_model()
    record = in_memory.manifest.backbone
    assert (record.source, record.origin, record.license) == ("memory", "a VisionTransformer in memory", "mit")
    with Embedder.open(in_memory) as embedder:
        pixels = np.stack([embedder.prepare(photo) for photo in photos[:3]])
        vectors = embedder.run(pixels)
    (reference,) = mimexport.References(models=(model,)).open([in_memory])
    assert (vectors * reference.run(pixels)["embedding"]).sum(1) == pytest.approx(1, abs=1e-5)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 48)  # it was copied, not taken apart


def test_the_digest_of_a_model_in_memory_knows_what_is_in_no_tensor():
    digests = {
        mimexport.loaded_model.model_sha256(model)
        for model in (small_model(), small_model(num_heads=4), small_model(seed=1), small_model())
    }
    assert len(digests) == 3


def test_a_model_in_memory_takes_no_weights_and_no_other_size(tmp_path):
    with pytest.raises(MimError, match="already has its weights"):
        mimexport.build(small_model(), out=tmp_path / "a", weights="w.pth")
    with pytest.raises(MimError, match="was created for 32 px"):
        mimexport.build(small_model(), out=tmp_path / "a", size=64)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_finds_the_torch_side_by_itself_and_says_what_it_lacks(in_memory, workplace):
    with pytest.raises(MimError, match=r"pass it with References\(models=\[model\]\)"):
        mimeval.evaluate([in_memory], data=workplace / "labelled", engines="onnxruntime", cache=workplace / "cache")


def test_from_two_artifacts_to_a_report(in_memory, workplace):
    cls = mimexport.build(small_model(), agg="cls", out=workplace / "cls")
    report = mimeval.evaluate(
        [in_memory],
        baseline=cls,
        data=workplace / "labelled",
        engines="onnxruntime",
        metrics=["knn"],
        cache=workplace / "cache",
        torch_side=mimexport.References(models=(small_model(),)),
    )
    assert report.metric == "k-NN"
    assert {gain.model for gain in report.gains} == {"mine"}


def test_limits_hold_for_images_in_memory_as_for_a_folder(toy_artifact, workplace, monkeypatch):
    monkeypatch.setattr("mimeval.evaluation.evaluate", lambda _artifacts, _baselines, dataset, *_, **__: dataset)
    monkeypatch.setattr("mimeval.comparison.compare_artifacts", lambda _first, _second, dataset, **_: dataset)
    folder = workplace / "labelled"
    for data in (folder, open_dataset(str(folder), cache=workplace / "cache")):
        options = {"data": data, "limit": 2, "train_limit": 6, "cache": workplace / "cache", "device": "cpu"}
        evaluated = mimeval.evaluate([toy_artifact], baseline=toy_artifact, **options)
        compared = mimeval.compare(toy_artifact, toy_artifact, **options)
        assert [(len(found.test), len(found.train)) for found in (evaluated, compared)] == [(2, 6), (2, 6)]


def test_the_examples_of_the_docstrings_run(workplace, monkeypatch):
    """One after the other in one folder, as a reader would: what `build` makes, here out of the catalogue, the others take."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HOME", str(workplace))
    monkeypatch.setattr("mimexport.pipeline.build", partial(take, with_selection=True, whiten_by_default=False))
    baseline = built(model="mae-tiny", agg="cls")
    monkeypatch.setattr("mimexport.references.build", lambda options: copied(baseline, options.out))
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    examples = 0
    for package in (mimexport, mimruntime, mimeval):
        for name in sorted(package.__all__, key=lambda name: name != "build"):
            offered = getattr(package, name)
            for test in finder.find(offered, name, globs={}, module=importlib.import_module(package.__name__)):
                examples += len(test.examples)
                runner.run(test)
    assert examples > 15
    assert runner.summarize(verbose=False).failed == 0
    shutil.rmtree(workplace / "artifacts")


CONSUMER = """
from pathlib import Path

import numpy as np
from torch import nn

import mimeval
import mimexport
from mimruntime import Artifact, BatchEmbedder, Embedder, Verification, compile_engine, verify


class Own(mimexport.Aggregator):
    formula = "the first patch"

    def forward(self, features: mimexport.Features) -> mimexport.Pooled:
        return mimexport.Pooled(features.patches[:, 0])


def use(model: nn.Module, photos: list[str | Path]) -> np.ndarray:
    artifact: Artifact = mimexport.build(model, agg=Own(), out="a", pixels=mimexport.IMAGENET_PIXELS)
    head: mimexport.Head = mimexport.fit("mae-tiny", "abmilp", data="photos/", labels=False)
    mimexport.build("mae-tiny", "abmilp", Path("b"), head=head, whiten=0, precision="fp16")
    report: mimeval.Report = mimeval.evaluate([artifact], data="folder:photos", baseline=artifact, engines="all")
    checked: Verification = verify(artifact)
    compile_engine(artifact, "openvino", hint="latency")
    BatchEmbedder(artifact, column="image").close()
    print(report.verdict, checked.parity.worst_cosine)
    with Embedder.open(artifact) as embedder:
        return embedder.embed(photos)


mimexport.build("mae-tiny", precision="fp12")  # an error for mypy
"""


def test_a_consumer_is_type_checked(tmp_path):
    """As strictly as this project is, whose lint has read the packages before: nothing of them is read again."""
    assert all((Path(package.__file__).parent / "py.typed").is_file() for package in PACKAGES)
    (tmp_path / "consumer.py").write_text(CONSUMER)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(tmp_path / "consumer.py")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert said.count("error:") == 1, said
    assert 'Argument "precision" to "build" has incompatible type "Literal[\'fp12\']"' in said
