/** Small Qwen3 checkpoints made on the spot, and a stand-in for the core that holds what a checkpoint says. */
import { openSync, readSync, closeSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Checkpoint, DatTensor, ParameterForm, ParameterSource, Qwen3Config } from 'qwen3-nvfp4'
import { toConfigJson, writeDat } from 'qwen3-nvfp4'
import { uniformSource } from './random'

export const tinyConfig: Qwen3Config = {
  hiddenSize: 32,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 16,
  intermediateSize: 48,
  vocabSize: 40,
  ropeTheta: 5e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: false,
  eosTokenIds: [3],
}

export interface PackedOptions {
  config?: Qwen3Config
  /** `.weight.qdata` or `.qdata`. */
  spelling?: '.weight' | ''
  codesType?: 0 | 1 | 100
  scalesType?: 101 | 0 | 1 | 5 | 6
  rawType?: 5 | 6 | 15
  /** Adds a `scale_2` entry of this value to every matrix. */
  globalScale?: number
  /** The embedding as NVFP4 too. */
  packEmbedding?: boolean
}

/** Integers below `limit`, the same for the same name. */
function seededIntegers(count: number, name: string, limit: number): number[] {
  const next = uniformSource([...name].reduce((sum, letter) => sum * 31 + letter.charCodeAt(0), 7))
  return Array.from({ length: count }, () => Math.floor(next() * limit))
}

/** Scale bytes as fp16 and fp32 bit patterns of the values 2^-3 (0x20), 1 (0x38) and 1.75 (0x3e). */
const scaleBits = { 0x20: [0x3000, 0x3e000000], 0x38: [0x3c00, 0x3f800000], 0x3e: [0x3f00, 0x3fe00000] } as const

/** The tensors of a model in the prior system's layout, in its order: embedding, layers by name, norm, head. */
export function packedTensors(options: PackedOptions = {}): Map<string, DatTensor> {
  const { config = tinyConfig, spelling = '.weight', codesType = 0, scalesType = 101, rawType = 5 } = options
  const tensors = new Map<string, DatTensor>()
  const { hiddenSize: H, headDim: D, intermediateSize: F, vocabSize: V } = config
  const Q = config.numAttentionHeads * D
  const KV = config.numKeyValueHeads * D
  const raw = (name: string, ...shape: number[]) => {
    const count = shape.reduce((a, b) => a * b, 1)
    const words = seededIntegers(count, name, 0x400).map((value) => value + 0x3c00)
    const data = rawType === 6 ? Uint32Array.from(words, (word) => word << 16) : Uint16Array.from(words)
    tensors.set(`${name}.weight`, { elementType: rawType, shape, data })
  }
  const packed = (name: string, rows: number, cols: number) => {
    const codes = Uint8Array.from(seededIntegers((rows * cols) / 2, name, 256))
    const bytes = seededIntegers((rows * cols) / 16, `${name}s`, 3).map(
      (i) => [0x20, 0x38, 0x3e][i] as 0x20 | 0x38 | 0x3e,
    )
    const scales =
      scalesType === 5
        ? Uint16Array.from(bytes, (byte) => scaleBits[byte][0])
        : scalesType === 6
          ? Uint32Array.from(bytes, (byte) => scaleBits[byte][1])
          : Uint8Array.from(bytes)
    tensors.set(`${name}${spelling}.qdata`, { elementType: codesType, shape: [rows, cols / 2], data: codes })
    tensors.set(`${name}${spelling}.scale`, { elementType: scalesType, shape: [rows, cols / 16], data: scales })
    if (options.globalScale !== undefined) {
      const data = Float32Array.of(options.globalScale)
      tensors.set(`${name}${spelling}.scale_2`, { elementType: 6, shape: [], data })
    }
  }
  if (options.packEmbedding) packed('model.embed_tokens', V, H)
  else raw('model.embed_tokens', V, H)
  for (let i = 0; i < config.numHiddenLayers; i++) {
    const layer = `model.layers.${i}.`
    packed(`${layer}self_attn.q_proj`, Q, H)
    packed(`${layer}self_attn.k_proj`, KV, H)
    packed(`${layer}self_attn.v_proj`, KV, H)
    packed(`${layer}self_attn.o_proj`, H, Q)
    raw(`${layer}self_attn.q_norm`, D)
    raw(`${layer}self_attn.k_norm`, D)
    packed(`${layer}mlp.gate_proj`, F, H)
    packed(`${layer}mlp.up_proj`, F, H)
    packed(`${layer}mlp.down_proj`, H, F)
    raw(`${layer}input_layernorm`, H)
    raw(`${layer}post_attention_layernorm`, H)
  }
  raw('model.norm', H)
  if (!config.tieWordEmbeddings) packed('lm_head', V, H)
  return tensors
}

