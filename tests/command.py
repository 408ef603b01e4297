"""Running the command line inside a test."""

from typing import Any

from typer.testing import CliRunner

from ocp.cli_app import app


def run(*arguments: Any, status: int = 0) -> Any:
    """Result of ``ocp arguments``, which must exit with ``status``."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def mistake(*arguments: Any) -> str:
    """Standard error of a command that must exit with 2: one readable error, no traceback."""
    result = run(*arguments, status=2)
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.count("Error") >= 1
    return result.stderr
