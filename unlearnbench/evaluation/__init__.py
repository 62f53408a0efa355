"""The main job: a checkpoint, conditions and tasks go in; run folders and results come out."""
