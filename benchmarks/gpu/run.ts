/**
 * Our model on one GPU beside its limits and Hugging Face transformers, as a table for benchmarks/results/<gpu>.md.
 *
 *   npm run bench:gpu -- [--only decode,prefill,load,train] [--quick] [--no-peer] [--compiled] [--config 4b|small]
 *                        [--device cuda:0] [--steps 20] [--lr 1e-4] [--bandwidth 4.3e12] [--flops 790e12] [--link 55e9]
 *
 * --compiled also measures the peer with torch.compile, which takes minutes. The limits are those of an H200 unless
 * --bandwidth, --flops and --link say otherwise. Memory is that of a run of one section: --only train. --config small
 * --device cpu tries the script out.
 */
import { parseArgs } from 'node:util'
import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { measureDecode } from './decode'
import { measureLoad } from './load'
import { type Bench, memoryNote, type Row, secondsOf } from './measure'
import { type PeerLine, peerObstacle, runPeer } from './peer'
import { measurePrefill } from './prefill'
import { measureTrain } from './train'
import { workloads } from './workloads'

// Training last: its weights are no longer random.
const sections = { prefill: measurePrefill, decode: measureDecode, load: measureLoad, train: measureTrain }

const { values } = parseArgs({
  allowNegative: true,
  options: {
    only: { type: 'string', default: Object.keys(sections).join(',') },
    quick: { type: 'boolean', default: false },
    peer: { type: 'boolean', default: true },
    compiled: { type: 'boolean', default: false },
    config: { type: 'string', default: '4b' },
    device: { type: 'string', default: 'cuda:0' },
    steps: { type: 'string', default: '20' },
    lr: { type: 'string', default: '1e-4' },
    bandwidth: { type: 'string', default: '4.3e12' },
    flops: { type: 'string', default: '790e12' },
    link: { type: 'string', default: '55e9' },
  },
})
const only = values.only.split(',')
const workload = workloads[values.config]
if (!workload) throw new RangeError(`Expected --config of ${Object.keys(workloads)} but received ${values.config}`)
for (const name of only) {
  if (!(name in sections)) throw new RangeError(`Expected --only of ${Object.keys(sections)} but received ${name}`)
}

async function measurePeer(): Promise<Map<string, PeerLine>> {
  const asked = only.filter((name) => name !== 'load')
  if (!values.peer || asked.length === 0) return new Map()
  const obstacle = peerObstacle()
  if (obstacle) {
    console.log(`The peer is absent: ${obstacle}.`)
    return new Map()
  }
  const parts = ['machine', ...asked, ...(values.compiled && only.includes('decode') ? ['compiled'] : [])]
  const device = values.device.startsWith('cuda') ? 'cuda' : 'cpu'
  const quick = values.quick ? ['--quick'] : []
  return runPeer(['--only', parts.join(','), '--config', values.config, '--device', device, ...quick])
}

const show = (value: number, unit: string): string => `${value.toFixed(value < 100 ? 1 : 0)} ${unit}`

function tableOf(rows: readonly Row[], peer: Map<string, PeerLine>): string {
  const lines = rows.map(({ what, ours, unit, limit, peers, note }) => {
    const rates = Object.entries(peers).flatMap(([name, id]) => {
      const line = peer.get(id)
      const value = unit === 'ms' ? Number(line?.['seconds']) * 1000 : Number(line?.value)
      return value > 0 ? [{ name, value }] : []
    })
    const fraction = unit === 'ms' ? limit / ours : ours / limit
    const ratios = rates.map(({ value }) => (unit === 'ms' ? value / ours : ours / value))
    const best = ratios.length > 0 ? `${Math.min(...ratios).toFixed(2)}×` : '–'
    const theirs = rates.map(({ name, value }) => `${show(value, unit)} ${name}`).join(', ') || '–'
    const percent = `${(100 * fraction).toFixed(0)} %`
    return `| ${what} | ${show(ours, unit)} | ${show(limit, unit)} | ${percent} | ${theirs} | ${best} | ${note} |`
  })
  const head = '| what | ours | limit | of limit | Hugging Face | ratio to its best | |'
  return [head, '| --- | --- | --- | --- | --- | --- | --- |', ...lines].join('\n')
}

async function main(): Promise<void> {
  const peer = await measurePeer()
  const rows: Row[] = []
  const remarks: string[] = []
  const { device } = values
  let model!: Qwen3Nvfp4Model
  const made = await secondsOf(async () => {
    model = await Qwen3Nvfp4Model.initialize(workload!.config, { device, seed: 1 })
  })
  const millions = (model.parameterCount / 1e6).toPrecision(4)
  remarks.push(
    `${millions} M random NVFP4 weights made on ${device} in ${made.toFixed(2)} s, ${await memoryNote(model)}`,
  )
  const bench: Bench = {
    workload: workload!,
    machine: {
      bytesPerSecond: Number(values.bandwidth),
      flopsPerSecond: Number(values.flops),
      linkBytesPerSecond: Number(values.link),
    },
    device,
    quick: values.quick,
    steps: Number(values.steps),
    lr: Number(values.lr),
    model,
    add: (row) => void rows.push(row),
    say: (line) => void remarks.push(line),
    async attempt(what, work) {
      try {
        await work()
      } catch (error) {
        remarks.push(`${what} failed: ${error instanceof Error ? error.message : String(error)}`)
        process.exitCode = 1
      }
    },
  }
  for (const [name, measure] of Object.entries(sections)) {
    if (only.includes(name)) await measure(bench)
  }
  await model.dispose()
  const about = peer.get('peer')
  if (about) remarks.unshift(`Peer: ${String(about['name'])} on ${String(about['gpu'])}`)
  const date = new Date().toISOString().slice(0, 10)
  console.log(`\n\`npm run bench:gpu -- ${process.argv.slice(2).join(' ')}\`, ${date}\n`)
  console.log(`${tableOf(rows, peer)}\n\n${remarks.map((line) => `- ${line}`).join('\n')}`)
}

void main()
