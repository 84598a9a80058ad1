#!/usr/bin/env bash
# A stranger's path: clone, pull what published/store keeps of a study, verify, draw 64 images of its trained model.
# REMOTE_URL=https://... is another store, of which one checkpoint and the metrics are pulled.
# STUDY=digits, SAMPLER=ancestral-20, OUT=work/demo-pull.png
set -euo pipefail
cd "$(dirname "$0")/.."
study=${STUDY:-digits}
sampler=${SAMPLER:-ancestral-20}
out=$(realpath -m "${OUT:-work/demo-pull.png}")
work=$(mktemp -d)
trap '{ set +x; } 2> /dev/null; rm -rf "$work"' EXIT

lock=$([[ $study == digits ]] && echo dvc.lock || echo "studies/$study/dvc.lock")
if ! git cat-file -e "HEAD:./$lock" 2> /dev/null; then
  echo "HEAD has no $lock: run the study (snakemake $study) and commit its $lock first" >&2
  exit 2
fi
if [[ -z ${REMOTE_URL:-} ]] && ! git cat-file -e "HEAD:./published/$study/metrics.json" 2> /dev/null; then
  echo "HEAD has no published/$study: ipdiff publish $study --store, commit published, or set REMOTE_URL" >&2
  exit 2
fi
checkpoint=$(ipdiff grid --study "$study" | grep -oP '\truns/[^/]+/adm-ip/s0/\d+$' | tail -n 1 | cut -c 2-)
IFS=/ read -r _ dataset model seed step <<< "$checkpoint"

set -x
git clone --quiet . "$work/clone"
cd "$work/clone"
if [[ -z ${REMOTE_URL:-} ]]; then
  ipdiff pull "$study"
else
  dvc remote add --quiet --local --default other "$REMOTE_URL"
  ipdiff pull --metrics-only "$study"
  ipdiff pull "$checkpoint/ema.safetensors"
fi
ipdiff verify --study "$study"
ipdiff sample --dataset "$dataset" --model "$model" --seed "${seed#s}" --step "$step" --sampler "$sampler" \
  --index 0-63 --out images.png
{ set +x; } 2> /dev/null
published=published/$study/samples/$dataset/$model/$seed/$step/$sampler.png
if cmp --silent images.png "$published"; then
  echo "the 64 images are, byte for byte, those of $published"
elif [[ -e $published ]]; then
  echo "the 64 images are not those of $published to the byte: another type of CPU rounds differently"
fi
mkdir -p "$(dirname "$out")"
cp images.png "$out"
echo "images: $out"
