#!/usr/bin/env bash
# Say of a Kubernetes Job: running, success or failed.
set -uo pipefail

said=$(kubectl get "$1" --output 'jsonpath={.status.conditions[?(@.status=="True")].type}' 2>&1)
if (($?)); then
  case $said in
  *NotFound* | *"not found"*) echo failed ;;
  *) echo running ;; # the cluster does not answer: ask again later
  esac
  exit
fi
case " $said " in
*" Complete "*) echo success ;;
*" Failed "*) echo failed ;;
*) echo running ;;
esac
