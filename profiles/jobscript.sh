#!/usr/bin/env bash
# properties = {properties}
# A scheduler warns a job before its end, often this shell alone, and with different signals. ipdiff understands
# TERM, and so does the Snakemake around it: it waits for ipdiff. (Snakemake formats this file: braces are doubled.)
set -m # the job below gets a process group of its own
(
  trap : TERM USR1 USR2 XCPU # outlive the job; its processes are not affected
  {exec_job}
) &
job=$!
trap 'kill -TERM -- -$job' TERM USR1 USR2 XCPU
while kill -0 "$job" 2>/dev/null; do
  wait "$job" # a signal ends it early
done
wait "$job"
