"""What came back: comparison, verdicts, the gate."""
