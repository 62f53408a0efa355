"""The ``unlearnbench`` command: a file for each of its commands, and ``main`` above them."""

from unlearnbench.cli.main import main

__all__ = ["main"]
