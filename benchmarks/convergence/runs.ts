/** What is run: arms, rates and seeds. A run is one process, which is given this object as JSON. */
import type { LoadOptions, OptimizerOptions } from 'qwen3-nvfp4'

export interface Run {
  id: string
  arm: string
  /** 'ours' is ours.ts; 'peer' is peer.py. */
  program: 'ours' | 'peer'
  /** 'scratch' from random weights, 'tuning' from what the peer trained, on other text. */
  task: 'scratch' | 'tuning'
  /** Folders and texts that prepare.py made. */
  from: string
  text: string
  seed: number
  lr: number
  betas: [number, number]
  weightDecay: number
  steps: number
  warmup: number
  batch: number
  tokens: number
  /** Ours: how the weights are loaded and what the optimizer keeps. */
  load?: LoadOptions
  optimizer?: OptimizerOptions
  /** Ours: 'late' is trainStep(), 'exact' keeps the gradients and clips by their own norm. Default: 'late'. */
  clip?: 'late' | 'exact'
  /** Peer: 'fp32', or 'prior' for the prior system's state. */
  state?: 'fp32' | 'prior'
  /** Peer: the folder that its weights are saved to at the end. */
  save?: string
}

export interface Arm {
  title: string
  program: Run['program']
  load?: LoadOptions
  optimizer?: OptimizerOptions
  clip?: Run['clip']
  state?: Run['state']
}

const nvfp4: LoadOptions = { weights: 'nvfp4' }
const ours = (title: string, load: LoadOptions, optimizer: OptimizerOptions): Arm => ({
  title,
  program: 'ours',
  load,
  optimizer,
})

/** Straight-through estimation with fp32 masters and moments: what the others are measured against. */
export const reference = 'straight-through'

export const arms: Record<string, Arm> = {
  peer: { title: 'PyTorch, fp32 weights and AdamW, bf16 autocast', program: 'peer', state: 'fp32' },
  dense: ours('fp32 weights and moments', { weights: 'fp32' }, { moments: 'fp32' }),
  [reference]: ours('NVFP4 with fp32 masters, fp32 moments', nvfp4, { weights: 'fp32', moments: 'fp32' }),
  'moments-nvfp4': ours('NVFP4 with fp32 masters, **NVFP4 moments**', nvfp4, { weights: 'fp32', moments: 'nvfp4' }),
  'moments-int8': ours('NVFP4 with fp32 masters, int8 moments', nvfp4, { weights: 'fp32', moments: 'int8' }),
  residual: ours('**NVFP4 + residual**, NVFP4 moments', nvfp4, { weights: 'nvfp4+residual', moments: 'nvfp4' }),
  'residual-aside': ours('NVFP4 + residual that the forward pass does not see, NVFP4 moments', nvfp4, {
    weights: 'nvfp4+residual',
    moments: 'nvfp4',
    residualInForward: false,
  }),
  nvfp4: ours('**everything NVFP4**', nvfp4, { weights: 'nvfp4', moments: 'nvfp4' }),
  'nvfp4-int8': ours('NVFP4, int8 moments', nvfp4, { weights: 'nvfp4', moments: 'int8' }),
  'nvfp4-fp32': ours('NVFP4, fp32 moments', nvfp4, { weights: 'nvfp4', moments: 'fp32' }),
  prior: { title: "the prior system's recipe, in PyTorch", program: 'peer', state: 'prior' },
  'dense-exact-clip': {
    ...ours('fp32 weights and moments, clipped by their own norm', { weights: 'fp32' }, { moments: 'fp32' }),
    clip: 'exact',
  },
  'straight-through-exact-clip': {
    ...ours('fp32 masters and moments, clipped by their own norm', nvfp4, { weights: 'fp32', moments: 'fp32' }),
    clip: 'exact',
  },
}

/** Arms of every rate and seed. */
const main = [reference, 'moments-nvfp4', 'residual', 'nvfp4', 'dense']

