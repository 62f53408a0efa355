"""What quantizing brings back: runs compared, with verdicts, and the gate of a policy.

Light to import: the command line reads its default from here.
"""

UTILITY_FLOOR = 0.5
"""The least share of the target's retained knowledge; below it a model counts as collapsed."""
