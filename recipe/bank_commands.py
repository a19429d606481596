"""`recipe bank show|check|export PATH`: look into a bank of retrainings, mend it, take everything out."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recipe.options import plain, say, user_errors
from recipe.stores import inspection

app = typer.Typer(help="Look into a bank of retrainings.", no_args_is_help=True, rich_markup_mode=None)

Address = Annotated[str, typer.Argument(metavar="PATH", help="The bank: a folder, or any fsspec address.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


@app.command()
def show(path: Address, as_json: AsJson = False) -> None:
    """Show what a bank holds: runs, what was measured, and the setting that it belongs to."""
    with user_errors():
        holdings = inspection.show(path)
        typer.echo(json.dumps(plain(asdict(holdings)), indent=2) if as_json else str(holdings))


@app.command()
def check(
    path: Address,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take damaged and unfinished segments out, to be redone. Stop jobs first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read everything and compare it with its digests; exit code 1 where something is damaged."""
    with user_errors():
        health = inspection.check(path, repair)
        typer.echo(json.dumps(plain(asdict(health)), indent=2) if as_json else str(health))
    if health.damaged and not repair:
        raise typer.Exit(1)


@app.command()
def export(
    path: Address,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A file that ends with .npz, .csv or .parquet.")],
) -> None:
    """Write all runs to one file: seeds, weights, seconds and outputs."""
    with user_errors():
        runs = inspection.export(path, out)
    say(f"{runs} runs in {out}.")
