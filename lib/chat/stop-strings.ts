import { wrongType, wrongValue } from '../check'

/** Where a character leaves each prefix of `pattern`: Knuth, Morris & Pratt's failure function. */
function failureFunction(pattern: string): Int32Array {
  const failure = new Int32Array(pattern.length)
  for (let i = 1, matched = 0; i < pattern.length; i++) {
    while (matched > 0 && pattern[i] !== pattern[matched]) matched = failure[matched - 1]!
    if (pattern[i] === pattern[matched]) matched++
    failure[i] = matched
  }
  return failure
}

/** One stop string and how much of it the text so far ends with. */
class Pattern {
  readonly text: string
  readonly #failure: Int32Array
  matched = 0

  constructor(text: string) {
    this.text = text
    this.#failure = failureFunction(text)
  }

  advance(unit: string): boolean {
    while (this.matched > 0 && unit !== this.text[this.matched]) this.matched = this.#failure[this.matched - 1]!
    if (unit === this.text[this.matched]) this.matched++
    return this.matched === this.text.length
  }
}

export interface StopStringResult {
  /** Text that is certainly not part of a stop string. */
  text: string
  /** The stop string that was found; the matcher takes no more text after it. */
  matched?: string
}

/**
 * Passes text through up to the first stop string, of which no part is passed on: text that may be its beginning is held
 * back until it is decided. The first one to be complete wins, the longest of those that end together, wherever the text
 * is cut into chunks.
 */
export class StopStringMatcher {
  readonly #patterns: Pattern[]
  #held = ''
  #done = false

  constructor(stopStrings: readonly string[]) {
    if (!Array.isArray(stopStrings)) throw wrongType('an array of strings', 'stopStrings', stopStrings)
    this.#patterns = stopStrings.map((text, i) => {
      if (typeof text !== 'string') throw wrongType('a string', `stopStrings[${i}]`, text)
      if (text === '' || /\p{Surrogate}/u.test(text)) {
        throw wrongValue('a non-empty string without lone surrogates', `stopStrings[${i}]`, text)
      }
      return new Pattern(text)
    })
  }

  push(chunk: string): StopStringResult {
    if (this.#done) return { text: '' }
    const text = this.#held + chunk
    for (let i = this.#held.length; i < text.length; i++) {
      let found = ''
      for (const pattern of this.#patterns) {
        if (pattern.advance(text[i]!) && pattern.text.length > found.length) found = pattern.text
      }
      if (found) {
        this.#done = true
        this.#held = ''
        return { text: text.slice(0, i + 1 - found.length), matched: found }
      }
    }
    const hold = this.#patterns.reduce((longest, pattern) => Math.max(longest, pattern.matched), 0)
    this.#held = text.slice(text.length - hold)
    return { text: text.slice(0, text.length - hold) }
  }

  /** The text that was held back, when the text ends without a stop string. */
  flush(): string {
    const rest = this.#held
    this.#held = ''
    this.#done = true
    return rest
  }
}
