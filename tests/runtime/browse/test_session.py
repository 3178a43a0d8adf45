"""What ends the embedding behind a page is said on the page."""

import time

import pytest

from mimruntime.browse.session import Session
from mimruntime.errors import EngineError
from mimruntime.search.gallery import gallery_of


class Collection:
    """A collection whose embedding fails after some images."""

    def __init__(self, error):
        self.index = range(3)
        self._error = error

    def fill(self):
        yield from self.index
        raise self._error


class Pictures:
    def close(self):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EngineError("a run failed; try again"), "a run failed; try again"),
        (KeyError("data"), "embedding ended with KeyError; see the log, and start again"),
        (MemoryError(), "embedding ended with MemoryError; see the log, and start again"),
    ],
)
def test_whatever_ends_the_embedding_is_a_problem_on_the_page(error, said, caplog):
    with Session(["toy"], gallery_of(["a.png"]), [Collection(error)], Pictures()) as session:
        while not session.is_full:
            time.sleep(0.01)
    assert session.problem == said
    assert "ended" in caplog.text or said in caplog.text
