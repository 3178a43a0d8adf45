"""Serve an artifact with Ray Serve: replicas that hold one embedder each, requests gathered into batches.

serve run examples.ray_serve:app artifact=artifacts/mae-tiny-topk
curl --data-binary @cat.jpg http://localhost:8000/
"""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.requests import Request

from mimruntime.batch import BatchEmbedder


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1})
class Images:
    """The body of a request is an image file; the answer its vector, or 400 and why there is none."""

    def __init__(self, artifact: str) -> None:
        self._batches = BatchEmbedder(artifact, threads=1, workers=1)
        _ = self._batches.embedder  # before the first request

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def embed(self, files: list[bytes]) -> list[dict[str, Any]]:
        """Embed files that came at the same time."""
        out = self._batches({"image": files})
        rows = zip(out["vector"].tolist(), out["error"], out["embedding_space"], strict=True)
        return [
            {"error": error} if error else {"embedding": vector, "embedding_space": space}
            for vector, error, space in rows
        ]

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        from starlette.responses import JSONResponse  # noqa: PLC0415 - the replica's own

        answer = await self.embed(await request.body())
        return JSONResponse(answer, status_code=400 if "error" in answer else 200)


def app(args: dict[str, str]) -> Any:
    """Build the application: `serve run examples.ray_serve:app artifact=artifacts/mae-tiny-topk`."""
    return Images.bind(args["artifact"])
