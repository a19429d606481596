"""The HTTP service: `POST /forget`, `POST /predict`, `GET /receipts/{id}`, with OpenAPI pages at `/docs`.

Every request but `/health` and the pages needs the key in the header `X-API-Key`; a wrong one is answered before the
body is read. Requests to forget that arrive together are answered by one update of the model and one wait for the
disk; each is acknowledged with a receipt of its own, and only once the receipt is on the disk.

    401 no or a wrong key    404 no such receipt      409 nothing would be left, or another request of that name
    413 body too large       422 malformed, unknown ids, inputs that do not fit the model
"""

import hashlib
import hmac
import json
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.exceptions import HTTPException as StarletteHTTPException
from torch import Tensor

from applications.unlearning.forgetter import Forgetter, NothingLeftError, UnknownPointError
from applications.unlearning.receipt import Receipt
from recipe import batch as batches
from recipe.batch import LABELS, Batch
from recipe.setting import Setting

OPEN = ("/health", "/docs", "/redoc", "/openapi.json")
SHORTEST_KEY = 16

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        body: bytes.
        points: ids to forget.
        examples: to predict.
    """

    body: int = 2**20
    points: int = 10_000
    examples: int = 1_000


def serve(forgetter: Forgetter, key: str, host: str = "127.0.0.1", port: int = 8000, limits: Limits = Limits()) -> None:
    """Answer requests until interrupted. Raises `ValueError` for a key that is too short."""
    uvicorn.run(app(forgetter, key, limits), host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)


def app(forgetter: Forgetter, key: str, limits: Limits = Limits()) -> App:
    """The service as an ASGI application."""
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"An API key needs at least {SHORTEST_KEY} characters; got {len(key)}. Draw a random one.")
    return _Guard(_routes(forgetter, limits), key, limits.body)


class ForgetRequest(BaseModel):
    """Which points to forget."""

    model_config = ConfigDict(extra="forbid")
    ids: Annotated[list[StrictInt], Field(min_length=1, description="Indices of training points.")]
    request: Annotated[
        str | None, Field(min_length=1, max_length=64, pattern=r"^[\w-]+$", description="A name: asking again is safe.")
    ] = None


class PredictRequest(BaseModel):
    """Inputs of a batch."""

    model_config = ConfigDict(extra="forbid")
    inputs: Annotated[
        list[Any] | dict[str, list[Any]],
        Field(description="Examples (for a model of one input), or a list of examples for every named input."),
    ]


class Prediction(BaseModel):
    """What the model says, one row an example."""

    outputs: list[Any]


def _routes(forgetter: Forgetter, limits: Limits) -> FastAPI:
    api = FastAPI(title="Unlearning", summary="A model that forgets on request.", version="1")
    queue = _Together(forgetter)

    @api.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        # Without the input: NaN and lone surrogates are no JSON, and an answer need not repeat what came.
        said = [{"loc": [str(k) for k in e["loc"]], "type": e["type"], "msg": e["msg"]} for e in error.errors()]
        return Response(json.dumps({"detail": said}), 422, media_type="application/json")

    @api.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        unread = error.status_code == 400  # FastAPI's word for a body that is no JSON: bytes, depth, digits
        return JSONResponse({"detail": error.detail}, 422 if unread else error.status_code, error.headers)

    @api.exception_handler(Exception)
    def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(
            {"detail": f"The service failed at this request ({type(error).__name__}); its log says why."}, 500
        )

    @api.get("/health")
    def health() -> dict[str, str]:
        """Whether the service is up."""
        return {"status": "ok"}

    @api.post("/forget")
    def forget(request: ForgetRequest) -> dict[str, Any]:
        """Forget training points; those that were forgotten before are named in the receipt."""
        if len(request.ids) > limits.points:
            raise HTTPException(422, f"At most {limits.points} ids a request; got {len(request.ids)}.")
        try:
            return queue.forget(request.ids, request.request).json()
        except UnknownPointError as error:
            raise HTTPException(422, str(error)) from None
        except (NothingLeftError, ValueError) as error:
            raise HTTPException(409, str(error)) from None

    @api.post("/predict")
    def predict(request: PredictRequest) -> Prediction:
        """What the model says, without everything that was forgotten."""
        batch = _read(forgetter.setting, request.inputs, limits.examples)
        return Prediction(outputs=forgetter.outputs(batch).tolist())

    @api.get("/receipts/{name}")
    def receipt(name: str) -> dict[str, Any]:
        """The receipt of a request."""
        try:
            return forgetter.receipt(name).json()
        except KeyError:
            raise HTTPException(404, f"There is no receipt {name!r}.") from None

    def described() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = get_openapi(title=api.title, version=api.version, summary=api.summary, routes=api.routes)
            key = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
            schema.setdefault("components", {})["securitySchemes"] = {"key": key}
            schema["security"] = [{"key": []}]
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = described  # type: ignore[method-assign]
    return api


class _Together:
    """Requests that wait for the same update of the model: whoever gets the lock answers all that wait."""

    def __init__(self, forgetter: Forgetter) -> None:
        self._forgetter = forgetter
        self._waiting: list[tuple[list[int], str | None, Future[Receipt]]] = []
        self._guard, self._turn = threading.Lock(), threading.Lock()

    def forget(self, ids: list[int], name: str | None) -> Receipt:
        future: Future[Receipt] = Future()
        with self._guard:
            self._waiting.append((ids, name, future))
        with self._turn:
            if not future.done():
                with self._guard:
                    batch, self._waiting = self._waiting, []
                self._answer(batch)
        return future.result()

    def _answer(self, batch: list[tuple[list[int], str | None, Future[Receipt]]]) -> None:
        try:
            for (_, _, future), receipt in zip(
                batch, self._forgetter.forget_all([(ids, name) for ids, name, _ in batch]), strict=True
            ):
                future.set_result(receipt)
        except Exception as error:
            if len(batch) == 1:
                batch[0][2].set_exception(error)
                return
            for one in batch:  # one bad request does not fail the others
                self._answer([one])


class _Guard:
    """Keys and sizes, before anything else looks at a request."""

    def __init__(self, inner: App, key: str, body: int) -> None:
        self._inner, self._key, self._body = inner, _hashed(key.encode()), body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._inner(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not hmac.compare_digest(_hashed(headers.get(b"x-api-key", b"")), self._key):
            await _answer(send, 401, "Send the API key in the header X-API-Key.")
            return
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._body:
            await _answer(send, 413, f"A request may have {self._body} bytes at most.")
            return
        messages, size = [], 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._body:
                await _answer(send, 413, f"A request may have {self._body} bytes at most.")
                return
            if not message.get("more_body"):
                break
        rest = iter(messages)

        async def again() -> MutableMapping[str, Any]:
            message = next(rest, None)
            return await receive() if message is None else message

        await self._inner(scope, again, send)


def _hashed(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of equal length, so that comparing tells nothing of it


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _read(setting: Setting, inputs: Any, most: int) -> Batch:
    """Inputs as a batch that looks like the universe, with labels that nothing reads. Raises 422."""
    like = batches.take(setting.pool, slice(0, 1))
    try:
        if isinstance(like, tuple):
            given = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
            parts = [_tensor(v, t) for v, t in zip(given, like[:-1], strict=True)]
            batch: Batch = (*parts, like[-1].expand(len(parts[0]), *like[-1].shape[1:]))
        else:
            names = [name for name in like if name != LABELS]
            by_name = inputs if isinstance(inputs, dict) else {names[0]: inputs}
            if set(by_name) != set(names):
                raise ValueError(f"the model has the inputs {', '.join(names)}")
            named = {name: _tensor(by_name[name], like[name]) for name in names}
            count = len(named[names[0]])
            batch = {**named, LABELS: like[LABELS].expand(count, *like[LABELS].shape[1:])}
        if not 1 <= batches.size(batch) <= most:
            raise ValueError(f"expected 1 to {most} examples")
        return batch
    except (ValueError, TypeError, RuntimeError) as error:
        shapes = batches.describe(batches.take(setting.pool, slice(0, 0)))
        raise HTTPException(422, f"The inputs do not look like the model's ({shapes}): {error}.") from None


def _tensor(value: Any, like: Tensor) -> Tensor:
    t = torch.tensor(value, dtype=like.dtype, device=like.device)
    if t.shape[1:] != like.shape[1:] or not t.isfinite().all():
        raise ValueError(f"got the shape {tuple(t.shape)}, or numbers that are not finite")
    return t
