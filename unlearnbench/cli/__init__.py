"""The ``unlearnbench`` command: ``main``, and files of commands, imported when one is called."""

from unlearnbench.cli.main import main

__all__ = ["main"]
