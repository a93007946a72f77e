#!/usr/bin/env bash
# compute-sanitizer over every kernel of the model on small shapes: memcheck, racecheck, initcheck. Needs a GPU, the
# built addon and dist/.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
for tool in memcheck racecheck initcheck; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 10 node scripts/exercise-gpu.mjs || failed=1
done
exit "$failed"
