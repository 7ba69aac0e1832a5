#!/usr/bin/env bash
# The rows of docs/results.md for SmolLM2-135M-Instruct, read from its GGUF file; one folder a run under runs/.
# usage: eval/smollm2.sh TEXT     or EDGEQAT_DATA=TEXT; `make real` gets the model; a finished run is skipped
set -euo pipefail
model=.real/SmolLM2-135M-Instruct.Q4_1.gguf
text=${1:-${EDGEQAT_DATA:-}}
[ -n "$text" ] || { echo "text: none is named; give eval/smollm2.sh a file or a folder, or set EDGEQAT_DATA" >&2; exit 2; }
[ -f "$model" ] || { echo "model: $model is not there; run 'make real'" >&2; exit 2; }
run() { # SCHEME
  [ -f "runs/smollm2-$1/metrics.json" ] && return
  .venv/bin/edgeqat quantize --model "$model" --data "$text" "--$1" --steps 0 --output "runs/smollm2-$1"
}
for scheme in w8a8kv8 w4a8kv4; do
  run "$scheme"
done
.venv/bin/edgeqat eval runs/smollm2-w4a8kv4 --data "$text" --against "$model" --output runs/smollm2-w4a8kv4.json
