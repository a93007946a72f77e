import { extname } from 'node:path'
import { checkPath, wrongValue } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { writeFileAtomic } from '../format/atomic-file'

export interface LossCurves {
  title?: string
  /** The mean loss of steps up to each. */
  training: readonly { step: number; loss: number }[]
  /** Losses of validations. Default: none. */
  validation?: readonly { step: number; loss: number }[]
}

const width = 900
const height = 480
const margin = { top: 36, right: 24, bottom: 44, left: 64 }
const colours = { training: '#1f6feb', validation: '#d1480a', grid: '#d8dee4', text: '#1f2328' }

/** The path of a file for a curve: `.svg` or `.png`. */
export function checkCurvePath(value: unknown): string {
  const path = checkPath('lossCurve', value)
  if (!['.svg', '.png'].includes(extname(path).toLowerCase()))
    throw wrongValue('a path that ends in .svg or .png', 'lossCurve', path)
  return path
}

/** Draws the curves into a file, whole or not at all. A `.png` needs the package @resvg/resvg-js. */
export async function writeLossCurve(path: string | URL, curves: LossCurves): Promise<void> {
  const file = checkCurvePath(path)
  const svg = await renderLossCurve(curves)
  const isPng = extname(file).toLowerCase() === '.png'
  await writeFileAtomic(file, isPng ? await toPng(svg) : new TextEncoder().encode(svg))
}

/** The curves as the text of an SVG, with a logarithmic axis of losses. */
export async function renderLossCurve({ title = 'Loss', training, validation = [] }: LossCurves): Promise<string> {
  const [{ scaleLinear, scaleLog }, { line }] = await Promise.all([import('d3-scale'), import('d3-shape')])
  // A loss of 0 has no logarithm; nothing below this is worth seeing.
  const points = (series: typeof training) => series.map(({ step, loss }) => ({ step, loss: Math.max(loss, 1e-6) }))
  const shown = { training: points(training), validation: points(validation) }
  const all = [...shown.training, ...shown.validation]
  const losses = all.length > 0 ? all.map(({ loss }) => loss) : [1]
  const lastStep = all.reduce((most, { step }) => Math.max(most, step), 1)
  const x = scaleLinear([0, lastStep], [margin.left, width - margin.right])
  const y = scaleLog(
    [losses.reduce((a, b) => Math.min(a, b)), losses.reduce((a, b) => Math.max(a, b))],
    [height - margin.bottom, margin.top],
  ).nice()
  const path = line<{ step: number; loss: number }>(
    ({ step }) => x(step),
    ({ loss }) => y(loss),
  ).digits(1)
  const yLabel = y.tickFormat(6, '.3~g')
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12" fill="${colours.text}">`,
    `<rect width="100%" height="100%" fill="white"/>`,
    `<text x="${margin.left}" y="22" font-size="14">${escape(title)}</text>`,
    ...x.ticks(8).map((step) => tick(x(step), height - margin.bottom, x.tickFormat(8)(step), 'x')),
    ...y.ticks(6).map((loss) => tick(margin.left, y(loss), yLabel(loss), 'y')),
    `<text x="${(margin.left + width) / 2}" y="${height - 8}" text-anchor="middle">step</text>`,
    curve(path(shown.training), colours.training, 'training', 0),
    ...(shown.validation.length > 0 ? [curve(path(shown.validation), colours.validation, 'validation', 1)] : []),
    '</svg>\n',
  ].join('\n')
}

function tick(x: number, y: number, label: string, axis: 'x' | 'y'): string {
  const place =
    axis === 'x' ? `x="${x}" y="${y + 18}" text-anchor="middle"` : `x="${x - 8}" y="${y + 4}" text-anchor="end"`
  const line =
    axis === 'x' ? `M${x},${margin.top}V${height - margin.bottom}` : `M${margin.left},${y}H${width - margin.right}`
  return `<path d="${line}" stroke="${colours.grid}"/><text ${place}>${escape(label)}</text>`
}

function curve(path: string | null, colour: string, name: string, index: number): string {
  const x = width - margin.right - 180 + 90 * index
  return (
    `<path d="${path ?? ''}" fill="none" stroke="${colour}" stroke-width="1.5" stroke-linejoin="round"/>` +
    `<text x="${x}" y="22" fill="${colour}">${name}</text>`
  )
}

const escape = (text: string) => text.replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c]!)

interface Resvg {
  Resvg: new (svg: string) => { render(): { asPng(): Uint8Array } }
}

async function toPng(svg: string): Promise<Uint8Array> {
  // By a variable, so that nobody who needs no PNG has to have it.
  const name = '@resvg/resvg-js'
  let loaded: Resvg
  try {
    loaded = (await import(name)) as Resvg
  } catch (cause) {
    const message = `a .png of the loss needs the package ${name}: "npm install ${name}", or ask for an .svg`
    throw new Qwen3Nvfp4Error('DEPENDENCY_MISSING', message, { cause })
  }
  return new loaded.Resvg(svg).render().asPng()
}