/** Writes tensors and their config.json into a folder; gives the path of the .dat. */
export async function writeModel(
  folder: string,
  tensors: Map<string, DatTensor>,
  config: Qwen3Config = tinyConfig,
): Promise<string> {
  const path = join(folder, 'model.dat')
  await writeDat(path, tensors)
  writeFileSync(join(folder, 'config.json'), JSON.stringify(toConfigJson(config)))
  return path
}

const storages = { f32: 'fp32', f16: 'fp16', bf16: 'bf16' } as const

/** Reads every source into memory, scales as E4M3, as csrc/model/load.h does; a test may change forms and parts. */
export class FakeModel implements ParameterSource {
  readonly parameters: ParameterForm[] = []
  readonly parts = new Map<string, Uint8Array>()

  /** `entries` of the file give the shapes, which the sources leave to the configuration. */
  constructor({ sources, files }: Checkpoint, entries: readonly { key: string; shape: readonly number[] }[]) {
    const shapes = new Map(entries.map(({ key, shape }) => [key.replace(/(\.weight)?(\.qdata)?$/, '.weight'), shape]))
    const read = ({ file, offset, bytes }: { file: number; offset: number; bytes: number }) => {
      const target = new Uint8Array(bytes)
      const descriptor = openSync(files[file]!, 'r')
      readSync(descriptor, target, 0, bytes, offset)
      closeSync(descriptor)
      return target
    }
    for (const source of sources) {
      const { parameter: name, values, codes, scales, globalScale = 1, twoLevel = false } = source
      const { residualCodes, residualScales } = source
      const shape = shapes.get(name)!
      const [rows, cols] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]! * (codes ? 2 : 1)]
      const storage = values ? storages[values.dtype as keyof typeof storages] : 'nvfp4'
      const form: ParameterForm = { name, rows, cols, isVector: shape.length === 1, storage, twoLevel, globalScale }
      this.parameters.push({ ...form, residual: residualCodes !== undefined })
      if (values) this.parts.set(`${name}:values`, read(values))
      if (codes) this.parts.set(`${name}:codes`, read(codes))
      if (scales) this.parts.set(`${name}:scales`, toE4m3(read(scales), scales.dtype))
      if (residualCodes) this.parts.set(`${name}:residualCodes`, read(residualCodes))
      if (residualScales) this.parts.set(`${name}:residualScales`, toE4m3(read(residualScales), residualScales.dtype))
    }
  }

  form(name: string): ParameterForm {
    return this.parameters.find((form) => form.name === name)!
  }

  async read(name: string, part: string, offset: number, target: Uint8Array): Promise<void> {
    target.set(this.parts.get(`${name}:${part}`)!.subarray(offset, offset + target.length))
  }
}

function toE4m3(bytes: Uint8Array, dtype: string): Uint8Array {
  if (dtype === 'e4m3') return bytes
  const column = dtype === 'f16' ? 0 : 1
  const words = column === 0 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer)
  const byteOf = new Map(
    Object.entries(scaleBits).map(([byte, bits]) => [bits[column], Number(byte)] as [number, number]),
  )
  return Uint8Array.from(words, (word) => byteOf.get(word)!)
}
