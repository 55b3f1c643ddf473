"""The command ``purge``: remove what has become old beside the datastore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(purge)


def purge(
    older_than: Annotated[
        float | None, typer.Option("--older-than", help="Days; without it, each kind's own.", metavar="DAYS")
    ] = None,
    what: Annotated[
        str, typer.Option(help="Kinds separated by commas, or all (default: what can be made again at any time).")
    ] = "",
    studies: Annotated[
        Path | None, typer.Option(help="Studies folder, for the maps kept beside scans (kind maps).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
) -> None:
    """Remove old caches, and with --what also reports, runs, prepared scans and maps that users made.

    Never scans, final labels, models or the audit log; nothing that is in use now; no link is followed.
    """
    from monailabel_app.audit import note_command
    from monailabel_app.errors import InvalidSettings
    from monailabel_app.pipelines import retention

    if studies is not None and not studies.is_dir():
        raise InvalidSettings(f"expected the studies folder, got {str(studies)[:80]!r}, which is no folder")
    kinds = [kind.strip() for kind in what.split(",") if kind.strip()]
    taken = retention.chosen(retention.Folders.usual(ROOT, studies), kinds, older_than)

    def tell(kind: str, path: str, days: float, size: int) -> None:
        if dry_run:
            typer.echo(f"{kind:<11} {days:6.1f} days {size / 2**20:9.1f} MiB  {path}")

    results = retention.purge(taken, dry_run=dry_run, told=tell)
    for place, result in zip(taken, results, strict=True):
        verb = "would go" if dry_run else "removed"
        rest = f", {result.in_use} in use" if result.in_use else ""
        rest += f", {result.failed} could not be removed" if result.failed else ""
        typer.echo(
            f"{place.kind:<11} {result.things} {verb} ({result.bytes / 2**20:.1f} MiB) older than {place.days:g} days: "
            f"{place.what}{rest}"
        )
    if not dry_run:
        facts = {result.kind: {"things": result.things, "bytes": result.bytes} for result in results if result.things}
        note_command(ROOT, "purge", "failed" if any(result.failed for result in results) else "ok", removed=facts)
    if any(result.failed for result in results):
        raise typer.Exit(1)
