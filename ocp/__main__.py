"""``python -m ocp`` is ``ocp``."""

from ocp.cli import main

main()
