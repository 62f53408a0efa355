"""Tasks: files, rows and samples."""
