/** A loss of the caller, for what takes dLogits: the cross-entropy written out. */

/** (softmax - one-hot of the next label) / number of counted labels, in double. */
export function crossEntropyGradient(
  logits: Float32Array,
  labels: number[][],
  batch: number,
  tokens: number,
  V: number,
): Float32Array {
  const gradient = new Float32Array(logits.length)
  const counted = labels.flatMap((row) => row.slice(1)).filter((label) => label !== -100).length
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t + 1 < tokens; t++) {
      const label = labels[b]![t + 1]!
      if (label === -100) continue
      const row = (b * tokens + t) * V
      const values = logits.subarray(row, row + V)
      const max = values.reduce((a, x) => Math.max(a, x), -Infinity)
      const sum = values.reduce((a, x) => a + Math.exp(x - max), 0)
      values.forEach((x, v) => (gradient[row + v] = (Math.exp(x - max) / sum - (v === label ? 1 : 0)) / counted))
    }
  }
  return gradient
}
