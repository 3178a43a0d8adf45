"""Who may join the queue, and which images ride together."""

from __future__ import annotations

import threading

import pytest

from mimruntime.serve.admission.queue import AdmissionQueue, Item, QueueFullError


def queued(queue: AdmissionQueue, count: int) -> list[Item]:
    items = queue.admit(count)
    for item in items:
        queue.put(item)
    return items


def take(queue: AdmissionQueue, most: int = 8, patience_s: float = 0, idle_s: float = 0) -> list[Item] | None:
    return queue.take(most, lambda waiting: waiting, patience_s=patience_s, idle_s=idle_s)


def test_images_are_taken_in_order_up_to_the_most() -> None:
    queue = AdmissionQueue(64, 30)
    items = queued(queue, 5)
    assert take(queue, 3) == items[:3]
    assert take(queue, 3) == items[3:]


def test_the_chooser_may_leave_some_for_the_next_batch() -> None:
    queue = AdmissionQueue(64, 30)
    items = queued(queue, 7)
    assert queue.take(8, lambda waiting: 4, patience_s=0, idle_s=0) == items[:4]
    assert queue.queued == 3


def test_a_batch_does_not_wait_for_nobody() -> None:
    queue = AdmissionQueue(64, 30)
    items = queued(queue, 2)
    taken: list[Item] = []
    taker = threading.Thread(target=lambda: taken.extend(take(queue, patience_s=3600) or ()), daemon=True)
    taker.start()
    taker.join(60)
    assert taken == items


def test_a_batch_waits_for_what_is_being_decoded() -> None:
    queue = AdmissionQueue(64, 30)
    first, second = queue.admit(2)
    queue.put(first)
    threading.Timer(0.05, queue.put, [second]).start()
    assert take(queue, patience_s=10) == [first, second]


def test_patience_ends() -> None:
    queue = AdmissionQueue(64, 30)
    first, _ = queue.admit(2)
    queue.put(first)
    assert take(queue, patience_s=0.02) == [first]


def test_cancelled_images_are_dropped_and_leave() -> None:
    queue = AdmissionQueue(64, 30)
    items = queued(queue, 3)
    items[1].future.cancel()
    assert queue.in_flight == 2
    assert take(queue) == [items[0], items[2]]


def test_an_idle_line_gives_an_empty_batch_and_a_closed_one_none() -> None:
    queue = AdmissionQueue(64, 30)
    assert take(queue) == []
    items = queued(queue, 1)
    queue.close()
    assert take(queue) == items
    assert take(queue) is None


@pytest.mark.parametrize("count", [1, 40])
def test_one_image_and_many_are_let_in_and_refused_alike(count: int) -> None:
    queue = AdmissionQueue(3, 30)
    queue.admit(2)
    items = queue.admit(count)
    assert len(items) == count
    with pytest.raises(QueueFullError, match="try again in 1 s"):
        queue.admit(count)
    for item in items:
        item.future.set_exception(ValueError())
    assert len(queue.admit(count)) == count


def test_a_wait_beyond_the_deadline_is_a_full_line_and_says_how_long() -> None:
    queue = AdmissionQueue(1000, deadline_s=5)
    queue.observe(seconds=4, images=2)
    queue.admit(3)
    with pytest.raises(QueueFullError) as refused:
        queue.admit(1)
    assert refused.value.retry_after_s == 6
