#!/usr/bin/env bash
# A stranger's path: clone, pull one checkpoint and the metrics from a read-only http remote, verify, draw an image.
# REMOTE_URL=https://... is a published store; without it this project's own cache is served on loopback.
# STUDY=digits, OUT=work/demo-pull.png
set -euo pipefail
cd "$(dirname "$0")/.."
study=${STUDY:-digits}
out=$(realpath -m "${OUT:-work/demo-pull.png}")
work=$(mktemp -d)
server=
trap '{ set +x; } 2> /dev/null; [[ -z $server ]] || kill "$server"; rm -rf "$work"' EXIT

lock=$([[ $study == digits ]] && echo dvc.lock || echo "studies/$study/dvc.lock")
if ! git cat-file -e "HEAD:./$lock" 2> /dev/null; then
  echo "HEAD has no $lock: run the study (snakemake $study) and commit its $lock first" >&2
  exit 2
fi
if [[ -z ${REMOTE_URL:-} ]]; then
  python -u -m http.server 0 --bind 127.0.0.1 --directory "$(dvc cache dir)" > "$work/server.log" 2>&1 &
  server=$!
  until port=$(grep -oP 'port \K\d+' "$work/server.log" 2> /dev/null); do sleep 0.1; done
  REMOTE_URL=http://127.0.0.1:$port
fi

checkpoint=$(ipdiff grid --study "$study" | grep -oP '\truns/[^/]+/adm-ip/s0/\d+$' | tail -n 1 | cut -c 2-)
IFS=/ read -r _ dataset model seed step <<< "$checkpoint"

set -x
git clone --quiet . "$work/clone"
cd "$work/clone"
dvc remote add --quiet --local --force --default published "$REMOTE_URL"
ipdiff pull --metrics-only "$study"
ipdiff pull "$checkpoint/ema.safetensors"
ipdiff verify --study "$study"
ipdiff sample --dataset "$dataset" --model "$model" --seed "${seed#s}" --step "$step" \
  --sampler "${SAMPLER:-ancestral-20}" --index 0 --out image.png
{ set +x; } 2> /dev/null
mkdir -p "$(dirname "$out")"
cp image.png "$out"
echo "image: $out"
