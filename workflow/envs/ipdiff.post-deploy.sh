#!/usr/bin/env bash
# Snakemake runs this once the environment is made. The command of a job, found before any other `ipdiff`.
set -euo pipefail

printf '#!/bin/sh\nexec "%s/bin/python" -m ipdiff "$@"\n' "$CONDA_PREFIX" >"$CONDA_PREFIX/bin/ipdiff"
chmod +x "$CONDA_PREFIX/bin/ipdiff"
