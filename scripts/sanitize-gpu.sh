#!/usr/bin/env bash
# compute-sanitizer over every kernel of the model on small shapes: memcheck, racecheck, initcheck. Needs a GPU, the
# built addon and dist/. Names of tools as arguments run these alone.
set -uo pipefail
cd "$(dirname "$0")/.."

# Cache pages are copied whole, also the positions that nothing was written to yet: reads by copies are not checked.
export QN_CLEAR_PRODUCTS=1 # see core/cublaslt.cpp
declare -A options=([memcheck]="" [racecheck]="--racecheck-report all" [initcheck]="--check-api-memory-access no")

failed=0
[[ $# -gt 0 ]] || set -- memcheck racecheck initcheck
for tool in "$@"; do
  for part in nvfp4 dense masters; do
    echo "== $tool, $part"
    # shellcheck disable=SC2086
    compute-sanitizer --tool "$tool" ${options[$tool]} --error-exitcode 9 --print-limit 10 \
      node scripts/exercise-gpu.mjs "$part" || failed=1
  done
done
exit "$failed"
