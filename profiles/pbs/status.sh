#!/usr/bin/env bash
# Say of a PBS job: running, success or failed.
set -uo pipefail

said=$(qstat -x -f "$1" 2>&1)
if (($?)); then
  case $said in
  *"Unknown Job"*) echo failed ;;
  *) echo running ;; # the server does not answer: ask again later
  esac
  exit
fi
state=$(awk '$1 == "job_state" {print $3; exit}' <<<"$said")
code=$(awk '$1 == "Exit_status" {print $3; exit}' <<<"$said")
case $state:$code in
F:0) echo success ;;
F:*) echo failed ;;
*) echo running ;;
esac
