"""Figures of an attack, and the promises they break."""

from __future__ import annotations

from dataclasses import dataclass, field

from attack.client import Tally
from attack.watch import MB, Seen

_MOST_METRICS = 256_000
_LOG_LINES = 100
_LOG_LINES_PER_S = 2
"""Largest rate of log lines: a dozen texts, each at most twice in ten seconds (once, and once with its count)."""
_MOST_GROWTH_MB = 500
"""Largest growth at the peak: 256 MB for decoding, three times 64 MB for bodies, and memory kept by the allocator."""
_MOST_LEFT_MB = 250
_MOST_LEFT_OPEN = 4


@dataclass
class Figures:
    """Measurements in bytes, seconds and counts."""

    requests: int
    hostile: float
    descriptors_start: int
    memory_start: int
    descriptors_end: int = 0
    memory_peak: int = 0
    memory_end: int = 0
    metrics_start: int = 0
    metrics_end: int = 0
    seconds: float = 0.0
    log: str = ""
    tally: Tally = field(default_factory=Tally)
    seen: Seen = field(default_factory=Seen)

    def answered(self, who: str, low: int, high: int) -> int:
        """Return the number of requests of `who` with a status from `low` to `high`."""
        counted = {
            key.removeprefix(f"{who} "): count for key, count in self.tally.counts.items() if key.startswith(who)
        }
        return sum(count for status, count in counted.items() if status.isdigit() and low <= int(status) <= high)


def rows(figures: Figures) -> dict[str, object]:
    """Return the table."""
    done = sum(figures.tally.counts.values())
    hostile = sum(count for key, count in figures.tally.counts.items() if key.startswith("hostile"))
    limits = sum(
        figures.tally.counts[f"{who} {code}"] for who in ("correct", "hostile") for code in (408, 429, 503, 504)
    )
    fives = figures.answered("correct", 500, 599) + figures.answered("hostile", 500, 599)
    late = sum(figures.tally.counts[f"{who} {code}"] for who in ("correct", "hostile") for code in (503, 504))
    seen = figures.seen
    return {
        "requests": f"{done:,} in {figures.seconds:.0f} s, {done / max(figures.seconds, 1e-9):.0f}/s",
        "hostile": f"{hostile:,} ({hostile / max(done, 1):.1%})",
        "answers": dict(sorted(figures.tally.counts.items())),
        "5xx of its own making": fives - late,
        "408, 429, 503, 504 by limits": limits,
        "wrong vectors": sum("vector" in finding.what for finding in figures.tally.findings),
        "findings": len(figures.tally.findings),
        "memory start, peak, end, MB": _three(figures.memory_start, figures.memory_peak, figures.memory_end),
        "descriptors start, most, end": f"{figures.descriptors_start}, {seen.most_descriptors}, {figures.descriptors_end}",
        "/live p50, p99, slowest, ms": f"{seen.live_ms(0.5):.1f}, {seen.live_ms(0.99):.1f}, {seen.live_ms(1):.1f}",
        "/live asked, not answered 200": f"{len(seen.live_s):,}, {len(seen.live_wrong)}",
        "/live over 100 ms": sum(one > 0.1 for one in seen.live_s),
        "/metrics start, end, bytes": f"{figures.metrics_start:,}, {figures.metrics_end:,}",
        "log lines": figures.log.count("\n"),
    }


def _three(*sizes: int) -> str:
    return ", ".join(f"{size / MB:.0f}" for size in sizes)


def broken_promises(figures: Figures) -> list[str]:
    """Return one line per broken promise, not counting findings of single requests."""
    grown, left = (size - figures.memory_start for size in (figures.memory_peak, figures.memory_end))
    lines = figures.log.count("\n")
    done = sum(figures.tally.counts.values())
    checks = {
        f"/live: {figures.seen.live_wrong[:3]}": bool(figures.seen.live_wrong),
        f"memory grew by {grown / MB:.0f} MB, at most {_MOST_GROWTH_MB} are promised": grown > _MOST_GROWTH_MB * MB,
        f"{left / MB:.0f} MB are kept at the end, at most {_MOST_LEFT_MB} are allowed": left > _MOST_LEFT_MB * MB,
        f"descriptors: {figures.descriptors_start} at the start, {figures.descriptors_end} at the end": (
            figures.descriptors_end > figures.descriptors_start + _MOST_LEFT_OPEN
        ),
        f"/metrics has {figures.metrics_end:,} bytes": figures.metrics_end > _MOST_METRICS,
        f"{lines:,} lines of log, the first: {figures.log[:200]}": (
            lines > _LOG_LINES + _LOG_LINES_PER_S * figures.seconds
        ),
        f"a traceback in the log: …{_around(figures.log, 'Traceback')}": "Traceback" in figures.log,
        f"{done:,} of {figures.requests:,} requests were done": done != figures.requests,
        "no correct request was answered": figures.requests > 0 and not figures.tally.counts["correct 200"],
    }
    return [line for line, broken in checks.items() if broken]


def _around(text: str, word: str) -> str:
    at = text.find(word)
    return text[at : at + 2_000] if at >= 0 else ""
