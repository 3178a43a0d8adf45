"""`/docs`: the schema as a Swagger UI page to try requests; all of its files come from this service."""

from __future__ import annotations

import gzip
from importlib.resources import files

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>mimexport: HTTP API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_HEADERS = {
    # Swagger UI sets styles in attributes and loads its icons from data URIs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
        " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_FILES = {
    "swagger-ui.css": ("swagger-ui/swagger-ui.css.gz", "text/css"),
    "swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js.gz", "text/javascript"),
    "start.js": ("start.js", "text/javascript"),
}
PATHS = frozenset({"/docs", *(f"/docs/{name}" for name in _FILES)})
"""Headers of the page and its files."""


def router() -> APIRouter:
    """Return the routes; they are not part of the schema."""
    routes = APIRouter(include_in_schema=False)
    assets = files("mimruntime.serve") / "assets"

    @routes.get("/docs")
    async def page() -> Response:
        """Give the page."""
        return HTMLResponse(_PAGE, headers=_HEADERS)

    @routes.get("/docs/{name}")
    async def file(request: Request, name: str) -> Response:
        """Return a file of the page."""
        if name not in _FILES:
            raise HTTPException(404)
        path, kind = _FILES[name]
        content = (assets / path).read_bytes()
        headers = {**_HEADERS, "Cache-Control": "max-age=86400", "Vary": "Accept-Encoding"}
        if path.endswith(".gz"):
            if "gzip" in request.headers.get("Accept-Encoding", ""):
                headers["Content-Encoding"] = "gzip"
            else:
                content = gzip.decompress(content)
        return Response(content, media_type=kind, headers=headers)

    return routes
