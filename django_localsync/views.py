"""The plain HTTP endpoints: uploads, write checkpoints and tokens.

Errors have PowerSync's shape (protocol/errors.py), whatever raised them, and never show internals. Views that take a
bearer token answer any origin; the token view, which trusts a session, answers none but its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import orjson
from django.contrib.auth import SESSION_KEY
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.utils import translation
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions as drf
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle, UserRateThrottle
from rest_framework.views import APIView

from .authentication import SubjectAuthentication, TokenAuthentication
from .conf import get_settings
from .counters import counters
from .exceptions import AuthError, RequestError
from .protocol.crud import encode_answer, parse_upload
from .protocol.errors import (
    CORS_HEADERS,
    CORS_PREFLIGHT_HEADERS,
    NO_SUCH_PATH,
    TOO_MANY_REQUESTS,
    UNSUPPORTED_MEDIA_TYPE,
    encode_error,
)
from .protocol.receipts import check_client_id, parse_checkpoint_request
from .revocation import check_not_revoked
from .storage.write_checkpoints import request_write_checkpoint
from .tokens import Token, make_token
from .upload import UploadHandler, get_handler

logger = logging.getLogger(__name__)

MAX_CHECKPOINT_REQUEST_BYTES = 10_000


class ProtocolView(APIView):
    """A view whose answers and errors are the protocol's, whatever the project set for its own API.

    It runs outside ATOMIC_REQUESTS: what it answers must be committed.
    """

    renderer_classes = (JSONRenderer,)
    permission_classes: Sequence[type[BasePermission]] = (IsAuthenticated,)
    versioning_class = None

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """The view function."""
        view = super().as_view(**initkwargs)
        for alias in connections:
            view = transaction.non_atomic_requests(using=alias)(view)
        return view

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Answer in JSON whatever the client accepts: there is nothing else."""
        return super().perform_content_negotiation(request, force=True)

    def get_exception_handler(self) -> Callable[[Exception, dict[str, Any]], HttpResponse]:
        """What makes an error's answer."""
        return respond_to_error


class BearerView(ProtocolView):
    """A view for devices: a bearer token is the only way in, so any origin may call it."""

    authentication_classes = (SubjectAuthentication,)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer preflight requests, which carry no token, and let browsers read every answer."""
        if request.method == "OPTIONS":
            response: HttpResponseBase = HttpResponse(status=204, headers=CORS_PREFLIGHT_HEADERS)
        else:
            response = super().dispatch(request, *args, **kwargs)
        for name, value in CORS_HEADERS.items():
            response.headers[name] = value
        return response


class UploadThrottle(UserRateThrottle):
    """How often a user may upload; DRF's DEFAULT_THROTTLE_RATES["localsync_upload"] says otherwise.

    A device that is refused waits, and sends the same again.
    """

    scope = "localsync_upload"

    def get_rate(self) -> str:
        """Twice what a device sends in a hurry, for each of a few devices at a time. Memory is a number a request."""
        rate: str | None = self.THROTTLE_RATES.get(self.scope)
        return rate or "100/second"


class UploadView(BearerView):
    """`POST upload`: applies a device's local transactions by an UploadHandler.

    The handler is `handler_class` of a subclass, or the setting UPLOAD_HANDLER. Authentication, permissions and
    throttling are DRF's attributes; whom a token's subject means is TokenAuthentication's business.
    """

    authentication_classes = (TokenAuthentication,)
    throttle_classes: Sequence[type[BaseThrottle]] = (UploadThrottle,)
    handler_class: type[UploadHandler] | None = None

    def post(self, request: Request) -> HttpResponse:
        """Apply an upload; what is said of it is in the language that the device accepts."""
        upload = parse_upload(read_json_body(request, get_settings().max_upload_bytes))
        check_not_revoked(token_of(request), upload.client_id)
        with translation.override(translation.get_language_from_request(request._request)):
            results = self.get_handler().handle(upload, request.user, user_key(request))
        counters.count_uploads(results)
        return _json(encode_answer(results))

    def get_handler(self) -> UploadHandler:
        """The handler of this request."""
        if self.handler_class is not None:
            return self.handler_class()
        return get_handler()


class WriteCheckpointView(BearerView):
    """`GET write-checkpoint2.json`: a receipt for everything that this client has uploaded until now."""

    def get(self, request: Request) -> HttpResponse:
        """Give the next number."""
        client_id = request.GET.get("client_id", "")
        check_client_id(client_id, "the query is not valid")
        check_not_revoked(token_of(request), client_id)
        number = request_write_checkpoint(user_key(request), client_id)
        return _json(orjson.dumps({"data": {"write_checkpoint": str(number)}}))


class CheckpointRequestView(BearerView):
    """`POST sync/checkpoint-request`: the same receipt, under a number of the client's own."""

    def post(self, request: Request) -> HttpResponse:
        """Store the number, unless the client has given a higher one; answer with the higher of the two."""
        client_id, wanted = parse_checkpoint_request(read_json_body(request, MAX_CHECKPOINT_REQUEST_BYTES))
        check_not_revoked(token_of(request), client_id)
        number = request_write_checkpoint(user_key(request), client_id, number=wanted)
        return _json(orjson.dumps({"data": {"checkpoint_request_id": str(number)}}))


