"""Signing in: ``/auth/`` as MONAI Label's clients ask it, ``/anomaly/login`` and ``/anomaly/logout`` for browsers."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user

from lib.access.authenticate import OPEN, Access, cookie_of
from lib.access.errors import BadCredentials
from lib.access.principal import Principal, current
from lib.access.return_path import return_path
from lib.access.sessions import COOKIE
from lib.access.sign_in import SignedIn, sign_in
from lib.errors import InvalidRequest, UnknownImage
from lib.login import ASSETS, HEADERS, asset, login_page
from monailabel_app.errors import AnomalyAppError

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR)

# Ways in which somebody is known without having signed in.
_UNASKED = frozenset({"local", "open"})
_LONGEST_FORM, _FORM_SECONDS = 16384, 20.0


@router.get("/auth/", tags=["Auth"], summary="Whether clients have to sign in")
def auth_enabled() -> dict[str, Any]:
    """``enabled``: whether this client needs a token. MONAI Label's clients then ask for a name and password."""
    return {
        "enabled": current().how not in _UNASKED,
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "realm": settings.MONAI_LABEL_AUTH_REALM_URI if settings.MONAI_LABEL_AUTH_ENABLE else None,
    }


@router.post("/auth/token", tags=["Auth"], summary="A token for a name and token, or an account and its password")
async def access_token(request: Request) -> JSONResponse:
    """Form ``username``, ``password``. The token goes into ``Authorization: Bearer``."""
    if current().how in _UNASKED:
        return JSONResponse({"access_token": None, "token_type": None})
    form = await _form(request)
    if form.get("grant_type", "password") != "password":
        raise InvalidRequest("expected grant_type=password")
    done = await sign_in(_access(request), request.scope, form.get("username", ""), form.get("password", ""))
    return JSONResponse(
        {"access_token": done.access_token, "token_type": "bearer"}, headers={"Cache-Control": "no-store"}
    )


@router.get("/auth/token/valid", tags=["Auth"], summary="Whether the token is valid, and whose it is")
async def valid_token(user: User = Depends(get_current_user)) -> dict[str, Any]:
    """The user as MONAI Label has it."""
    return user.model_dump()


@router.get("/anomaly/login", tags=["Page"], summary="The login page", response_class=HTMLResponse)
def show_login(request: Request, next: str | None = None) -> Response:
    """The login page; what it says depends on who asks. ``next``: a path of this site to go to afterwards."""
    return _page(request, next)


@router.post("/anomaly/login", tags=["Page"], summary="Sign a browser in: form username, password, next")
async def log_in(request: Request) -> Response:
    """Sets the session's cookie. A browser is sent on to ``next``; who accepts only JSON is told name and role."""
    form = await _form(request)
    asked_for_page = "text/html" in request.headers.get("accept", "")
    try:
        done = await sign_in(_access(request), request.scope, form.get("username", ""), form.get("password", ""))
    except AnomalyAppError as error:
        if not asked_for_page:
            raise
        later = getattr(error, "retry_after", None)
        answer = _page(request, form.get("next"), fault=_sentence(error), name=form.get("username", ""))
        answer.status_code = error.status
        if later is not None:
            answer.headers["Retry-After"] = f"{later:.0f}"
        return answer
    if asked_for_page:
        answer = RedirectResponse(_back(request, form.get("next")), 303)
    else:
        answer = JSONResponse(described(done.who.principal))
    answer.headers["Cache-Control"] = "no-store"
    _set_cookie(request, answer, done)
    return answer


@router.post("/anomaly/logout", tags=["Page"], status_code=204, summary="End a browser's session")
def log_out(request: Request) -> Response:
    """The cookie is worth nothing from now on, also a copy of it."""
    _access(request).sessions.end(cookie_of(request.scope))
    answer: Response = Response(status_code=204)
    if "text/html" in request.headers.get("accept", ""):
        answer = RedirectResponse(_own(request), 303)
    answer.headers["Cache-Control"] = "no-store"
    answer.delete_cookie(COOKIE, path=_cookie_path(request), httponly=True, samesite="lax", secure=_encrypted(request))
    return answer


@router.get("/anomaly/login/{name}", include_in_schema=False)
def login_file(name: str) -> Response:
    """Style and script of the login page."""
    if name not in ASSETS:
        raise UnknownImage("the login page has no such file")
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return Response(asset(name), media_type=ASSETS[name], headers=headers)


def described(principal: Principal) -> dict[str, str]:
    """Who somebody is, for a client."""
    return {"name": principal.name, "role": principal.role, "how": principal.how}


def _page(request: Request, wanted: str | None, *, fault: str = "", name: str = "") -> Response:
    access, who = _access(request), current()
    no_need = ""
    if who.how == "local":
        no_need = "This server has no tokens yet: it answers on its own machine only, and asks nobody there."
    elif who.how == "open":
        no_need = "This server was told to ask nobody who they are."
    signed_in = f"As {who.name} (role {who.role})." if who.how in {"token", "cookie", "keycloak"} else ""
    no_tokens = access.mode != OPEN and _without_tokens(access)
    text = login_page(
        _own(request), _back(request, wanted), fault=fault, name=name, accounts=access.keycloak is not None,
        who=signed_in, no_need=no_need, no_tokens=no_tokens,
    )  # fmt: skip
    return Response(text, media_type="text/html; charset=utf-8", headers=HEADERS)


def _without_tokens(access: Access) -> bool:
    try:
        return not access.store.tokens()
    except AnomalyAppError:
        return False


def _access(request: Request) -> Access:
    return request.scope["state"]["access"]


def _root(request: Request) -> str:
    return (request.scope.get("root_path") or "").rstrip("/") + settings.MONAI_LABEL_API_STR


def _own(request: Request) -> str:
    return f"{_root(request)}/anomaly/login"


def _back(request: Request, wanted: str | None) -> str:
    return return_path(wanted, f"{_root(request)}/anomaly/")


def _cookie_path(request: Request) -> str:
    return _root(request) or "/"


def _encrypted(request: Request) -> bool:
    return request.url.scheme == "https"


def _set_cookie(request: Request, answer: Response, done: SignedIn) -> None:
    answer.set_cookie(
        COOKIE, done.cookie, max_age=done.seconds, path=_cookie_path(request), httponly=True, samesite="lax",
        secure=_encrypted(request),
    )  # fmt: skip


def _sentence(error: AnomalyAppError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + "."


async def _form(request: Request) -> dict[str, str]:
    """A form of few short fields. Raises InvalidRequest, BadCredentials for one that is none."""
    body = bytearray()
    try:
        # Anybody may send it, so nobody may take for ever over it.
        with anyio.fail_after(_FORM_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > _LONGEST_FORM:
                    raise InvalidRequest("expected a form with a name and a token, got something longer")
    except TimeoutError as error:
        raise InvalidRequest("expected a form with a name and a token, which did not come whole in time") from error
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise InvalidRequest("expected a form (application/x-www-form-urlencoded) with username and password")
    try:
        return dict(parse_qsl(body.decode("utf-8"), max_num_fields=10, errors="strict"))
    except ValueError as error:
        raise BadCredentials("expected a form with username and password, got something else") from error
