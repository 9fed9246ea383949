"""``st-plugins``: one file for each command, put together in ``app.py``."""

from __future__ import annotations


def main() -> None:
    """Run ``st-plugins`` with the arguments of this process."""
    from st_plugins.cli.app import main as run  # only the command line pays for typer

    run()
