/** Attention and its gradient written out in doubles, one score at a time: what the tiled kernels have to equal. */
export interface AttentionDims {
  B: number
  T: number
  Q: number
  KV: number
  D: number
}

type Values = ArrayLike<number>

const sees = (mask: Values | null, dims: AttentionDims, b: number, key: number) => !mask || mask[b * dims.T + key] !== 0

/** Calls `row` for every query and head with its probabilities over the keys 0 .. t (zeros where hidden). */
function eachRow(
  q: Values,
  k: Values,
  mask: Values | null,
  dims: AttentionDims,
  row: (at: { b: number; t: number; kv: number; index: number; p: number[]; lse: number }) => void,
) {
  const { B, T, Q, KV, D } = dims
  for (let b = 0; b < B; b++) {
    for (let t = 0; t < T; t++) {
      for (let h = 0; h < Q; h++) {
        const kv = Math.floor(h / (Q / KV))
        const index = (b * T + t) * Q + h
        const scores: number[] = []
        for (let s = 0; s <= t; s++) {
          let dot = 0
          for (let d = 0; d < D; d++) dot += q[index * D + d]! * k[((b * T + s) * KV + kv) * D + d]!
          scores.push(sees(mask, dims, b, s) ? dot / Math.sqrt(D) : -Infinity)
        }
        const max = scores.reduce((a, x) => Math.max(a, x), -Infinity)
        const exps = scores.map((x) => (x === -Infinity ? 0 : Math.exp(x - max)))
        const sum = exps.reduce((a, x) => a + x, 0)
        const p = exps.map((x) => (sum === 0 ? 0 : x / sum))
        row({ b, t, kv, index, p, lse: sum === 0 ? -Infinity : max + Math.log(sum) })
      }
    }
  }
}

export function attentionReference(q: Values, k: Values, v: Values, mask: Values | null, dims: AttentionDims) {
  const { B, T, Q, KV, D } = dims
  const y = new Float64Array(B * T * Q * D)
  const lse = new Float64Array(B * T * Q)
  eachRow(q, k, mask, dims, ({ b, kv, index, p, lse: value }) => {
    lse[index] = value
    p.forEach((weight, s) => {
      for (let d = 0; d < D; d++) y[index * D + d]! += weight * v[((b * T + s) * KV + kv) * D + d]!
    })
  })
  return { y, lse }
}

export function attentionBackwardReference(
  dy: Values,
  q: Values,
  k: Values,
  v: Values,
  mask: Values | null,
  dims: AttentionDims,
) {
  const { T, KV, D } = dims
  const dq = new Float64Array(q.length)
  const dk = new Float64Array(k.length)
  const dv = new Float64Array(v.length)
  eachRow(q, k, mask, dims, ({ b, kv, index, p }) => {
    const keyAt = (s: number) => ((b * T + s) * KV + kv) * D
    const dp = p.map((_, s) => {
      let dot = 0
      for (let d = 0; d < D; d++) dot += dy[index * D + d]! * v[keyAt(s) + d]!
      return dot
    })
    const delta = p.reduce((sum, weight, s) => sum + weight * dp[s]!, 0)
    p.forEach((weight, s) => {
      const ds = (weight * (dp[s]! - delta)) / Math.sqrt(D)
      for (let d = 0; d < D; d++) {
        dq[index * D + d]! += ds * k[keyAt(s) + d]!
        dk[keyAt(s) + d]! += ds * q[index * D + d]!
        dv[keyAt(s) + d]! += weight * dy[index * D + d]!
      }
    })
  })
  return { dq, dk, dv }
}
