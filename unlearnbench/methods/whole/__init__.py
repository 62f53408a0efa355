"""Methods with a procedure of their own, which combine with nothing."""
