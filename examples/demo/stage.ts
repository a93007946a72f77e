/** What every stage is started with. */
export interface StageOptions {
  /** Where the stages leave files for each other. */
  folder: string
  seed: number
  /** Threads of the CPU device; undefined: all cores. */
  threads: number | undefined
}
