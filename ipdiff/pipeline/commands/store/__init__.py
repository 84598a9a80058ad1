"""Verbs about stored artifacts."""
