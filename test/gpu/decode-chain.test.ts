/** Chains of products of one token in one launch, stage by stage against the CPU. Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'
import { seededWeight, type Weight } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

interface Product {
  weights: Weight[]
  source: number
  norm?: Float32Array
  swiglu?: boolean
  accumulate?: boolean
  f32?: boolean
  plain?: boolean
}
interface Dims {
  H: number
  Q: number
  KV: number
  F: number
  V: number
}

const EPS = 1e-6

/** As in gemv.test.ts: truncating f32 sums in the tensor cores. */
const atol = (K: number) => 2 ** -23 * (K / 4) * 0.41 * Math.sqrt(K) + 1e-6

/** Norm, q, k and v; o, added; norm, gate, up and SwiGLU; down, added: of each layer, then the head. o reads q. */
function tokenProducts({ H, Q, KV, F, V }: Dims, layers: number): Product[] {
  const products: Product[] = []
  let seed = 1
  const weight = (rows: number, cols: number) => ({ ...seededWeight('nvfp4', rows, cols, seed++), globalScale: 0.05 })
  const norm = () => seededValues(H, seed++).map((value) => 1 + value / 2)
  const add = (product: Omit<Product, 'source'>) => products.push({ ...product, source: products.length - 1 })
  for (let i = 0; i < layers; i++) {
    add({ weights: [weight(Q, H), weight(KV, H), weight(KV, H)], norm: norm(), plain: true })
    add({ weights: [weight(H, Q)], accumulate: true })
    add({ weights: [weight(F, H), weight(F, H)], norm: norm(), swiglu: true })
    add({ weights: [weight(H, F)], accumulate: true })
  }
  add({ weights: [weight(V, H)], norm: norm(), f32: true })
  return products
}

const outputCount = ({ weights, swiglu }: Product) =>
  swiglu ? weights[0]!.rows : weights.reduce((sum, { rows }) => sum + rows, 0)

/** What each stage makes of x, which is the residual stream before it too. */
function run(products: Product[], x: Uint16Array, options: object = {}): (Uint16Array | Float32Array)[] {
  const outputs = products.map((product) =>
    product.f32 ? new Float32Array(outputCount(product)) : new Uint16Array(outputCount(product)),
  )
  const added = outputs.filter((_, i) => products[i]!.accumulate).at(-1)
  const h = x.slice()
  ops.decodeChainCuda!(outputs, products, x, added ? h : null, options)
  if (added) expectSameBytes(h, added as Uint16Array)
  return outputs
}

function normalised(x: Float32Array, norm: Float32Array): Float32Array {
  const inverse = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + EPS)
  return fromBf16(toBf16(x.map((value, i) => value * inverse * norm[i]!)))
}

function productOf(x: Float32Array, weight: Weight): Float32Array {
  const y = new Float32Array(weight.rows)
  ops.linearReference!(y, x.slice(0, weight.cols), weight, 1, { isa: 'portable', threads: 16 })
  return y
}

const bits = (array: Uint16Array | Float32Array) =>
  new Uint16Array(array.buffer, array.byteOffset, array.byteLength / 2)

const rounded = (values: Float32Array) => fromBf16(toBf16(values))

/** What the stage makes of its source's output as it is, and of the residual stream before it. */
function expected(product: Product, source: Float32Array, h: Float32Array): Float32Array {
  const x = product.norm ? normalised(source, product.norm) : source
  const ys = product.weights.map((weight) => productOf(x, weight))
  if (product.swiglu) {
    const [gate, up] = ys.map(rounded)
    return gate!.map((value, i) => (value / (1 + Math.exp(-value))) * up![i]!)
  }
  if (product.accumulate) return ys[0]!.map((value, i) => value + h[i]!)
  return Float32Array.from(ys.flatMap((y) => [...y]))
}

function expectStages(products: Product[], x: Uint16Array, outputs: (Uint16Array | Float32Array)[]): void {
  let h = fromBf16(x)
  products.forEach((product, i) => {
    const before = outputs[product.source]
    const source = before ? fromBf16(before as Uint16Array) : fromBf16(x)
    const output = outputs[i]!
    const actual = output instanceof Float32Array ? output : fromBf16(output)
    const K = product.weights[0]!.cols
    // A normalised x that lies between two bf16 may round to either; gate and up each round before their product.
    const slack = (product.norm ? 0.02 : 0) + (product.swiglu ? 0.02 : 0)
    const rtol = product.f32 ? 1e-5 : product.swiglu ? 2 ** -5 : 2 ** -8
    const reference = expected(product, source, h)
    const largest = reference.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
    expectClose(actual, reference, atol(K) + slack * Math.min(1, largest / 8), rtol + 1e-6)
    if (product.accumulate) h = actual
  })
}

