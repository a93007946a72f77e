#!/usr/bin/env bash
# Compares the arm64 (NEON) kernels with the portable ones on any Linux machine: cross-compiles the core with
# aarch64-linux-gnu-g++ and runs test/cross under qemu-aarch64; on arm64 it uses the machine's own compiler and
# processor. Says nothing about speed. Debian: apt-get install g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(uname -m)" = aarch64 ]; then
  compiler=${CXX:-g++} emulator=
else
  compiler=aarch64-linux-gnu-g++ emulator=qemu-aarch64
fi
for tool in $compiler $emulator; do
  command -v "$tool" >/dev/null || { echo "test-neon is skipped: $tool is not installed"; exit 0; }
done

out=build/cross-neon
mkdir -p "$out"
# The flags of binding.gyp.
flags=(-std=c++20 -O3 -Wall -Wextra -Wno-unused-parameter -ffp-contract=off -fno-math-errno -fno-trapping-math
  -Icsrc -Itest/cross)
sources=$(
  node scripts/gyp-sources.cjs csrc/core csrc/format csrc/ops csrc/model csrc/train
  node scripts/gyp-sources.cjs csrc --suffix=_neon.cpp
  ls test/cross/*.cpp
)
export prefix="$(command -v ccache || true) $compiler ${flags[*]}" out
compile='object="$out/$(echo "$0" | tr / -).o"; $prefix -c "$0" -o "$object"'
echo "$sources" | xargs -P "${JOBS:-2}" -n 1 bash -c "$compile"
objects=$(echo "$sources" | sed "s|/|-|g; s|^|$out/|; s|\$|.o|")
# shellcheck disable=SC2086
$compiler -static -pthread $objects -o "$out/test"
$emulator "$out/test" neon
