import fc from 'fast-check'
import { StopStringMatcher, TextStream, Utf8Stream } from 'qwen3-nvfp4'

const cut = <T>(items: readonly T[], lengths: readonly number[]): T[][] => {
  const pieces: T[][] = []
  let start = 0
  for (const length of lengths) pieces.push(items.slice(start, (start += length)))
  pieces.push(items.slice(start))
  return pieces
}

describe('Utf8Stream', () => {
  const decodeInPieces = (pieces: number[][]) => {
    const stream = new Utf8Stream()
    const chunks = pieces.map((piece) => stream.push(Uint8Array.from(piece)))
    return [...chunks, stream.flush()]
  }

  test('gives a character with its last byte and not before', () => {
    const bytes = [...new TextEncoder().encode('a神👋é')]
    expect(decodeInPieces(bytes.map((byte) => [byte]))).toEqual(['a', '', '', '神', '', '', '', '👋', '', 'é', ''])
  })

  test('flushes an unfinished character as one U+FFFD', () => {
    const stream = new Utf8Stream()
    expect(stream.push(Uint8Array.of(0x41, 0xf0, 0x9f, 0x91))).toBe('A')
    expect(stream.pendingBytes).toBe(3)
    expect(stream.flush()).toBe('\ufffd')
    expect(stream.pendingBytes).toBe(0)
    expect(stream.flush()).toBe('')
  })

  test('keeps a byte order mark that a model writes', () => {
    expect(decodeInPieces([[0xef], [0xbb, 0xbf, 0x41]]).join('')).toBe('\ufeffA')
  })

  test('equals the decoding of the whole for any bytes cut anywhere', () => {
    // Lead and continuation bytes are drawn often, because uniform bytes seldom form sequences.
    const byte = fc.oneof(
      fc.integer({ min: 0, max: 255 }),
      fc.constantFrom(0x80, 0xbf, 0xc2, 0xe0, 0xe4, 0xed, 0xa0, 0xf0, 0x9f, 0x90, 0xf4, 0x8f),
    )
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 24 }), fc.array(fc.integer({ min: 0, max: 4 })), (bytes, lengths) => {
        const whole = new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(bytes))
        expect(decodeInPieces(cut(bytes, lengths)).join('')).toBe(whole)
      }),
      { seed: 7, numRuns: 2000 },
    )
  })
})

describe('TextStream', () => {
  const pieces = [[0xe7, 0xa5], [0x9e, 0x21], []].map((bytes) => Uint8Array.from(bytes))
  const tokenizer = { tokenBytes: (id: number) => pieces[id]! }

  test('joins a character that two tokens share', () => {
    const stream = new TextStream(tokenizer)
    expect([0, 1, 2].map((id) => stream.push(id))).toEqual(['', '神!', ''])
    stream.push(0)
    expect(stream.pendingBytes).toBe(2)
    expect(stream.flush()).toBe('\ufffd')
  })
})

describe('StopStringMatcher', () => {
  const run = (stops: string[], chunks: string[]) => {
    const matcher = new StopStringMatcher(stops)
    let text = ''
    let matched: string | undefined
    for (const chunk of chunks) {
      const result = matcher.push(chunk)
      text += result.text
      matched ??= result.matched
    }
    return { text: text + matcher.flush(), matched }
  }

  test('finds a stop string across chunks and passes on no part of it', () => {
    expect(run(['User:'], ['Hello Us', 'er', ': more'])).toEqual({ text: 'Hello ', matched: 'User:' })
  })

  test('holds back only what may be the beginning of a stop string', () => {
    const matcher = new StopStringMatcher(['\n\n', 'END'])
    expect(matcher.push('one\n')).toEqual({ text: 'one' })
    expect(matcher.push('two EN')).toEqual({ text: '\ntwo ' })
    expect(matcher.push('EN')).toEqual({ text: 'EN' })
    expect(matcher.flush()).toBe('EN')
  })

  test('sees a match that begins inside a failed one', () => {
    expect(run(['aab'], ['aa', 'a', 'b'])).toEqual({ text: 'a', matched: 'aab' })
  })

  test('takes the longest of the stop strings that end together and the first that is complete', () => {
    expect(run(['bc', 'abc'], ['xabc'])).toEqual({ text: 'x', matched: 'abc' })
    expect(run(['abc', 'b'], ['xabc'])).toEqual({ text: 'xa', matched: 'b' })
  })

  test('takes no more text after a match', () => {
    expect(run(['.'], ['a.b', 'c.d'])).toEqual({ text: 'a', matched: '.' })
  })

  test('gives the same wherever the text is cut, and what a plain search finds', () => {
    const word = fc.string({ unit: fc.constantFrom('a', 'b', '神', '😀'), minLength: 1, maxLength: 4 })
    const text = fc.string({ unit: fc.constantFrom('a', 'b', '神', '😀', '😁'), maxLength: 30 })
    fc.assert(
      fc.property(
        fc.array(word, { maxLength: 3 }),
        text,
        fc.array(fc.integer({ min: 0, max: 5 })),
        (stops, all, lengths) => {
          let expected: { text: string; matched?: string } = { text: all, matched: undefined }
          for (let end = 1; end <= all.length && expected.matched === undefined; end++) {
            const ending = stops
              .filter((stop) => all.slice(0, end).endsWith(stop))
              .sort((a, b) => b.length - a.length)[0]
            if (ending !== undefined) expected = { text: all.slice(0, end - ending.length), matched: ending }
          }
          expect(
            run(
              stops,
              cut([...all], lengths).map((piece) => piece.join('')),
            ),
          ).toEqual(expected)
        },
      ),
      { seed: 11, numRuns: 2000 },
    )
  })

  test('refuses stop strings that can never be or are always found', () => {
    expect(() => new StopStringMatcher([''])).toThrow(
      'Expected a non-empty string without lone surrogates for stopStrings[0] but received ""',
    )
    expect(() => new StopStringMatcher(['a', '\ud83d'])).toThrow(/for stopStrings\[1\]/)
    expect(() => new StopStringMatcher('a' as never)).toThrow('Expected an array of strings for stopStrings')
  })
})
