// A training run in a process of its own, to be killed or to meet a full disk: node train-child.cjs <JSON of options>.
// `fill` names a folder that is filled to the last block once step 2 has its checkpoint, and emptied after the failure.
const { closeSync, openSync, readdirSync, rmSync, writeSync } = require('node:fs')
const { join, resolve } = require('node:path')
const { Qwen3Nvfp4Model, Trainer, TrainingData } = require(resolve(__dirname, '../../dist/index.cjs'))

const { config, folder, steps, fill, device = 'cpu' } = JSON.parse(process.argv[2])
const idsOf = (count, seed) => Array.from({ length: count }, (_, i) => (i * 31 + seed * 17) % config.vocabSize)

function fillDisk() {
  const filler = openSync(join(fill, 'filler'), 'w')
  try {
    for (;;) writeSync(filler, Buffer.alloc(4096))
  } catch {
    closeSync(filler)
  }
}

async function main() {
  const model = await Qwen3Nvfp4Model.initialize(config, { device, seed: 7, ...(device === 'cpu' && { threads: 1 }) })
  const data = await TrainingData.fromSamples(
    Array.from({ length: 9 }, (_, i) => ({ ids: idsOf(9, i), labels: idsOf(9, i) })),
  )
  const trainer = new Trainer({
    ...{ model, data, maxTokens: 9, steps, lr: 5e-3, checkpointDir: folder, checkpointEvery: 1, resume: true },
    optimizer: { weights: 'nvfp4+residual' },
    handleSigint: true,
  })
  trainer.on('checkpoint', ({ step }) => {
    console.log(JSON.stringify({ step }))
    if (fill && step === 2) fillDisk()
  })
  if (fill) {
    const { code, message } = await trainer.run().catch((error) => error)
    console.log(JSON.stringify({ code, message, left: readdirSync(folder).sort(), step: trainer.step }))
    rmSync(join(fill, 'filler'))
  }
  const { steps: taken, reason } = await trainer.run()
  console.log(JSON.stringify({ taken, reason }))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
