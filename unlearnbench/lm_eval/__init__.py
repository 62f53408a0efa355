"""lm-evaluation-harness: its tasks in our runs, our models and tasks in its runs.

``names`` tells its tasks from ours, ``catalog`` finds and loads them, ``suite`` runs them on a
loaded model, ``model`` is our adapter as one of its models, ``bridge`` has our tasks as its tasks
(``tasks/*.yaml`` beside it). Those four import it, and are imported where it is needed only.
"""

__all__: list[str] = []
