/** Greedy answers of a model, each to a conversation of its own. */
import { generateText, type Qwen3Nvfp4Model, type Tokenizer } from 'qwen3-nvfp4'

const maxAnswerTokens = 96

export async function ask(model: Qwen3Nvfp4Model, tokenizer: Tokenizer, question: string): Promise<string> {
  const prompt = tokenizer.applyChatTemplate([{ role: 'user', content: question }], { addGenerationPrompt: true })
  let answer = ''
  for await (const { text } of generateText(model, tokenizer, prompt, { maxTokens: maxAnswerTokens })) answer += text
  return answer
}
