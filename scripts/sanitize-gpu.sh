#!/usr/bin/env bash
# NVIDIA's compute-sanitizer: memcheck and initcheck over every kernel of the model on small shapes, racecheck over the
# tests of our own kernels. Needs a GPU, the built addon and dist/. Names of tools as arguments run these alone.
set -uo pipefail
cd "$(dirname "$0")/.."

# Whole models stay away from racecheck: it cannot follow cuBLASLt's kernels (they fail under it, or never end).
ops=(adamw attention.test attention-decode cross-entropy decode-begin embedding gemv kv-cache-write nvfp4 rms-norm rope sample swiglu)
# Shapes that keep it busy for minutes and add no access of another kind.
large='Qwen3-4B|many steps|more blocks|number of blocks|of 151936|of 32769|thousand|draws the|chain in a graph'

failed=0
check() { # tool, its options, command
  echo "== $*"
  compute-sanitizer --error-exitcode 9 --print-limit 10 --tool "$@" || failed=1
}

[[ $# -gt 0 ]] || set -- memcheck racecheck initcheck
for tool in "$@"; do
  case $tool in
    memcheck)
      check memcheck node scripts/exercise-gpu.mjs
      ;;
    initcheck)
      # Cache pages are copied whole, also the positions that nothing was written to yet: copies are not checked.
      for part in nvfp4 dense masters; do
        QN_CLEAR_PRODUCTS=1 check initcheck --check-api-memory-access no node scripts/exercise-gpu.mjs "$part"
      done
      ;;
    racecheck)
      for op in "${ops[@]}"; do
        # It looks at shared memory, which is each block's own, and never returns from a barrier of several blocks.
        QN_SAMPLE_BLOCKS=1 check racecheck --racecheck-report all node node_modules/jest/bin/jest.js --runInBand --forceExit \
          --testPathIgnorePatterns /node_modules/ --testPathPatterns "test/gpu/$op" -t "^(?!.*($large))"
      done
      ;;
    *)
      echo "Expected memcheck, racecheck or initcheck but received $tool" >&2
      exit 2
      ;;
  esac
done
exit "$failed"
