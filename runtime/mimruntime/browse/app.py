"""The page and its API as one ASGI application: images by number, queries by the digest of their content."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated, Any

import anyio.to_thread
from fastapi import FastAPI, Path, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mimruntime.browse import session as sessions
from mimruntime.browse.guard import GuardMiddleware
from mimruntime.browse.session import Session
from mimruntime.search.index import Neighbours
from mimruntime.serve import problems
from mimruntime.serve.admission.buffer import Buffer
from mimruntime.serve.admission.keys import Keys
from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.admission.middleware import AdmissionMiddleware
from mimruntime.serve.problems import Problem
from mimruntime.serve.settings import Settings

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_THREADS = 8
"""Number of threads that decode and search."""
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
"""Cache header of pictures, whose address contains the version of the images."""

Number = Annotated[int, Path(ge=0, description="Of an image.")]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="Of a query's content.")]
Version = Annotated[str | None, Query(description="Of the images that are meant.")]
Count = Annotated[int, Query(ge=1, le=200)]


def create_app(session: Session, settings: Settings, *, hosts: tuple[str, ...], key: str | None) -> FastAPI:
    """Return the application.

    Args:
        session: an open session.
        settings: the service's settings; its request limits apply here too.
        hosts: see `GuardMiddleware`.
        key: see `GuardMiddleware`.

    """
    lifecycle = Lifecycle(settings.grace_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lifecycle.install()
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_page(app)
    _add_pictures(app, session)
    _add_answers(app, session)
    problems.install(app)
    app.add_middleware(
        AdmissionMiddleware,
        settings=settings,
        keys=Keys((), None),
        lifecycle=lifecycle,
        buffer=Buffer(settings.max_buffered),
        check_room=lambda: None,
    )
    app.add_middleware(GuardMiddleware, hosts=hosts, key=key)
    return app


def _add_page(app: FastAPI) -> None:
    """Serve the files of the page, each read once; a request's path is never used on disk."""
    page = {
        file.name: (file.read_bytes(), _TYPES["." + file.name.rpartition(".")[2]])
        for file in files("mimruntime.browse").joinpath("page").iterdir()
    }

    @app.get("/")
    async def index() -> Response:
        content, kind = page["index.html"]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        if name not in page:
            raise HTTPException(404, "no such part of the page")
        content, kind = page[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def _add_pictures(app: FastAPI, session: Session) -> None:
    @app.get("/thumbnails/{number}")
    def thumbnail(number: Number, v: Version = None) -> Response:
        _check(session, number, v)
        return Response(session.pictures.thumbnail(number), media_type="image/jpeg", headers=_FOR_EVER)

    @app.get("/pictures/{number}")
    def picture(number: Number, v: Version = None) -> Response:
        _check(session, number, v)
        return Response(session.pictures.picture(number), media_type="image/jpeg", headers=_FOR_EVER)

    @app.get("/queries/{key}")
    def query_picture(key: Digest) -> Response:
        return Response(session.query(key).picture, media_type="image/jpeg", headers=_FOR_EVER)


def _add_answers(app: FastAPI, session: Session) -> None:
    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return _state(session)

    @app.get("/api/images")
    def images(start: Annotated[int, Query(ge=0)] = 0, count: Count = 100) -> dict[str, Any]:
        return {"names": session.gallery.names[start : start + count]}

    @app.get("/api/find")
    def find(name: str) -> dict[str, int]:
        if name not in session.numbers:
            raise Problem(404, "not_found", f"no image of this gallery is called {name}")
        return {"number": session.numbers[name]}

    @app.get("/api/neighbours/{number}")
    def neighbours(number: Number, count: Count = 24) -> dict[str, Any]:
        _check(session, number)
        return _answer(session, number, count)

    @app.post("/api/queries")
    async def drop(request: Request, count: Count = 24) -> dict[str, Any]:
        content = await request.body()
        query = await anyio.to_thread.run_sync(session.add_query, content)
        return await anyio.to_thread.run_sync(_answer, session, query, count)

    @app.get("/api/queries/{key}")
    def again(key: Digest, count: Count = 24) -> dict[str, Any]:
        return _answer(session, session.query(key), count)

    @app.get("/api/heatmaps/{artifact}/{number}")
    def heatmap(artifact: Number, number: Number) -> dict[str, Any] | None:
        _check(session, number)
        return _heatmap(session, artifact, number)

    @app.get("/api/heatmaps/{artifact}/queries/{key}")
    def query_heatmap(artifact: Number, key: Digest) -> dict[str, Any] | None:
        return _heatmap(session, artifact, session.query(key))


def _state(session: Session) -> dict[str, Any]:
    return {
        "images": len(session.gallery),
        "version": session.version,
        "full": session.is_full,
        "problem": session.problem,
        "classes": [{"name": name, "first": first, "count": count} for name, first, count in session.classes],
        "artifacts": [
            {
                "name": name,
                "space": each.space,
                "dim": each.index.dim,
                "precision": each.about.precision,
                "engine": each.about.engine,
                "index": each.index.kind,
                "embedded": len(each.index),
                "failed": len(each.errors),
                "selection": each.encoder.has_selection,
                "right": right,
                "judged": judged,
            }
            for name, each, (right, judged) in zip(session.names, session.collections, session.right, strict=True)
        ],
    }


def _answer(session: Session, of: int | sessions.Query, count: int) -> dict[str, Any]:
    """Return a query and its neighbours by every artifact."""
    labels = session.gallery.labels
    if isinstance(of, sessions.Query):
        said: dict[str, Any] = {"key": of.key, "name": None, "label": None}
    else:
        said = {"number": of, "name": session.gallery.names[of], "label": labels[of] if labels else None}
    found = session.neighbours(of, count)
    return {**said, "columns": [_column(session, at, of, each) for at, each in enumerate(found)]}


def _column(session: Session, artifact: int, of: int | sessions.Query, found: Neighbours | None) -> dict[str, Any]:
    collection, gallery = session.collections[artifact], session.gallery
    if found is None:
        reason = gallery.without_place(of, collection.errors.get(of, "")) if isinstance(of, int) else ""
        return {"neighbours": [], "predicted": None, "error": reason or "not embedded yet"}
    if not len(found.numbers):
        return {"neighbours": [], "predicted": None, "error": "no other image is embedded"}
    rows = [
        {
            "number": int(number),
            "name": gallery.names[number],
            "label": gallery.labels[number] if gallery.labels else None,
            "cosine": round(float(cosine), 4),
        }
        for number, cosine in zip(found.numbers, found.cosines, strict=True)
    ]
    return {"neighbours": rows, "predicted": collection.predict(found), "error": None}


def _heatmap(session: Session, artifact: int, of: int | sessions.Query) -> dict[str, Any] | None:
    if artifact >= len(session.collections):
        raise Problem(404, "not_found", f"there are {len(session.collections)} artifacts")
    found = session.heatmap(artifact, of)
    if found is None:
        return None
    rows, columns = found.colours.shape[:2]
    return {"box": found.box, "rows": rows, "columns": columns, "rgba": found.colours.ravel().tolist()}


def _check(session: Session, number: int, version: str | None = None) -> None:
    if version not in {None, session.version}:  # else the browser would keep another image under this address
        raise Problem(409, "gallery_changed", "the images have changed since this page was opened; load it again")
    if number >= len(session.gallery):
        raise Problem(404, "not_found", f"there are {len(session.gallery)} images, from number 0 on")
