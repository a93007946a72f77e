/** Stage 5: two turns on one cache, and the three forward paths side by side. */
import { join } from 'node:path'
import { ChatSession, Qwen3Nvfp4Model, Tokenizer, compareForwardPaths } from 'qwen3-nvfp4'
import type { ForwardPathReport } from 'qwen3-nvfp4'
import { chatTurns } from './settings'
import type { StageOptions } from './stage'

export async function chat({ folder, threads }: StageOptions): Promise<void> {
  const tokenizer = await Tokenizer.fromFile(folder)
  await using model = await Qwen3Nvfp4Model.load(join(folder, 'tuned.dat'), { threads })
  await using session = new ChatSession({ model, tokenizer, contextTokens: 256 })
  for (const question of chatTurns) {
    process.stdout.write(`  > ${question}\n  `)
    await session.prompt(question, { onText: (text) => process.stdout.write(text) })
    const { cachedTokens, prefilledTokens, generatedTokens } = session.lastTurn!
    const computed = `${prefilledTokens} prompt tokens computed, ${cachedTokens} found in the cache`
    console.log(`\n    ${computed}, ${generatedTokens} generated; cache.seqLen ${session.cache.seqLen}`)
  }

  // Up to where the last answer begins, so that the likeliest tokens are how it may begin.
  const ids = tokenizer.applyChatTemplate(session.messages.slice(0, -1), { addGenerationPrompt: true })
  const paths = await compareForwardPaths(model, ids, { tokenizer, topK: 3 })
  console.log(`\n  the same ${ids.length} tokens down three paths:`)
  describePath('A reference (dense fp32)', paths.reference)
  describePath('B training forward', paths.training)
  describePath('C cached forward', paths.cached)
  const { firstDivergence } = paths
  console.log(
    firstDivergence
      ? `  first divergence: ${firstDivergence.path}, layer ${firstDivergence.layer}`
      : '  no layer diverges',
  )
  if (firstDivergence || !paths.sameTopToken) throw new Error('the forward paths disagree')
}

function describePath(name: string, { top, nanCount, infinityCount, layers }: ForwardPathReport): void {
  const likeliest = top.map(({ id, text, logit }) => `${id} ${JSON.stringify(text)} ${logit.toFixed(2)}`).join(', ')
  const worst = Math.max(...layers.map(({ relativeError }) => relativeError))
  console.log(`  ${name}: ${likeliest}; ${nanCount} NaN, ${infinityCount} Inf; layers off by ${worst.toExponential(1)}`)
}
