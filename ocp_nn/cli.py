"""The command ``ocp-nn``: what it needs to start, and nothing more."""

from __future__ import annotations

import sys

from ocp.extras import EXTRAS, installed


def main() -> None:
    """Run the command line; without its extra, say how to get it. Exit status 2 then."""
    if missing := [module for module in EXTRAS["cli"] if not installed(module)]:
        print(
            f"ocp-nn: the command line needs {' and '.join(missing)}: "
            "pip install 'torch-ocp[cli]'. Everything it does is also one call in Python, see "
            "`help(ocp_nn.experiments)`.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from ocp_nn.cli_app import app

    app(prog_name="ocp-nn")


if __name__ == "__main__":
    main()
