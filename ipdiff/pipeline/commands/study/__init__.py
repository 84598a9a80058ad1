"""Verbs about a study as a whole."""
