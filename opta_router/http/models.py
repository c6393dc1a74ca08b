"""The list of models."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from opta_router.dialects import openai
from opta_router.errors import ModelNotFound
from opta_router.http.auth import authenticate
from opta_router.service import service_of


async def list_models(request: Request) -> Response:
    """``GET /v1/models``."""
    service = service_of(request.scope)
    authenticate(service.config.clients, request.headers)
    body = openai.encode_models(service.config, service.engine.pairs.loaded, service.started_s)
    return Response(body, media_type="application/json")


async def get_model(request: Request) -> Response:
    """``GET /v1/models/{name}``."""
    service = service_of(request.scope)
    authenticate(service.config.clients, request.headers)
    name = request.path_params["name"]
    body = openai.encode_model(name, service.config, service.engine.pairs.loaded, service.started_s)
    if body is None:
        raise ModelNotFound(f"model {name[:100]!a} is not configured", param="model")
    return Response(body, media_type="application/json")
