"""``klprojax demo``: every part of the package once, on real data, with one report."""

from ._command import demo_command as demo_command
