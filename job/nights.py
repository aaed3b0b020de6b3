"""The commands of nights: what a night does by itself, and what people may do to its log."""

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
