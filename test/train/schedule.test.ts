import { learningRate, planSchedule, type ScheduleOptions } from 'qwen3-nvfp4'

const rates = (options: ScheduleOptions, steps: number): number[] => {
  const plan = planSchedule(options, steps)
  return Array.from({ length: steps }, (_, i) => learningRate(plan, i + 1))
}

const expectRates = (options: ScheduleOptions, expected: number[]) =>
  rates(options, expected.length).forEach((rate, i) => expect(rate).toBeCloseTo(expected[i]!, 12))

describe('the learning rate', () => {
  test('rises over the warm-up and falls along half a cosine towards minLr', () => {
    const half = (progress: number) => 0.2 + 0.8 * 0.5 * (1 + Math.cos(Math.PI * progress))
    expectRates({ lr: 1, minLr: 0.2, warmupSteps: 2 }, [0.5, 1, half(0), half(0.25), half(0.5), half(0.75)])
  })

  test('falls along a line', () => {
    expectRates({ lr: 1, schedule: 'linear' }, [1, 0.75, 0.5, 0.25])
  })

  test('stays', () => {
    expectRates({ lr: 0.5, schedule: 'constant', warmupSteps: 1 }, [0.5, 0.5, 0.5])
    const endless = planSchedule({ lr: 0.5, schedule: 'constant' }, undefined)
    expect(learningRate(endless, 1e9)).toBe(0.5)
  })

  test('is stable until the last decaySteps', () => {
    expectRates({ lr: 1, schedule: 'wsd', warmupSteps: 1, decaySteps: 2 }, [1, 1, 1, 1, 0.5])
    expect(planSchedule({ schedule: 'wsd' }, 100).decaySteps).toBe(20)
  })

  test('never falls to nothing before the end, and stays low behind it', () => {
    for (const schedule of ['cosine', 'linear', 'wsd'] as const) {
      const plan = planSchedule({ lr: 1, schedule, warmupSteps: 3 }, 50)
      expect(learningRate(plan, 50)).toBeGreaterThan(0)
      expect(learningRate(plan, 60)).toBe(0)
    }
  })

  test.each<[ScheduleOptions, number | undefined, string]>([
    [{ schedule: 'cosin' as 'cosine' }, 10, "Expected 'cosine' | 'linear' | 'constant' | 'wsd' for schedule"],
    [{ lr: -1 }, 10, 'Expected a finite number of at least 0 for lr but received -1'],
    [{ lr: 1, minLr: 2 }, 10, 'Expected a finite number of at least 0 and at most 1 for minLr but received 2'],
    [{ decaySteps: 2 }, 10, "Expected nothing with schedule 'cosine' for decaySteps but received 2"],
    [{ warmupSteps: 11 }, 10, 'Expected at most the 10 steps of the run for warmupSteps but received 11'],
    [{}, undefined, "Expected a number of steps with schedule 'cosine'"],
  ])('refuses %j over %s steps', (options, steps, message) => {
    expect(() => planSchedule(options, steps)).toThrow(message)
  })
})
