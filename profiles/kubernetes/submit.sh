#!/usr/bin/env bash
# submit.sh RULE THREADS MEMORY_MB MINUTES GPUS SCRIPT: create a Job, printing its name alone (job.batch/...).
set -euo pipefail

rule=$1 threads=$2 memory=$3 minutes=$4 gpus=$5 script=$6
text=$(<profiles/kubernetes/job.yaml)
if [[ $gpus == 0 ]]; then
  text=$(grep -v '@GPUS@' <<<"$text")
fi
text=${text//@RULE@/"$rule"}
text=${text//@CPUS@/"$threads"}
text=${text//@MEMORY@/"$memory"}
text=${text//@SECONDS@/"$((minutes * 60))"}
text=${text//@GPUS@/"$gpus"}
text=${text//@SCRIPT@/"$script"}
text=${text//@DIRECTORY@/"$PWD"}
text=${text//@PATH@/"$PATH"}
text=${text//@PYTHONPATH@/"${PYTHONPATH:-}"}
kubectl create --output name --filename - <<<"$text"
