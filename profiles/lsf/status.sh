#!/usr/bin/env bash
# Say of an LSF job: running, success or failed.
set -uo pipefail

state=$(bjobs -noheader -o stat "$1" 2>&1)
case $state in
DONE*) echo success ;;
EXIT* | ZOMBI* | *"is not found"*) echo failed ;;
*) echo running ;; # waiting, running, suspended, or LSF does not answer: ask again later
esac
