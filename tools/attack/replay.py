"""Reproduce findings: by the request alone or with those before it; then shrink the input."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

from attack.bodies import Target
from attack.cases import Case, chance, hostile_case
from attack.client import Client, Finding
from attack.shrinking import shrink

_MOST_EXPLAINED = 5
_MOST_BEFORE = 4_096
_ALIKE = 20
"""Number of leading characters in which equal findings agree."""
_PATIENCE_S = 2.0
"""Short timeout, because a shrunk request may be incomplete and never be answered."""


def explain(findings: list[Finding], port: int, target: Target, seed: int, hostile: float, folder: Path) -> list[str]:
    """Shrink the first finding of each kind, write its data into `folder`, and return one line per kind."""
    firsts: dict[tuple[str, str], Finding] = {}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for finding in sorted(findings, key=lambda one: one.number):
        key = finding.kind, finding.what[:_ALIKE]
        firsts.setdefault(key, finding)
        counts[key] += 1
    lines = []
    for key, finding in list(firsts.items())[:_MOST_EXPLAINED]:
        how = _explained(finding, port, target, seed, hostile, folder)
        lines.append(f"{counts[key]} of: {finding.kind}: {finding.what} (first: request {finding.number}; {how})")
    return lines


def _explained(finding: Finding, port: int, target: Target, seed: int, hostile: float, folder: Path) -> str:
    def fails(numbers: list[int]) -> bool:
        return bool(Client(port, target, seed, hostile).run(numbers).findings)

    if not fails([finding.number]):
        before = 1
        while not fails(list(range(max(0, finding.number - before), finding.number + 1))):
            before *= 8
            if before > min(_MOST_BEFORE, 8 * max(finding.number, 1)):
                return "not reproduced, neither alone nor after the requests before it"
        stream = list(range(max(0, finding.number - before), finding.number + 1))
        return f"reproduced by requests {shrink(stream, fails, 60)}"
    draw = chance(seed, finding.number)
    if draw.random() >= hostile:
        return "reproduced alone; the request is correct"
    case = hostile_case(draw, target)
    small = _shrunk(case, port, target, finding.what[:_ALIKE])
    path = folder / f"request-{finding.number}.bin"
    path.write_bytes(small.data)
    return (
        f"reproduced alone; {len(small.data):,} of its {len(case.data):,} bytes are enough: {path}, {case.manner.value}"
    )


def _shrunk(case: Case, port: int, target: Target, what: str) -> Case:
    """Return the case with as few bytes as still produce the same finding."""

    def fails(data: bytes) -> bool:
        client = Client(port, target, 0, 1.0, _PATIENCE_S)
        try:
            return (client.ask(dataclasses.replace(case, data=data))[1] or "").startswith(what)
        finally:
            client.close()

    return dataclasses.replace(case, data=shrink(case.data, fails))
