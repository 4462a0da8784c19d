"""The endpoints: from a request to a conversation of the Runtime and back.

Knows routes and which fields go where. Makes no decision about models or memory.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgekv import AsyncConversation, AsyncRuntime, EdgeKVError
from edgekv.server import embedding
from edgekv.server.answer import Answer
from edgekv.server.asked import ChatRequest, Common, TextRequest, parse
from edgekv.server.body import read_body
from edgekv.server.dialogues import Dialogues, Lent
from edgekv.server.embedding import EmbeddingRequest
from edgekv.server.errors import Refusal, refusal_of
from edgekv.server.guard import Guard
from edgekv.server.metrics import CONTENT_TYPE, Tally
from edgekv.server.shapes import ChatShape, TextShape

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from edgekv import CancelToken, Result, Runtime
    from edgekv.server.answer import EventSource

MOST_BODY_BYTES = 16 << 20


class Service:
    """The endpoints over one Runtime, which it does not close."""

    def __init__(self, runtime: Runtime, *, most_body_bytes: int = MOST_BODY_BYTES) -> None:
        self.tally = Tally()
        self._runtime = runtime
        self._async = AsyncRuntime.over(runtime)
        self._most_body_bytes = most_body_bytes
        self._dialogues = Dialogues(runtime)
        self._model = runtime.stats().model
        given = runtime.config.model
        self._aliases = {self._model, *((given, Path(given).name, Path(given).stem) if given else ())}
        self._created = int(time.time())
        self._forgetting: asyncio.Task[None] | None = None

    async def chat(self, request: Request) -> ASGIApp:
        """POST /v1/chat/completions."""
        asked = parse(await read_body(request, self._most_body_bytes), ChatRequest)
        self._check_model(asked)
        messages = asked.pairs()
        system = "\n\n".join(text for role, text in messages if role in ("system", "developer")) or None
        lent: Lent | None = None

        async def begin(token: CancelToken) -> EventSource:
            nonlocal lent
            if asked.conversation is None:
                lent = await asyncio.to_thread(self._dialogues.lend, messages, system)
            else:
                kept = await asyncio.to_thread(self._runtime.conversation, asked.conversation, system=system)
                lent = Lent(kept, is_pooled=False)
            return AsyncConversation(lent.conversation).stream_reply(
                messages, cancel=token, **asked.options()
            )

        async def done(result: Result | None) -> None:
            if lent is not None and lent.is_pooled:
                texts = None if result is None else [*(text for _, text in messages), result.text]
                self._dialogues.give_back(lent, texts)
                self._forget_old()

        return self._answer("chat", asked, begin, done)

    async def complete(self, request: Request) -> ASGIApp:
        """POST /v1/completions."""
        asked = parse(await read_body(request, self._most_body_bytes), TextRequest)
        self._check_model(asked)

        async def begin(token: CancelToken) -> EventSource:
            return self._async.stream_text(asked.text, cancel=token, **asked.options())

        async def done(_result: Result | None) -> None:
            pass

        return self._answer("completions", asked, begin, done)

    async def embed(self, request: Request) -> Response:
        """POST /v1/embeddings: static vectors of the model's tokens."""
        asked = parse(await read_body(request, self._most_body_bytes), EmbeddingRequest)
        self._check_name(asked.model)
        body = await asyncio.to_thread(embedding.answer, self._runtime, asked, self._model)
        self.tally.request("embeddings", 200)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._check_name(request.path_params["name"])
        return JSONResponse(self._model_object())

    async def health(self, _request: Request) -> Response:
        """GET /health: 200 while the Runtime works."""
        self._runtime.stats()  # raises Closed
        return JSONResponse({"status": "ok"})

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        return PlainTextResponse(self.tally.text(self._runtime.stats()), media_type=CONTENT_TYPE)

    def app(self, *, token: str | None) -> Starlette:
        """The ASGI application; `token=None` asks for none."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
            ],
            middleware=[Middleware(Guard, token=token, count=self.tally.request)],
            exception_handlers=dict.fromkeys((HTTPException, Refusal, EdgeKVError, Exception), self._refused),
        )

    def _answer(
        self,
        endpoint: str,
        asked: Common,
        begin: Callable[[CancelToken], Awaitable[EventSource]],
        done: Callable[[Result | None], Awaitable[None]],
    ) -> Answer:
        with_usage = asked.stream and asked.stream_options is not None and asked.stream_options.include_usage
        shape = ChatShape if endpoint == "chat" else TextShape
        return Answer(
            shape(self._model, with_usage=with_usage),
            begin,
            done,
            lambda status, result: self.tally.request(endpoint, status, result),
            streams=asked.stream,
            with_usage=with_usage,
        )

    def _forget_old(self) -> None:
        """Not in the request: what waits for the engine would hold up the client's next one."""
        if self._forgetting is None and self._dialogues.has_old():
            self._forgetting = asyncio.create_task(asyncio.to_thread(self._dialogues.forget_old))
            self._forgetting.add_done_callback(self._forgot)

    def _forgot(self, task: asyncio.Task[None]) -> None:
        self._forgetting = None
        if task.cancelled():
            return
        if isinstance(error := task.exception(), Exception):
            refusal_of(error)  # logs what is unexpected; that the Runtime is closed is not
        else:
            self._forget_old()  # one that was given back after the thread's last look, before this call

    def _check_model(self, asked: Common) -> None:
        if asked.stream_options is not None and not asked.stream:
            raise Refusal(400, "stream_options are for streams", code="invalid_value", param="stream_options")
        self._check_name(asked.model)

    def _check_name(self, name: str) -> None:
        if name not in self._aliases:
            raise Refusal(
                404,
                f"the model here is {self._model!r}, not {name[:200]!r}",
                code="model_not_found",
                param="model",
            )

    def _model_object(self) -> dict[str, object]:
        return {"id": self._model, "object": "model", "created": self._created, "owned_by": "edgekv"}

    async def _refused(self, _request: Request, error: Exception) -> Response:
        refusal = _of_http(error) if isinstance(error, HTTPException) else refusal_of(error)
        self.tally.request("refused", refusal.status)
        return refusal.response()


def _of_http(error: HTTPException) -> Refusal:
    """What Starlette refuses itself: unknown paths and methods."""
    what = {404: "there is no such endpoint", 405: "this endpoint takes another method"}
    message = what.get(error.status_code, "the request cannot be understood")
    return Refusal(error.status_code, message, code="unknown_url", headers=error.headers)
