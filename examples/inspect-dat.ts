/** Lists what a .dat file holds, or the commonest bytes of one tensor. The codec alone: no addon, no model. */
import { DatReader } from 'qwen3-nvfp4/dat'

const [path, key] = process.argv.slice(2)
if (!path) {
  console.error('usage: tsx examples/inspect-dat.ts <model.dat> [key]')
  process.exit(2)
}

await using reader = await DatReader.open(path)
if (key === undefined) {
  for (const entry of reader.entries) {
    console.log(`${entry.key}  ${entry.dtype}[${entry.shape.join(', ')}]  ${entry.bytes} bytes at ${entry.offset}`)
  }
  const { entries, bytes, dtypes } = reader.summary()
  console.log(`\n${entries} entries, ${bytes} bytes`)
  for (const row of dtypes) console.log(`  ${row.dtype} (type ${row.elementType}): ${row.entries}, ${row.bytes} bytes`)
} else {
  // Bytes say something of every type: of codes the pairs of values, of scales the scales themselves.
  const counts = new Uint32Array(256)
  let bytes = 0
  for await (const chunk of reader.stream(key)) {
    bytes += chunk.length
    for (const byte of chunk) counts[byte]!++
  }
  const common = [...counts.entries()].sort(([, a], [, b]) => b - a).slice(0, 8)
  console.log(`${key}: ${bytes} bytes, ${counts.filter((count) => count > 0).length} different`)
  for (const [byte, count] of common) {
    console.log(`  0x${byte.toString(16).padStart(2, '0')}  ${((100 * count) / bytes).toFixed(1)}%`)
  }
}