class IsActive(IsAuthenticated):
    """Only users who are logged in and active."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Whether the user is active; authentication classes of a project may not have looked."""
        return super().has_permission(request, view) and bool(request.user.is_active)


class TokenThrottle(UserRateThrottle):
    """How often a user may get a token; DRF's DEFAULT_THROTTLE_RATES["localsync_token"] says otherwise."""

    scope = "localsync_token"

    def get_rate(self) -> str:
        """A token lasts for minutes, and each of a user's devices wants one."""
        rate: str | None = self.THROTTLE_RATES.get(self.scope)
        return rate or "60/min"


class TokenView(ProtocolView):
    """`POST token`: a token for the logged-in user's device, by whatever authentication the project's API uses.

    With a session login DRF asks for the CSRF token. No other origin may read the answer.
    """

    permission_classes = (IsActive,)
    throttle_classes = (TokenThrottle,)

    def post(self, request: Request) -> HttpResponse:
        """Make a token, tied to the session if there is one."""
        user: Any = request.user
        session: Any = getattr(request, "session", None)
        by_session = session is not None and session.get(SESSION_KEY) == str(user.pk)
        token = make_token(user, session=session if by_session else None)
        answer = {"token": token, "expires_in": get_settings().token_lifetime_s, "user_id": str(user.pk)}
        response = _json(orjson.dumps({"data": answer}))
        response.headers["Cache-Control"] = "no-store"
        return response


class NeedsAsgiView(BearerView):
    """What answers for streams and probes where they did not reach localsync_application."""

    authentication_classes: Any = ()
    permission_classes = ()

    def get(self, request: Request) -> HttpResponse:
        """Say why there is no stream here."""
        logger.error("%s needs localsync_application under an ASGI server; see localsync.W020", request.path)
        text = "this server cannot serve streams: they need an ASGI server that runs localsync_application"
        raise RequestError(text, status=501)

    post = get


def metrics(request: HttpRequest) -> HttpResponse:
    """`GET metrics`: figures for Prometheus, for whoever has METRICS_TOKEN; without that setting there are none."""
    token = get_settings().metrics_token
    if not token:
        return no_such_path(request)
    try:
        from .metrics import respond
    except ImportError:
        return _error(RequestError("the server lacks prometheus-client; install the extra [metrics]", status=501))
    return respond(request, token)


@csrf_exempt
def no_such_path(request: HttpRequest) -> HttpResponse:
    """The answer to every other path."""
    return _error(RequestError("there is no such path", status=404, code=NO_SUCH_PATH))


def user_key(request: Request) -> str:
    """The subject of a request's token, as text: what journals and receipts are kept by."""
    return token_of(request).user_key


def token_of(request: Request) -> Token:
    """The verified token of a request."""
    token: Any = request.auth
    return cast(Token, token)


def read_json_body(request: Request, limit: int) -> bytes:
    """The body of a request, read only when it says that it is JSON and has at most `limit` bytes."""
    content_type = str(request.META.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError("the body must be application/json", status=415, code=UNSUPPORTED_MEDIA_TYPE)
    body: bytes = request._request.read(limit + 1)
    if len(body) > limit:
        raise RequestError(f"the body is longer than {limit} bytes; upload in smaller parts", status=413)
    return body


def respond_to_error(error: Exception, context: dict[str, Any]) -> HttpResponse:
    """The answer to any exception of a view; one that nobody meant to be seen is logged."""
    refusal = _as_refusal(error)
    if refusal is None:
        logger.error("%s failed", type(context["view"]).__name__, exc_info=error)
        refusal = RequestError("internal error", status=500)
    response = _error(refusal)
    if refusal.status == 401:
        response.headers["WWW-Authenticate"] = getattr(error, "auth_header", "Bearer")
    wait = getattr(error, "wait", None)  # of Throttled, in whole seconds
    if wait is not None:
        response.headers["Retry-After"] = str(wait)
    return response


def _as_refusal(error: Exception) -> RequestError | None:
    match error:
        case RequestError():
            return error
        case drf.Throttled():
            return RequestError("too many requests", status=429, code=TOO_MANY_REQUESTS)
        case drf.NotAuthenticated() | drf.AuthenticationFailed():
            return RequestError(str(error.detail), status=error.status_code, code=AuthError.code)
        case drf.APIException() if error.status_code < 500:
            return RequestError(str(error.detail), status=error.status_code)
        case PermissionDenied():
            return RequestError("permission denied", status=403)
        case Http404():
            return RequestError("not found", status=404, code=NO_SUCH_PATH)
    return None


def _json(body: bytes, status: int = 200) -> HttpResponse:
    return HttpResponse(body, status=status, content_type="application/json")


def _error(error: RequestError) -> HttpResponse:
    return _json(encode_error(error), error.status)
