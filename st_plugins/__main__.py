"""``python -m st_plugins`` is the command line."""

from __future__ import annotations

from st_plugins.cli import main

if __name__ == "__main__":
    main()
