"""The HTTP application: the endpoints of each family under their paths, and how what they refuse is told.

Made by `cli` and tests with `create_app`. Invariant: every path goes through the same gate, and every error
is written in the dialect of its path.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from .admission import Admission
from .anthropic_routes import AnthropicRoutes
from .batch_routes import BatchRoutes
from .batch_runner import BatchRunner
from .batch_store import BatchStore
from .compat_routes import CompatRoutes
from .docs_routes import DocsRoutes
from .envelope import Envelope, error_response, request_id
from .errors import ApiError, internal
from .file_routes import FileRoutes
from .gate import Gate, json_response
from .keys import Keys
from .lifecycle import Lifecycle
from .metrics import render
from .native_routes import NativeRoutes
from .refused_routes import RefusedRoutes
from .response_routes import ResponseRoutes
from .response_store import StoredResponses
from .service import Service
from .settings import Settings
from .stored_files import StoredFiles
from .task_routes import TaskRoutes
from .vllm_routes import VllmRoutes


def create_app(
    service: Service,
    keys: Keys,
    admission: Admission,
    settings: Settings,
    lifecycle: Lifecycle | None = None,
) -> FastAPI:
    """The ASGI application that serves the models of `service` to the holders of `keys`, as far as
    `admission` lets them, until `lifecycle` is stopped."""
    lifecycle = lifecycle or Lifecycle()
    gate = Gate(service, keys, admission, settings)
    files = StoredFiles(keys.store, settings.home / "files", settings.max_stored_bytes)
    batches = BatchStore(keys.store, files)
    runner = BatchRunner(gate, keys, files, batches)

    def lifespan(_app: FastAPI) -> AbstractAsyncContextManager[None]:
        return runner.running()

    app = FastAPI(
        title="qnext",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(Envelope, lifecycle=lifecycle, client_timeout=settings.client_timeout)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.router.routes += [
        Route("/healthz", _health, methods=["GET"]),
        Route("/readyz", _Readiness(lifecycle).page, methods=["GET"]),
        Route("/metrics", _Metrics(service).page, methods=["GET"]),
        *DocsRoutes(settings).routes(),
        *NativeRoutes(gate).routes(),
        *CompatRoutes(gate).routes(),
        *ResponseRoutes(gate, StoredResponses(keys.store, settings.response_days)).routes(),
        *AnthropicRoutes(gate).routes(),
        *VllmRoutes(gate).routes(),
        *RefusedRoutes(gate).routes(),
        *FileRoutes(gate, files, batches).routes(),
        *BatchRoutes(gate, files, batches, runner).routes(),
        *TaskRoutes(gate, batches, runner).routes(),
    ]
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    """ApiErrors of the routes, and the router's own for unknown URLs and methods."""
    path = request.scope["path"]
    if isinstance(error, HTTPException):
        wrong_url = f"Invalid URL ({request.method} {path})"
        known = {
            404: ApiError("url", "url error, please check url！", compat=wrong_url),
            405: ApiError("method", f"{request.method} is not allowed here"),
        }
        response = error_response(known.get(error.status_code, internal()), path, request_id(request))
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(sorted(_methods(request)))
        return response
    assert isinstance(error, ApiError)
    return error_response(error, path, request_id(request))


def _methods(request: Request) -> set[str]:
    """Those that a path has, whichever of its routes."""
    routes = [route for route in request.app.router.routes if isinstance(route, Route)]
    return {
        method
        for each in routes
        if each.matches(request.scope)[0] != Match.NONE
        for method in each.methods or ()
    }


async def _health(request: Request) -> Response:
    """Liveness: the process answers. It does so while it stops too."""
    return json_response({"status": "ok"})


class _Readiness:
    """Whether to send requests here: not while the server stops."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def page(self, request: Request) -> Response:
        if not self._lifecycle.stopping:
            return json_response({"status": "ready"})
        response = json_response({"status": "stopping"})
        response.status_code = 503
        return response


class _Metrics:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def page(self, request: Request) -> Response:
        return Response(render(self._service.stats()), media_type="text/plain; version=0.0.4")
