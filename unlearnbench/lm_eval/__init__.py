"""lm-evaluation-harness: its tasks in our runs, our models and tasks in its runs.

``their_tasks`` finds and loads its tasks, ``suite`` runs them on a loaded model, ``model`` is our
adapter as one of its models, ``our_tasks`` has our tasks as its tasks (``tasks/*.yaml`` beside it).
They import lm-eval where it is needed only.
"""

from pathlib import Path

PREFIX = "lm_eval:"
"""Before a name of ``--tasks``: lm-eval's, whatever ours are called."""

INSTALL = "pip install 'unlearnbench[lm-eval]'"

BRIDGE = Path(__file__).resolve().parent / "tasks"
"""Our tasks as lm-eval's, and the group ``general``."""
