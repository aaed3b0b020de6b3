"""The commands that look at what was published: none of them trains, and none changes a run."""

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
