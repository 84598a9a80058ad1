"""Snakemake and DVC: two views of one grid, kept in agreement."""
