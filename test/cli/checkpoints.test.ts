/** convert, inspect and verify from a shell. */
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CheckpointInspection, ConvertResult, VerifyResult } from 'qwen3-nvfp4'
import { writeDense } from '../support/dense-directory'
import { listFolder, temporaryFolder } from '../support/files'
import { runCli } from '../support/run-cli'

describe('the commands about checkpoints', () => {
  it('convert a directory, inspect what came out and verify it, with one JSON value each', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const target = join(folder, 'model.dat')
    const converted = await runCli([
      'convert',
      source,
      target,
      '--scales=two-level',
      '--dense',
      'layers.0.,o_proj',
      '--json',
    ])
    expect([converted.code, converted.stderr]).toEqual([0, ''])
    const { files, tensors } = JSON.parse(converted.stdout) as ConvertResult
    expect(files[0]).toBe(target)
    expect(tensors.filter(({ to }) => to === 'nvfp4').map(({ name }) => name)).toEqual(
      ['q', 'k', 'v']
        .map((x) => `model.layers.1.self_attn.${x}_proj.weight`)
        .concat(['gate', 'up', 'down'].map((x) => `model.layers.1.mlp.${x}_proj.weight`)),
    )
    const inspected = await runCli(['inspect', target, '--json'])
    expect(inspected.code).toBe(0)
    expect((JSON.parse(inspected.stdout) as CheckpointInspection).tensors).toHaveLength(24 + 2 * 6)
    const verified = await runCli(['verify', source, target, '--tolerance', '0.3', '--json'])
    expect(JSON.parse(verified.stdout) as VerifyResult).toMatchObject({ equal: true, compared: 24 })
    expect(verified.code).toBe(0)
  })

  it('say in words what was written, what is in it and what differs, and end with 1 when something does', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const target = join(folder, 'out')
    const converted = await runCli(['convert', source, target, '--format=modelopt', '--report'])
    expect(converted.stdout).toMatch(/out\/model\.safetensors\n.*config\.json/s)
    expect(converted.stdout).toMatch(/24 parameters in .* 14 of them changed, most model\.layers\.\d.* % RMS\)/)
    expect(converted.stdout).toMatch(/self_attn\.q_proj\.weight +bf16 +nvfp4 +\d+\.\d+ %/)
    const inspected = await runCli(['inspect', target, '--tensors', '--scales'])
    expect(inspected.stdout).toMatch(/modelopt .* 52 tensors\n.*2 layers, hidden 48, heads 3\/1 of 16, .* tied/)
    expect(inspected.stdout).toMatch(/q_proj\.weight_scale_2 +float32 +\[\] +4/)
    const verified = await runCli(['verify', source, target])
    expect(verified.code).toBe(1)
    expect(verified.stdout).toMatch(
      /q_proj\.weight: values: \d+ of 2304 values differ, by at most .*\n24 parameters compared, 14 differ/s,
    )
  })

  it('end with 1 for a checkpoint that would not load, and list why', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    writeFileSync(join(source, 'config.json'), '{"model_type": "llama"}')
    const { code, stdout } = await runCli(['inspect', source])
    expect([code, stdout]).toEqual([
      1,
      expect.stringMatching(/problems: 1\n.*Expected "qwen3" for model_type but received "llama"/),
    ])
  })

  it('refuse with 2 what cannot be meant, and leave nothing when stopped', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const target = join(folder, 'out')
    const wrong = await runCli(['convert', source, target])
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining('for format')])
    const mixed = await runCli(['convert', source, target, '--format', 'modelopt', '--scales', 'one-level'])
    expect([mixed.code, mixed.stderr]).toEqual([2, expect.stringContaining('about a .dat')])
    const full = await runCli(['convert', source, source, '--format', 'hf-bf16'])
    expect([full.code, full.stderr]).toEqual([1, expect.stringContaining('SAVE_TARGET_EXISTS')])
    expect(existsSync(target)).toBe(false)
    expect(listFolder(folder)).toEqual(['source'])
  })
})
