"""The command line: parse, call, show."""

from ._app import main as main
