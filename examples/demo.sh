#!/usr/bin/env bash
# The whole way on two CPU cores, one command after the other, as you would type them:
# molecules → shards → a small language model → stage 1 → stage 2 → scores → three answers.
# Run by `make demo`; everything lands in demo/ (or the folder given), and a second run starts anew.
set -euo pipefail
BIN=${BIN:-.venv/bin}
DEMO=${1:-demo}
# One thread: a model this small loses more to waking a second one than that computes (stage 2 took
# 1.3 times as long with two), and a busy machine makes two spinning ones many times slower.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

step() {  # print a command, run it, say how long it took
  local begin=$SECONDS
  printf '\n$ %s\n' "${*/#$BIN\//}"
  "$@"
  printf '  (%d s)\n' "$((SECONDS - begin))"
}

rm -rf "$DEMO"
mkdir -p "$DEMO"
# No questions about shape: a model of this size answers them worse than their median (docs/evidence.md).
step "$BIN/collamo" prepare nci --out "$DEMO/data" --force-field-steps 100 --time-limit 3 --shape-questions 0
step "$BIN/collamo" train configs/tiny_lm.yaml --data "$DEMO/data" --output "$DEMO/tiny_lm"
step "$BIN/collamo" train configs/stage1.yaml --data "$DEMO/data" --output "$DEMO/stage1" --llm "$DEMO/tiny_lm/final"
step "$BIN/collamo" train configs/stage2.yaml --data "$DEMO/data" --output "$DEMO/stage2" --init_from "$DEMO/stage1/final"
# The longest caption of the test split has 69 tokens.
step "$BIN/collamo" evaluate "$DEMO/stage2/final" --data "$DEMO/data" --split test \
  --limit 1000 --max-new-tokens 72 --diagnose --out "$DEMO/evaluation"
step "$BIN/python" examples/demo_report.py "$DEMO"

# Three molecules of the test split, which neither training saw, each with one question.
"$BIN/python" examples/held_out.py "$DEMO/data" 3 | while IFS=$'\t' read -r smiles question truth; do
  step "$BIN/collamo" ask "$smiles" "$question" --checkpoint "$DEMO/stage2/final"
  printf '  truth: %s\n' "$truth"
done
printf '\nDone in %d s. Read %s/report.md.\n' "$SECONDS" "$DEMO"
