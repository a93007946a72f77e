import { expectAssignable, expectError, expectType } from 'tsd'
import {
  type ChatMessage,
  type ChatModel,
  ChatSession,
  type GeneratedText,
  generateText,
  type KvCache,
  type Qwen3Nvfp4Model,
  Tokenizer,
  type Transcript,
  toTranscript,
  type TurnSummary,
} from 'qwen3-nvfp4'

declare const model: Qwen3Nvfp4Model
declare const tokenizer: Tokenizer
declare const cache: KvCache

expectType<Promise<Tokenizer>>(Tokenizer.fromFile('tokenizer.json'))
expectType<Tokenizer>(Tokenizer.fromJson({}, {}))
expectType<string>(tokenizer.decode(tokenizer.encode('text')))

// A model of ours is a model that a session talks to, and its caches are caches of a conversation
expectAssignable<ChatModel>(model)
const session = new ChatSession({
  model,
  tokenizer,
  systemPrompt: 'Be brief.',
  cache,
  generation: { temperature: 0.6 },
})
expectError(new ChatSession({ model }))
expectError(new ChatSession({ model, tokenizer, generation: { signal: new AbortController().signal } }))
expectType<Promise<string>>(session.prompt('Hello', { onText: (text) => text.length, stopStrings: ['\n'] }))
expectError(session.prompt(3))
expectType<ChatMessage[]>(session.messages)
expectType<number>(session.tokenCount)
expectType<TurnSummary | undefined>(session.lastTurn)
expectType<Promise<void>>(session.saveTranscript('chat.jsonl'))
expectType<Transcript>(toTranscript(session.messages))
expectError<ChatMessage>({ role: 'robot', content: '' })
expectAssignable<AsyncDisposable>(session)

for await (const piece of generateText(model, tokenizer, 'Once', { maxTokens: 8, stopStrings: ['.'] })) {
  expectType<GeneratedText>(piece)
  expectType<'max-tokens' | 'stop-token' | 'cache-full' | 'stop-string' | undefined>(piece.finishReason)
}