const LAYOUTS = [
  { warps: 16, slots: 5 },
  { warps: 16, slots: 4 },
  { warps: 16, slots: 3 },
  { warps: 16, slots: 2 },
  { warps: 20, slots: 4 },
  { warps: 20, slots: 3 },
]

withCuda(`chains of products on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each([
    ['tiny', { H: 512, Q: 512, KV: 128, F: 512, V: 1000 }, 2],
    ['odd units', { H: 1536, Q: 1024, KV: 72, F: 2560, V: 776 }, 2],
    ['Qwen3-0.6B', { H: 1024, Q: 2048, KV: 1024, F: 3072, V: 4096 }, 2],
    ['Qwen3-4B', { H: 2560, Q: 4096, KV: 1024, F: 9728, V: 32768 }, 1],
  ])('gives each stage of a token of %s what the CPU does, in every layout', (_name, dims, layers) => {
    const products = tokenProducts(dims, layers)
    const x = toBf16(seededValues(dims.H, 99))
    const whole = run(products, x, LAYOUTS[0])
    expectStages(products, x, whole)
    for (const layout of LAYOUTS.slice(1)) {
      const outputs = run(products, x, layout)
      // The sum of squares depends on the number of warps.
      if (layout.warps === LAYOUTS[0]!.warps)
        outputs.forEach((output, i) => expectSameBytes(bits(output), bits(whole[i]!)))
      else expectStages(products, x, outputs)
    }
  })

  it('gives the same bytes at every launch, with any number of blocks and any rings', () => {
    const dims = { H: 1024, Q: 1024, KV: 256, F: 3584, V: 6000 }
    const products = tokenProducts(dims, 3)
    const x = toBf16(seededValues(dims.H, 98))
    const once = run(products, x)
    for (const options of [
      { launches: 1 },
      { launches: 50 },
      { blocks: 1 },
      { blocks: 7, launches: 3 },
      { blocks: 100, slots: 3, launches: 20 },
      { slots: 2, launches: 20 },
    ]) {
      run(products, x, options).forEach((output, i) => expectSameBytes(bits(output), bits(once[i]!)))
    }
  })

  it('decodes every code under every scale', () => {
    // Row r: all codes in turn, scale byte r in each block.
    const [N, K] = [128, 512]
    const codes = Uint8Array.from({ length: (N * K) / 2 }, (_, i) => (2 * (i % 8)) | ((2 * (i % 8) + 1) << 4))
    const scales = Uint8Array.from({ length: (N * K) / 16 }, (_, i) => Math.min(0x7e, Math.floor(i / (K / 16))))
    const weight: Weight = { storage: 'nvfp4', rows: N, cols: K, codes, scales, globalScale: 0.25 }
    const dense = new Float32Array(N * K)
    ops.dequantizeRows!(dense, weight, 0, N, { isa: 'portable' })
    for (const column of [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 37, 255, 511]) {
      const x = new Uint16Array(K)
      x[column] = 0x3f80
      const [y] = run([{ weights: [weight], source: -1, f32: true }], x)
      expect(Array.from(y!, (value) => value + 0)).toEqual(
        Array.from({ length: N }, (_, row) => dense[row * K + column]! + 0),
      )
    }
  })

  it('refuses what it cannot do', () => {
    const x = new Uint16Array(512)
    const product = (rows: number, cols: number, more: object = {}): Product => ({
      weights: [seededWeight('nvfp4', rows, cols, 1)],
      source: -1,
      ...more,
    })
    expect(() => run([product(12, 512)], x)).toThrow('rows are no multiple of 8')
    expect(() => run([product(8, 528)], x)).toThrow('columns are no multiple of 512')
    expect(() => run([product(512, 512, { source: 0 })], x)).toThrow('its source is no earlier stage')
    expect(() => run([product(8, 512, { swiglu: true })], x)).toThrow('SwiGLU of no pair')
  })
})

if (probe.devices === 0) {
  it('says why there is no CUDA', () => {
    expect(() => run([], new Uint16Array(512))).toThrow('CUDA cannot be used')
  })
}
