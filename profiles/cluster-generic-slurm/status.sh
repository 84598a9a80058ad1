#!/usr/bin/env bash
# Say of a Slurm job: running, success or failed.
set -uo pipefail

job=$1
said=$(squeue --noheader --states=all --jobs="$job" --format=%T 2>&1)
if (($?)); then
  case $said in
  *"Invalid job id"*) said= ;;
  *) # the controller does not answer: ask again later
    echo running
    exit
    ;;
  esac
fi
if [[ -z $said ]]; then # forgotten after MinJobAge; the accounting remembers, where there is one
  said=$(sacct --noheader --allocations --parsable2 --format=State --jobs="$job" 2>/dev/null)
fi
case $said in
COMPLETED*) echo success ;;
PENDING* | RUNNING* | CONFIGURING* | COMPLETING* | SUSPENDED* | REQUEUE* | RESIZING* | SIGNALING* | STAGE_OUT* | STOPPED*)
  echo running
  ;;
*) echo failed ;;
esac
