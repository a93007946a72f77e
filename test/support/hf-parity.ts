/** Checkpoints that Hugging Face transformers saved, with what it computes from them in fp32: ../shared/data/hf-parity/*. */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { type PackedAdamW, type Qwen3Nvfp4Model, SafetensorsReader } from 'qwen3-nvfp4'
import { sharedPath } from './files'

const root = process.env['QN_HF_PARITY'] ?? sharedPath('hf-parity')
const checkpoints = existsSync(root)
  ? readdirSync(root).filter((name) => existsSync(join(root, name, 'reference.safetensors')))
  : []

export interface Checkpoint {
  name: string
  folder: string
  reference: Reference
}

/** `body` for every checkpoint there is, or a skip that says why there is none. `reference` may be read from beforeAll on. */
export function describeCheckpoints(
  title: string,
  body: (checkpoint: Checkpoint) => void,
  describer: (title: string, body: () => void) => void = describe,
): void {
  if (checkpoints.length === 0) {
    console.log(`skipped: no Hugging Face references in ${root}`)
    describe.skip(`${title} (no checkpoint)`, () => test('has nothing to compare with', () => {}))
  }
  for (const name of checkpoints) {
    const folder = join(root, name)
    describer(`${title} ${name}`, () => {
      const checkpoint = { name, folder } as Checkpoint
      beforeAll(async () => {
        checkpoint.reference = await readReference(folder)
      })
      body(checkpoint)
    })
  }
}

export type Reference = Awaited<ReturnType<typeof readReference>>

async function readReference(folder: string) {
  const reader = await SafetensorsReader.open(join(folder, 'reference.safetensors'))
  const tensors = new Map<string, { shape: number[]; data: Float32Array | Int32Array }>()
  for (const { key, shape } of reader.entries) {
    const data = await reader.read(key)
    tensors.set(key, { shape, data: data as Float32Array | Int32Array })
  }
  await reader.close()
  const get = (key: string) => {
    const found = tensors.get(key)
    if (!found) throw new Error(`no ${key} in ${folder}`)
    return found
  }
  return {
    keys: [...tensors.keys()],
    floats: (key: string) => get(key).data as Float32Array,
    /** An i32[B, T] tensor as rows. */
    rows(key: string): number[][] {
      const { shape, data } = get(key)
      const [batch, tokens] = shape as [number, number]
      return Array.from({ length: batch }, (_, b) => Array.from(data.subarray(b * tokens, (b + 1) * tokens)))
    },
    integers: (key: string) => Array.from(get(key).data),
    /** Gradients by the name of their parameter. */
    gradients(): [string, Float32Array][] {
      const keys = [...tensors.keys()].filter((key) => key.startsWith('grad.'))
      return keys.map((key) => [key.slice('grad.'.length), get(key).data as Float32Array])
    },
  }
}

/** What the AdamW steps of the references were made with. */
export const referenceAdamw = { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, moments: 'fp32' } as const

/** The loss before one AdamW step on the reference's batch, taken in either way. */
export async function stepLoss(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  reference: Reference,
  how: string,
): Promise<number> {
  const [ids, labels] = [reference.rows('input_ids'), reference.rows('labels')]
  if (how === 'trainStep') return (await optimizer.trainStep({ ids, labels })).loss
  const loss = await model.loss(ids, labels)
  await loss.backward()
  await optimizer.step()
  return loss.value
}
