"""The served artifacts of a process, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mimruntime.errors import UnknownNameError
from mimruntime.serve.execution.model import Model
from mimruntime.serve.problems import Problem


class Models:
    """The served artifacts of this process, by name."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._by_name = {model.about.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())

    @property
    def spaces(self) -> str:
        """All embedding spaces, comma-separated."""
        return ",".join(sorted({model.about.space for model in self}))

    @property
    def precisions(self) -> str:
        """All precisions that run, comma-separated."""
        return ",".join(sorted({model.about.precision for model in self}))

    def check_live(self) -> None:
        """Raise a 503 if an engine or all decoding threads are stuck: only a restart helps."""
        if any(model.executor.stuck for model in self):
            raise Problem(503, "stuck", "an engine is stuck; restart the service", retry_after_s=1)
        if any(model.decoding_lost for model in self):
            raise Problem(503, "stuck", "all decoding threads are stuck; restart the service", retry_after_s=1)

    def check_ready(self) -> None:
        """Raise the 503 of the first model that is not ready."""
        for model in self:
            model.check_ready()

    def check_room(self) -> None:
        """Raise a 429 if no model has room; called before the body of the request is read."""
        refusal: Problem | None = None
        for model in self:
            try:
                model.check_room()
            except Problem as problem:
                refusal = problem
            else:
                return
        if refusal is not None:
            raise refusal

    def find(self, name: str | None) -> Model:
        """Return the model `name`; None stands for the only one.

        Raises:
            UnknownNameError: no such model.
            Problem: 422, no model is named and there are several.

        """
        if name is None and len(self._by_name) == 1:
            return next(iter(self))
        if name is None:
            known = ", ".join(sorted(self._by_name))
            text = f"several models are served, and the request names none; add ?model=NAME to the URL; known: {known}"
            raise Problem(422, "schema", text, param="model")
        if name not in self._by_name:
            raise UnknownNameError("model", name, self._by_name)
        return self._by_name[name]
