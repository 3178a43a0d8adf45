"""Who may join the line, and which images ride together."""

from __future__ import annotations

import threading

import pytest

from mimruntime.serve.line import Item, Line, LineFullError


def queued(line: Line, count: int) -> list[Item]:
    items = line.admit(count)
    for item in items:
        line.put(item)
    return items


def take(line: Line, most: int = 8, patience_s: float = 0, idle_s: float = 0) -> list[Item] | None:
    return line.take(most, lambda waiting: waiting, patience_s=patience_s, idle_s=idle_s)


def test_images_are_taken_in_order_up_to_the_most() -> None:
    line = Line(64, 30)
    items = queued(line, 5)
    assert take(line, 3) == items[:3]
    assert take(line, 3) == items[3:]


def test_the_chooser_may_leave_some_for_the_next_batch() -> None:
    line = Line(64, 30)
    items = queued(line, 7)
    assert line.take(8, lambda waiting: 4, patience_s=0, idle_s=0) == items[:4]
    assert line.queued == 3


def test_a_batch_does_not_wait_for_nobody() -> None:
    line = Line(64, 30)
    items = queued(line, 2)
    taken: list[Item] = []
    taker = threading.Thread(target=lambda: taken.extend(take(line, patience_s=3600) or ()), daemon=True)
    taker.start()
    taker.join(60)
    assert taken == items


def test_a_batch_waits_for_what_is_being_decoded() -> None:
    line = Line(64, 30)
    first, second = line.admit(2)
    line.put(first)
    threading.Timer(0.05, line.put, [second]).start()
    assert take(line, patience_s=10) == [first, second]


def test_patience_ends() -> None:
    line = Line(64, 30)
    first, _ = line.admit(2)
    line.put(first)
    assert take(line, patience_s=0.02) == [first]


def test_cancelled_images_are_dropped_and_leave() -> None:
    line = Line(64, 30)
    items = queued(line, 3)
    items[1].future.cancel()
    assert line.in_flight == 2
    assert take(line) == [items[0], items[2]]


def test_an_idle_line_gives_an_empty_batch_and_a_closed_one_none() -> None:
    line = Line(64, 30)
    assert take(line) == []
    items = queued(line, 1)
    line.close()
    assert take(line) == items
    assert take(line) is None


@pytest.mark.parametrize("count", [1, 40])
def test_one_image_and_many_are_let_in_and_refused_alike(count: int) -> None:
    line = Line(3, 30)
    line.admit(2)
    items = line.admit(count)
    assert len(items) == count
    with pytest.raises(LineFullError, match="try again in 1 s"):
        line.admit(count)
    for item in items:
        item.future.set_exception(ValueError())
    assert len(line.admit(count)) == count


def test_a_wait_beyond_the_deadline_is_a_full_line_and_says_how_long() -> None:
    line = Line(1000, deadline_s=5)
    line.observe(seconds=4, images=2)
    line.admit(3)
    with pytest.raises(LineFullError) as refused:
        line.admit(1)
    assert refused.value.retry_after_s == 6
