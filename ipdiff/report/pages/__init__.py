"""A study as pages."""
