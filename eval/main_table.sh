#!/usr/bin/env bash
# The rows of docs/results.md: llama-8m-novels at every scheme of the main table, one folder a run under runs/.
# usage: EDGEQAT_DATA=FOLDER_WITH_NOVELS eval/main_table.sh MODEL_FOLDER [RUN ...]     a finished run is skipped
set -euo pipefail
model=$1; shift
alone="--set train.compare_float=false"
paper="--set quant.weight.granularity=per_tensor --set quant.activation.mode=static"
run() { # NAME SCHEME SEED [OPTION ...]
  local name=$1 scheme=$2 seed=$3; shift 3
  [ -f "runs/$name/metrics.json" ] && return
  .venv/bin/edgeqat quantize --model "$model" --recipe llama-8m-novels "--$scheme" --seed "$seed" --output "runs/$name" "$@"
}
for name in "${@:-w8a8kv8-s0 w4a8kv4-s0 w4a4kv4-s0 w3a4kv3-s0 w2a8kv4-s0 w2a8kv2-s0 w4a4kv4-paper-s0 w4a8kv4-s1 w4a8kv4-s2 w4a4kv4-s1 w4a4kv4-s2}"; do
  for one in $name; do
    scheme=${one%%-*}; seed=${one##*-s}
    case $one in
      w4a8kv4-s0) run "$one" "$scheme" "$seed" ;; # with the row of the float model trained for the same steps
      *-paper-*) run "$one" "$scheme" "$seed" $alone $paper ;;
      *) run "$one" "$scheme" "$seed" $alone ;;
    esac
  done
done
