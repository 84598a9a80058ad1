"""Verbs that no engine calls."""
