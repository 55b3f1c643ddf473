"""The login page's text and files."""

from __future__ import annotations

from html import escape
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
# Name: media type. The icon is the page's own.
ASSETS = {"login.css": "text/css; charset=utf-8", "login.js": "text/javascript; charset=utf-8"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MARK = (
    '<svg width="24" height="24" viewBox="0 0 32 32" aria-hidden="true" focusable="false">'
    '<ellipse cx="16" cy="16" rx="10.5" ry="12.5" fill="none" stroke="currentColor" stroke-width="2"/>'
    '<path d="M16 3.5v25" stroke="currentColor" stroke-width="1.5" opacity="0.6"/>'
    '<circle cx="21" cy="12" r="3.8" fill="#ff7a2e"/></svg>'
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in: Brain anomalies</title>
<link rel="stylesheet" href="{base}/login.css">
<link rel="icon" href="data:,">
<script src="{base}/login.js" defer></script>
</head>
<body>
<header><span class="name">{mark} Brain anomalies</span>
<span class="research" role="note">For research use only; not a medical device</span></header>
<main><div class="card">
{body}
</div></main>
</body>
</html>
"""
_FORM = """<h1>Sign in</h1>
{said}<form method="post" action="{base}">
<input type="hidden" name="next" value="{back}">
<label><span>{name_word}</span>
<input type="text" name="username" value="{name}" autocomplete="username" autocapitalize="none" spellcheck="false" maxlength="128"{focus_name}></label>
<label><span>{secret_word}</span>
<input type="password" name="password" autocomplete="current-password" required maxlength="2000"{focus_secret}></label>
<button type="submit">Sign in</button>
</form>
<p class="hint">{hint}</p>"""  # noqa: E501
_KNOWN = """<h1>Signed in</h1>
<p>{who}</p>
<a class="button" href="{back}">Continue</a>
<form method="post" action="{logout}"><button type="submit" class="second">Sign out</button></form>"""
_NO_NEED = """<h1>No sign-in needed</h1>
<p>{why}</p>
<a class="button" href="{back}">Continue</a>"""
_NO_TOKENS = """<h1>Nobody can sign in yet</h1>
<p>This server has no tokens, and so answers only on its own machine. Its administrator makes one there:</p>
<code>python main.py tokens create --name NAME --role reader</code>
<p class="hint">The page can then be loaded again; the server need not be started anew.</p>"""


def login_page(
    base: str,
    back: str,
    *,
    fault: str = "",
    name: str = "",
    accounts: bool = False,
    who: str = "",
    no_need: str = "",
    no_tokens: bool = False,
) -> str:
    """HTML. base: the page's own path. back: a path of this site to go to afterwards, checked before.

    fault: what was wrong with the last attempt. accounts: Keycloak's are taken, too. who: the name and role of whoever
    is signed in. no_need: why nobody has to sign in. no_tokens: that there is nothing to sign in with.
    """
    path, words = escape(base, quote=True), {"back": escape(back, quote=True)}
    if who and not fault:
        body = _KNOWN.format(
            who=escape(who), logout=escape(base.removesuffix("/login") + "/logout", quote=True), **words
        )
    elif no_need:
        body = _NO_NEED.format(why=escape(no_need), **words)
    elif no_tokens and not accounts:
        body = _NO_TOKENS
    else:
        said = f'<p class="fault" role="alert">{escape(fault)}</p>\n' if fault else ""
        body = _FORM.format(
            base=path,
            said=said,
            name=escape(name[:128], quote=True),
            name_word="Token name, or user" if accounts else "Token name",
            secret_word="Token, or password" if accounts else "Token",
            hint="The administrator of this server gives out tokens."
            + (" Accounts are those of your institution's login." if accounts else ""),
            focus_name="" if name else " autofocus",
            focus_secret=" autofocus" if name else "",
            **words,
        )
    return _PAGE.format(base=path, mark=_MARK, body=body)


def asset(name: str) -> bytes:
    """A file that the page loads. name: one of ``ASSETS``."""
    return (_FOLDER / name).read_bytes()
