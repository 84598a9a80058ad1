#!/usr/bin/env bash
# Say of a Grid Engine job: running, success or failed.
set -uo pipefail

job=$1
if listed=$(qstat -u '*' 2>/dev/null); then
  state=$(awk -v job="$job" '$1 == job {print $5; exit}' <<<"$listed")
else # the master does not answer: ask again later
  state=unknown
fi
if [[ $state == *E* ]]; then
  echo failed
  exit
fi
if [[ -n $state ]]; then
  echo running
  exit
fi
for _ in 1 2 3 4 5; do # the accounting lags behind
  if account=$(qacct -j "$job" 2>/dev/null); then
    awk '$1 == "failed" && $2 != 0 {bad = 1} $1 == "exit_status" && $2 != 0 {bad = 1}
         END {print bad ? "failed" : "success"}' <<<"$account"
    exit
  fi
  sleep 2
done
echo failed
