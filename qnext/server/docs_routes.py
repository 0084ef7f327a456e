"""The OpenAPI documents and the page that shows them, without a key.

Mounted by `app`. Invariants: the page and its files come from this server alone, and the page may load
nothing from elsewhere: its Content-Security-Policy says so to the browser.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import ApiError
from .openapi.document import document
from .settings import Settings
from .sse import dump

_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
        " font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>qnext</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# No validator: that would be a server elsewhere. The key stays in the browser.
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  persistAuthorization: true,
  requestSnippetsEnabled: true,
  validatorUrl: null,
});
"""
_KINDS = {"js": "text/javascript", "css": "text/css"}


class DocsRoutes:
    """The documents for a server of these settings."""

    def __init__(self, settings: Settings) -> None:
        self._old = dump(document("3.1", settings))
        self._new = dump(document("3.2", settings))
        # Swagger UI, as this package carries it for servers that no browser may leave.
        shipped = files("fastapi_offline") / "static"
        self._files = {
            "start.js": _START.encode(),
            **{name: (shipped / name).read_bytes() for name in ("swagger-ui.css", "swagger-ui-bundle.js")},
        }

    def routes(self) -> list[Route]:
        return [
            Route("/openapi.json", self.old, methods=["GET"]),
            Route("/openapi-3.2.json", self.new, methods=["GET"]),
            Route("/docs", self.page, methods=["GET"]),
            Route("/docs/{file}", self.file, methods=["GET"]),
        ]

    async def old(self, request: Request) -> Response:
        return Response(self._old, media_type="application/json")

    async def new(self, request: Request) -> Response:
        return Response(self._new, media_type="application/json")

    async def page(self, request: Request) -> Response:
        return Response(_PAGE, headers=_POLICY, media_type="text/html")

    async def file(self, request: Request) -> Response:
        name = request.path_params["file"]
        content = self._files.get(name)
        if content is None:
            raise ApiError("url", "url error, please check url！", compat=f"The page has no file {name}")
        kind = _KINDS[name.rpartition(".")[2]]
        return Response(content, headers={"Cache-Control": "max-age=3600"}, media_type=kind)
