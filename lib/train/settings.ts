/** What a run's losses depend on, and how two runs differ in it. */
import { createHash } from 'node:crypto'
import type { PackedAdamW } from '../model/packed-adamw'
import { toConfigJson } from '../model/config'
import type { SchedulePlan } from './schedule'
import type { TrainerPlan } from './trainer-plan'

type Setting = string | number | boolean | null

export type Settings = Record<string, Setting>

export function settingsOf(plan: TrainerPlan, schedule: SchedulePlan, optimizer: PackedAdamW): Settings {
  const { gradients, native } = optimizer.plan
  const { trainable, stepChunkRows: _, seed: roundingSeed, ...adamw } = native
  const { batchSize, maxTokens, pack, shuffle, truncate, seed } = plan.batches
  const settings: Record<string, unknown> = {
    ...Object.fromEntries(
      Object.entries(toConfigJson(plan.model.config)).map(([key, value]) => [`model.${key}`, value]),
    ),
    data: plan.data.fingerprint,
    ...{ batchSize, maxTokens, pack, shuffle: shuffle ?? null, truncate, seed: String(seed) },
    accumulate: plan.accumulate,
    epochs: plan.epochs === Infinity ? null : plan.epochs,
    ...schedule,
    maxGradNorm: plan.maxGradNorm ?? null,
    skipLossFactor: plan.skipLossFactor ?? null,
    skipNormFactor: plan.skipNormFactor ?? null,
    loss: plan.teacher ? 'hidden-l1' : 'cross-entropy',
    ...adamw,
    roundingSeed: String(roundingSeed),
    gradients: plan.keepsGradients ? gradients.format : null,
    trainable: `${trainable.length} parameters, ${hash(trainable.join('\n'))}`,
  }
  // A constant rate does not know how long the run is.
  if (schedule.schedule === 'constant') for (const name of ['steps', 'epochs']) delete settings[name]
  return Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [name, isSetting(value) ? value : JSON.stringify(value)]),
  )
}

/** Differences in words, but for the settings in `allowed`. */
export function settingDifferences(saved: Settings, now: Settings, allowed: readonly string[]): string[] {
  return Object.keys({ ...saved, ...now })
    .filter((name) => saved[name] !== now[name] && !allowed.includes(name))
    .map((name) => `${name} was ${show(saved[name])} and is ${show(now[name])}`)
}

const show = (value: Setting | undefined) => (value === undefined ? 'not set' : JSON.stringify(value))

const isSetting = (value: unknown): value is Setting =>
  value === null || ['string', 'number', 'boolean'].includes(typeof value)

const hash = (text: string) => createHash('sha256').update(text).digest('hex').slice(0, 16)
