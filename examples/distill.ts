/** A loss of one's own: a student learns the whole distribution of a teacher, by the gradient of its logits. */
import { Qwen3Nvfp4Model, Tokenizer, TrainingData } from 'qwen3-nvfp4'

const [teacherPath, studentPath, tokenizerPath, textPath, outPath, steps = '50'] = process.argv.slice(2)
if (!teacherPath || !studentPath || !tokenizerPath || !textPath || !outPath) {
  console.error(
    'usage: tsx examples/distill.ts <teacher.dat> <student.dat> <folder with tokenizer.json> <text.txt> <out.dat> [steps]',
  )
  process.exit(2)
}

await using teacher = await Qwen3Nvfp4Model.load(teacherPath)
await using student = await Qwen3Nvfp4Model.load(studentPath)
await using optimizer = student.createOptimizer({ lr: 3e-3, weights: 'nvfp4+residual' })
const data = await TrainingData.fromText(textPath, { tokenizer: await Tokenizer.fromFile(tokenizerPath) })
const V = student.config.vocabSize
if (teacher.config.vocabSize !== V) throw new Error('teacher and student need the same vocabulary')

/** In place, the logits [N, V] become log-probabilities. */
function logSoftmax(logits: Float32Array): Float32Array {
  for (let begin = 0; begin < logits.length; begin += V) {
    const row = logits.subarray(begin, begin + V)
    const max = row.reduce((a, b) => Math.max(a, b))
    const logSum = max + Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0))
    for (let i = 0; i < V; i++) row[i]! -= logSum
  }
  return logits
}

let step = 0
for await (const { batch } of data.batches({ batchSize: 2, maxTokens: 32, epochs: Infinity })) {
  if (step++ === Number(steps)) break
  await using wanted = await teacher.forward(batch.ids, { logits: 'all' })
  const output = await student.forward(batch.ids, { gradient: true })
  const p = logSoftmax(await wanted.logits.toFloat32Array())
  const q = logSoftmax(await output.logits.toFloat32Array())
  // KL(p ‖ q), averaged over the N positions; its gradient by the student's logits is (q − p) / N.
  const N = q.length / V
  const divergence = p.reduce((sum, logP, i) => sum + Math.exp(logP) * (logP - q[i]!), 0) / N
  await output.backward(q.map((logQ, i) => (Math.exp(logQ) - Math.exp(p[i]!)) / N))
  await optimizer.step({ maxGradNorm: 1 })
  console.log(`step ${step}: KL ${divergence.toFixed(4)} nats`)
}
await student.saveDat(outPath)
