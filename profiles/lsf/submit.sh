#!/usr/bin/env bash
# bsub, printing the job's number alone.
set -euo pipefail

bsub "$@" | sed -n 's/^Job <\([0-9]*\)>.*/\1/p'
