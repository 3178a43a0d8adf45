"""One client: it sends correct requests on a persistent connection and hostile ones between them, and counts results."""

from __future__ import annotations

import collections
import contextlib
import http.client
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from attack.bodies import HEADER_LENGTH, Message, Target
from attack.cases import Case, Manner, chance, hostile_case
from attack.correct import correct_message, wrong_vectors

_MOST_HELD = 12
_MOST_OF_A_REFUSAL = 65_536
_LIMITS = frozenset({408, 429, 503, 504})
"""Statuses of a service that is full or timed out."""


@dataclass(frozen=True)
class Finding:
    """A broken promise and the number of the request."""

    number: int
    kind: str
    what: str


@dataclass
class Tally:
    """Counts of results by "correct 200", "hostile 413" …, and findings."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the counts of another client."""
        self.counts.update(other.counts)
        self.findings += other.findings


class Client:
    """Sends requests by number, one after the other.

    Args:
        port: port of the service on loopback.
        target: the model and its images.
        seed: seed; with its number it determines a request.
        hostile: share of hostile requests, 0 to 1.
        patience_s: seconds to wait for an answer; after that the service counts as hung.

    """

    def __init__(self, port: int, target: Target, seed: int, hostile: float, patience_s: float = 60) -> None:
        self._address = ("127.0.0.1", port)
        self._patience_s = patience_s
        self._target, self._seed, self._share = target, seed, hostile
        self._kept = http.client.HTTPConnection(*self._address, timeout=self._patience_s)
        self._held: collections.deque[tuple[socket.socket, bytes]] = collections.deque()

    def run(self, numbers: Iterable[int]) -> Tally:
        """Send these requests and close all connections."""
        tally = Tally()
        try:
            for number in numbers:
                outcome, finding = self._do(number)
                tally.counts[outcome] += 1
                tally.findings += [finding] if finding else []
        finally:
            self.close()
        return tally

    def close(self) -> None:
        """Close all connections."""
        self._kept.close()
        while self._held:
            self._held.popleft()[0].close()

    def ask(self, case: Case) -> tuple[str, str | None]:
        """Send one hostile case; return its result and the broken promise, if any."""
        if case.manner is Manner.FLOOD:
            self._flood(len(case.data))
            return "sent", None
        try:
            connection = socket.create_connection(self._address, timeout=self._patience_s)
        except OSError as error:
            return "not connected", f"no connection: {error}"
        if case.manner in {Manner.HOLD, Manner.DRIP}:
            self._hold(connection, case)
            return "sent", None
        with connection:
            with contextlib.suppress(OSError):  # the service may close it early
                connection.sendall(case.data)
                if case.manner is Manner.HALF_CLOSE:
                    connection.shutdown(socket.SHUT_WR)
            if case.manner is Manner.RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "sent", None
            return _read_refusal(connection, case.method)

    def _do(self, number: int) -> tuple[str, Finding | None]:
        self._drip()
        draw = chance(self._seed, number)
        if draw.random() < self._share:
            case = hostile_case(draw, self._target)
            who, kind, (outcome, wrong) = "hostile", case.kind, self.ask(case)
        else:
            message, chosen = correct_message(draw, self._target)
            who, kind, (outcome, wrong) = "correct", message.kind, self._embed(message, chosen)
        return f"{who} {outcome}", Finding(number, f"{who}, {kind}", wrong) if wrong else None

    def _embed(self, message: Message, chosen: list[int]) -> tuple[str, str | None]:
        """Request vectors of images and compare them; reopen a closed persistent connection once."""
        answer = None
        for fresh in (self._kept.sock is None, True):
            try:
                self._kept.request("POST", message.path, message.body, message.headers)
                answer = self._kept.getresponse()
                body = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._kept.close()
                if fresh or isinstance(error, TimeoutError):
                    return "lost", f"no answer: {error!r}"
        assert answer is not None  # noqa: S101 - the loop ends with an answer or returns
        if answer.status in _LIMITS:
            return f"{answer.status}", _without_retry(answer.status, answer.headers)
        if answer.status != 200:
            return f"{answer.status}", f"{answer.status}: {body[:300]!r}"
        expected = [self._target.vectors[index] for index in chosen]
        return "200", wrong_vectors(body, answer.headers.get(HEADER_LENGTH), expected)

    def _flood(self, count: int) -> None:
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            for _ in range(count):
                opened.enter_context(socket.create_connection(self._address, timeout=self._patience_s))

    def _hold(self, connection: socket.socket, case: Case) -> None:
        """Keep a connection open until newer ones replace it."""
        connection.setblocking(False)
        rest = case.data
        if case.manner is Manner.HOLD:
            with contextlib.suppress(OSError):
                connection.send(case.data)
            rest = b""
        self._held.append((connection, rest))
        if len(self._held) > _MOST_HELD:
            self._held.popleft()[0].close()

    def _drip(self) -> None:
        """Send one more byte on each connection that has data left."""
        for index, (connection, rest) in enumerate(self._held):
            if rest:
                with contextlib.suppress(OSError):
                    connection.send(rest[:1])
                self._held[index] = (connection, rest[1:])


def _read_refusal(connection: socket.socket, method: str) -> tuple[str, str | None]:
    """Read the first answer; a 5xx without reason, an endless body or a hung connection is a broken promise."""
    answer = http.client.HTTPResponse(connection, method=method)
    try:
        answer.begin()
        body = answer.read()
    except TimeoutError:
        return "hung", "neither an answer nor an end"
    except (OSError, http.client.HTTPException, ValueError):
        return "closed", None
    if answer.status >= 500 and answer.status not in _LIMITS:
        return f"{answer.status}", f"{answer.status}: {body[:300]!r}"
    if answer.status >= 400 and len(body) > _MOST_OF_A_REFUSAL:
        return f"{answer.status}", f"a refusal of {len(body):,} bytes"
    return f"{answer.status}", _without_retry(answer.status, answer.headers)


def _without_retry(status: int, headers: http.client.HTTPMessage) -> str | None:
    """Check that a refusal because of load has Retry-After, and one because of a timeout has not."""
    return f"{status} without Retry-After" if status in {429, 503} and "Retry-After" not in headers else None
