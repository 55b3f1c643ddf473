"""The commands ``tokens``: who may use the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.access.tokens import TokenStore, default_file
from monailabel_app.audit import note_command

ROOT = Path(__file__).resolve().parent.parent

tokens_app = typer.Typer(help="Who may use the server: tokens with a name and a role.", no_args_is_help=True)
_File = Annotated[
    Path | None, typer.Option("--file", help="The file of tokens (default: $ANOMALY_TOKENS or model/tokens.json).")
]


def register(app: typer.Typer) -> None:
    """Add the group ``tokens``."""
    app.add_typer(tokens_app, name="tokens")


@tokens_app.command()
def create(
    name: Annotated[str, typer.Option(help="Who or what uses it; stands in the audit log.")],
    role: Annotated[str, typer.Option(help="reader, admin (also trains, publishes, deletes) or monitor (metrics).")],
    days: Annotated[float | None, typer.Option(help="Days until it expires (default: never).")] = None,
    file: _File = None,
) -> None:
    """Make a token and print it: this once, as only its hash is kept.

    From the first token on, the server asks everybody for one, also on its own machine.
    """
    secret, token = _store(file).create(name, role, days)
    note_command(ROOT, "token_created", token=name, role=role, days=days)
    until = f"until {token.expires:%Y-%m-%d %H:%M} UTC" if token.expires else "without end"
    typer.echo(f"token {name!r}, role {role}, valid {until}; it is shown this once:", err=True)
    typer.echo(secret)


@tokens_app.command("list")
def list_tokens(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    file: _File = None,
) -> None:
    """Show names, roles and dates; never tokens."""
    rows = [
        {
            "name": token.name,
            "role": token.role,
            "created": token.created.isoformat(),
            "expires": token.expires.isoformat() if token.expires else None,
            "state": "expired" if token.expired() else "valid",
        }
        for token in _store(file).tokens()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        typer.echo("no tokens: the server answers this machine only; make one with `main.py tokens create`")
    for row in rows:
        typer.echo(
            f"{row['name']:<24} {row['role']:<8} {row['state']:<8} "
            f"created {row['created'][:10]}  expires {(row['expires'] or 'never')[:16]}"
        )


@tokens_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the token.")],
    file: _File = None,
) -> None:
    """Refuse a token, and whoever signed in with it, from the next request on."""
    store = _store(file)
    store.revoke(name)
    note_command(ROOT, "token_revoked", token=name)
    typer.echo(f"token {name!r} is revoked")
    if not store.tokens():
        typer.secho("no token is left: the server asks nobody on its own machine any more", err=True, fg="yellow")


def _store(file: Path | None) -> TokenStore:
    return TokenStore(file or default_file(ROOT))
