import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { MemoryReport } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { idsOf, tinyModel } from '../support/tiny-model'

test('a report has what every phase of a step holds, by kind', async () => {
  await using model = await tinyModel()
  const report = new MemoryReport(model)
  await report.record('model_loaded')
  const optimizer = model.createOptimizer()
  await optimizer.stateBytes()
  await report.record('state_initialized')
  const loss = await model.loss(idsOf(16), idsOf(16))
  await report.record('forward_done')
  await loss.backward()
  await report.record('backward_done')
  await optimizer.step()
  await report.record('optimizer_step_done')

  const path = join(temporaryFolder(), 'memory.json')
  await report.save(path)
  const { phases, ...head } = JSON.parse(readFileSync(path, 'utf8'))
  const parameters = model.parameterCount
  expect(head).toEqual({ format: 'qwen3-nvfp4-memory', version: 1, device: 'cpu', parameters })
  const arenas = report.phases.map(({ arena }) => arena)
  const [loaded, ready, forward, backward, stepped] = arenas as [(typeof arenas)[0], ...typeof arenas]
  expect(loaded.weights).toBeGreaterThan(0)
  // The device is the process's: models of other tests may still hold some of it.
  expect(ready!.moments - loaded.moments).toBe(await optimizer.stateBytes())
  expect(forward!.activations).toBeGreaterThan(ready!.activations)
  expect(backward!.gradients).toBeGreaterThan(forward!.gradients)
  expect(stepped!.peak).toBeGreaterThanOrEqual(backward!.total)
  for (const [i, phase] of report.phases.entries()) {
    expect(phase.gpu).toBeNull()
    expect(phase.processBytes).toBeGreaterThan(2 ** 20)
    expect(phase.seconds).toBeGreaterThanOrEqual(report.phases[i - 1]?.seconds ?? 0)
    expect(phases[i]).toEqual(phase)
  }
  await optimizer.dispose()
})
