"""Show the progress of an evaluation on a terminal or in a log."""

from __future__ import annotations

import sys
import time

import click

_EVERY_SECONDS = 10.0


class ConsoleProgress:
    """Shows progress on stderr: one updated line on a terminal, or one line every ten seconds in a log."""

    def __init__(self) -> None:
        self._last = 0.0
        self._open = False
        self._begun: tuple[str | None, float, int] = (None, 0.0, 0)

    def say(self, line: str) -> None:
        """Print a line."""
        self._finish()
        click.echo(line, err=True)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show the progress of the step `name`."""
        terminal, left = sys.stderr.isatty(), self._left(name, done, total)
        if not terminal and done < total and time.monotonic() - self._last < _EVERY_SECONDS:
            return
        self._last = time.monotonic()
        line = f"  {name}: {done:,} of {total:,}{left}"
        click.echo(f"\r{line:<78}" if terminal else line, nl=not terminal, err=True)
        self._open = terminal
        if terminal and done == total:
            self._finish()

    def _left(self, name: str, done: int, total: int) -> str:
        """Return the time left, by what `name` took since it was first shown."""
        now = time.monotonic()
        if name != self._begun[0] or done < self._begun[2]:
            self._begun = name, now, done
        _, since, first = self._begun
        if done <= first or done >= total:
            return ""
        seconds = (now - since) * (total - done) / (done - first)
        minutes, seconds = divmod(round(seconds), 60)
        return f", {minutes} min {seconds} s left" if minutes else f", {seconds} s left"

    def _finish(self) -> None:
        if self._open:
            click.echo(err=True)
            self._open = False
