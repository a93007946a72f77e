import type { SingleBar } from 'cli-progress'
import type { TrainerEvent } from './trainer-events'

/** A line on stderr that follows the events of a run. */
export class ProgressBar {
  readonly #bar: SingleBar
  #validation = ''

  private constructor(bar: SingleBar) {
    this.#bar = bar
  }

  /** `total` is 0 when the length of the run is not known. */
  static async start(step: number, total: number): Promise<ProgressBar> {
    const { default: cliProgress } = await import('cli-progress')
    const bar = new cliProgress.SingleBar({
      format: `${total > 0 ? '{bar} {value}/{total}' : '{value}'}  loss {loss}{validation}  lr {lr}  {speed} tokens/s  {duration_formatted}`,
      barsize: 24,
      fps: 5,
      noTTYOutput: true,
      notTTYSchedule: 10_000,
      linewrap: null,
    })
    bar.start(total || Number.MAX_SAFE_INTEGER, step, { loss: '-', validation: '', lr: '-', speed: '-' })
    return new ProgressBar(bar)
  }

  show(event: TrainerEvent): void {
    if (event.type === 'eval') this.#validation = `  validation ${event.loss.toFixed(4)}`
    if (event.type !== 'step') return
    const { step, loss, lr, tokens, seconds } = event
    this.#bar.update(step, {
      loss: loss.toFixed(4),
      validation: this.#validation,
      lr: lr.toExponential(2),
      speed: (tokens / seconds).toFixed(0),
    })
  }

  stop(): void {
    this.#bar.stop()
  }
}