export interface Size {
  scratch: Pick<Run, 'steps' | 'warmup' | 'batch' | 'tokens'>
  tuning: Pick<Run, 'steps' | 'warmup' | 'batch' | 'tokens'>
}

export const sizes: Record<string, Size> = {
  // 15.4 and 4.9 million tokens
  '25m': {
    scratch: { steps: 1250, warmup: 100, batch: 24, tokens: 512 },
    tuning: { steps: 600, warmup: 20, batch: 16, tokens: 512 },
  },
  check: {
    scratch: { steps: 100, warmup: 20, batch: 24, tokens: 512 },
    tuning: { steps: 50, warmup: 5, batch: 16, tokens: 512 },
  },
  tiny: {
    scratch: { steps: 40, warmup: 10, batch: 4, tokens: 64 },
    tuning: { steps: 20, warmup: 5, batch: 4, tokens: 64 },
  },
}

/** The rate of which the fine-tuning starts. */
const MIDDLE = 1e-3
const source = 'trained'

const scratch = (size: Size, arm: string, lr: number, seed = 1): Run => {
  const { title: _, ...how } = arms[arm]!
  const id = `scratch ${arm} ${lr} ${seed}`
  const common = { task: 'scratch' as const, from: `init-${seed}`, text: 'python', weightDecay: 0.1, ...size.scratch }
  const save = arm === 'peer' && lr === MIDDLE && seed === 1 ? { save: source } : {}
  return { id, arm, lr, seed, betas: [0.9, 0.95], ...common, ...how, ...save }
}

const tuning = (size: Size, arm: string, lr: number, seed = 1): Run => {
  const { title: _, ...how } = arms[arm]!
  const id = `tuning ${arm} ${lr} ${seed}`
  const common = { task: 'tuning' as const, from: source, text: 'headers', weightDecay: 0, ...size.tuning }
  return { id, arm, lr, seed, betas: [0.9, 0.999], ...common, ...how }
}

const each = <T>(list: readonly T[], make: (item: T) => Run[]): Run[] => list.flatMap(make)

/** What one session on the GPUs runs, the most wanted first. */
export const plans: Record<string, (size: Size) => Run[]> = {
  check: (size) => [
    scratch(size, 'peer', MIDDLE),
    ...each([reference, 'nvfp4', 'residual', 'dense', 'dense-exact-clip', 'prior'], (arm) => [
      scratch(size, arm, MIDDLE),
    ]),
    ...each(['nvfp4', 'peer', 'prior'], (arm) => [tuning(size, arm, 1e-4)]),
  ],
  full: (size) => [
    ...each([MIDDLE, 5e-4, 2e-3], (lr) => [scratch(size, 'peer', lr)]),
    ...each([MIDDLE, 2e-3, 5e-4], (lr) => each(main, (arm) => [scratch(size, arm, lr)])),
    ...each(['dense-exact-clip', 'straight-through-exact-clip'], (arm) => [scratch(size, arm, MIDDLE)]),
    ...each([1e-4, 3e-5, 1e-5], (lr) => each([...main, 'peer'], (arm) => [tuning(size, arm, lr)])),
    ...each(['prior', 'residual-aside', 'nvfp4-int8', 'moments-int8'], (arm) => [scratch(size, arm, MIDDLE)]),
    ...each([1e-4, 1e-5], (lr) => each(['prior', 'residual-aside', 'nvfp4-int8'], (arm) => [tuning(size, arm, lr)])),
    ...each([2, 3], (seed) => each(main, (arm) => [scratch(size, arm, MIDDLE, seed)])),
    ...each([2, 3], (seed) => each(main, (arm) => [tuning(size, arm, 3e-5, seed)])),
    scratch(size, 'nvfp4-fp32', MIDDLE),
    ...each(['residual-aside', 'nvfp4-int8'], (arm) => [scratch(size, arm, 2e-3)]),
    ...each(['nvfp4', reference], (arm) => [scratch(size, arm, 4e-3)]),
  ],
}
