"""Click commands whose help groups options under titles and ends with examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., object])
_Rows = list[tuple[str, str]]
WIDTH = 100
"""Maximal width of the help in columns."""


class Option(click.Option):
    """An option under a title of the help, without its range; an error about the value shows the range."""

    title = "Options"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Write a switch as `--[no-]name`."""
        record = super().get_help_record(ctx)
        if record is None or not self.secondary_opts:
            return record
        return f"--[no-]{self.opts[0].removeprefix('--')}", record[1]

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Remove the range."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


option = functools.partial(click.option, cls=Option)
"""As `click.option`."""


class Command(click.Command):
    """A command of `mimexport` with the section it is listed in and example command lines."""

    def __init__(self, *arguments: Any, section: str, examples: Iterable[str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options grouped by title."""
        titled: dict[str, _Rows] = {}
        for parameter in self.params:
            if isinstance(parameter, Option) and (row := parameter.get_help_record(ctx)):
                titled.setdefault(parameter.title, []).append(row)
        _write_titled(formatter, titled)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples."""
        _write_titled(formatter, {"Examples": [(example, "") for example in self.examples]})


class Program(click.Group):
    """The group of all commands, listed by section in the given order."""

    examples = ("mimexport build --model mae-tiny", "mimexport embed artifacts/mae-tiny-topk photos/ --out vectors.npz")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write one line per command."""
        titled: dict[str, _Rows] = {}
        for name, command in self.commands.items():
            section = command.section if isinstance(command, Command) else "Commands"
            titled.setdefault(section, []).append((name, command.get_short_help_str(WIDTH)))
        _write_titled(formatter, titled)

    format_epilog = Command.format_epilog


def group(title: str, *options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Return a decorator that adds `options` to a command under `title`."""

    def add(function: _Function) -> _Function:
        for each in reversed(options):
            function = each(function)
        for parameter in function.__click_params__[-len(options) :]:  # type: ignore[attr-defined]
            parameter.title = title
        return function

    return add


def gather(load: Callable[[], type[Any]], name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that passes options to a command as one record.

    Options with the name of a field are passed to the record; options that are not given keep the record's default.

    Args:
        load: returns the dataclass; called when the command runs, because importing it may be slow.
        name: name of the command's parameter for the record.

    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **given: Any) -> Any:
            kind = load()
            own = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
            record = kind(**{key: value for key, value in own.items() if value is not None and value != ()})
            return function(*arguments, **{name: record}, **given)

        return call

    return wrap


def _write_titled(formatter: click.HelpFormatter, titled: Mapping[str, _Rows]) -> None:
    """Write rows under their titles with aligned columns, without blank lines to save space."""
    width = max((len(term) for rows in titled.values() for term, _ in rows), default=0)
    formatter.write_paragraph()
    for title, rows in titled.items():
        formatter.write_heading(title)
        with formatter.indentation():
            formatter.write_dl([(term.ljust(width) if text else term, text) for term, text in rows], col_max=width)
