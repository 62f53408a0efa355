"""``unlearnbench sweep``: many checkpoints under many conditions, on a cluster, by Ray."""
