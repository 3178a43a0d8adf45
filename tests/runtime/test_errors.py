"""The tree at the top of `errors.py` is the tree."""

from __future__ import annotations

import inspect
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from mimruntime import errors


def test_every_error_stands_in_the_drawn_tree() -> None:
    defined = {name for name, _ in inspect.getmembers(errors, inspect.isclass) if name.endswith("Error")}
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) | {"MimError"}
    assert drawn == defined
    assert all(issubclass(getattr(errors, name), errors.MimError) for name in defined)


def test_an_unknown_name_is_answered_nearest_first_or_with_all() -> None:
    assert "did you mean topk" in str(errors.UnknownNameError("aggregator", "topk1", ["mean", "topk", "cls"]))
    assert str(errors.UnknownNameError("engine", "zzz", ["b", "a"])).endswith("known: a, b")


def test_a_missing_extra_is_an_import_error_with_the_pip_line() -> None:
    with pytest.raises(ImportError, match=r"pip install 'mimexport\[cpu\]'"):
        raise errors.MissingExtraError("x", "cpu")


def fail_with(error: errors.MimError) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownNameError("engine", "opnvino", ["openvino"]),
        errors.MissingExtraError("x", "cpu"),
        errors.ImageSizeError("too many pixels"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_from_a_worker_as_it_was(error: errors.MimError) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        came = pool.submit(fail_with, error).exception(timeout=60)
    assert type(came) is type(error)
    assert str(came) == str(error)
