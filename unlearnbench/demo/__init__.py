"""A small corpus of invented news, to run every task without a download."""
