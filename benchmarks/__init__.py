"""Measurements of this project on the machine at hand; see benchmarks/README.md."""
