"""lm-evaluation-harness: its tasks in our runs, our models and tasks in its runs.

``names`` tells its tasks from ours, ``catalog`` finds and loads them, ``suite`` runs them on a model
that is loaded, ``model`` is our adapter as one of its models, ``bridge`` our tasks as its tasks
(``tasks/*.yaml`` beside it). Only the last four import it, and they are imported where it is needed.
"""

__all__: list[str] = []
