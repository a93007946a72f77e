/** Token bytes in, text out: whole characters only, at a cost linear in the bytes. */

/** Bytes of the character that `lead` starts; 1 for what starts no multi-byte character (Unicode 15, table 3-7). */
function sequenceLength(lead: number): number {
  if (lead >= 0xc2 && lead <= 0xdf) return 2
  if (lead >= 0xe0 && lead <= 0xef) return 3
  if (lead >= 0xf0 && lead <= 0xf4) return 4
  return 1
}

/**
 * How many bytes at the end may be the beginning of a character: the last lead byte and what follows it, when that is
 * fewer bytes than it asks for. A lead byte always begins a new sequence, valid or not, so decoding the text in
 * two pieces cut in front of it gives what decoding it whole gives.
 */
function unfinishedBytes(bytes: Uint8Array): number {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back]!
    if ((byte & 0xc0) === 0x80) continue
    return back < sequenceLength(byte) ? back : 0
  }
  return 0
}

/** Decodes UTF-8 that arrives in pieces. Invalid bytes become U+FFFD exactly as in a decoding of the whole. */
export class Utf8Stream {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  #pending = new Uint8Array(0)

  /** Bytes held back because the rest of their character is still to come: 0 to 3. */
  get pendingBytes(): number {
    return this.#pending.length
  }

  push(bytes: Uint8Array): string {
    const joined = new Uint8Array(this.#pending.length + bytes.length)
    joined.set(this.#pending)
    joined.set(bytes, this.#pending.length)
    const end = joined.length - unfinishedBytes(joined)
    this.#pending = joined.slice(end)
    return this.#decoder.decode(joined.subarray(0, end))
  }

  /** What is still held back, as U+FFFD. */
  flush(): string {
    const rest = this.#decoder.decode(this.#pending)
    this.#pending = new Uint8Array(0)
    return rest
  }
}

/** The part of a tokenizer that turns ids into text. */
export interface TokenBytes {
  tokenBytes(id: number, options?: { skipSpecialTokens?: boolean }): Uint8Array
}

/**
 * Ids in, text out, without ever splitting a character: a character whose bytes are spread over several tokens comes
 * with the last of them. The pieces and the flush, joined, are `tokenizer.decode` of all the ids.
 */
export class TextStream {
  readonly #tokenizer: TokenBytes
  readonly #skipSpecialTokens: boolean
  readonly #utf8 = new Utf8Stream()

  constructor(tokenizer: TokenBytes, { skipSpecialTokens = true }: { skipSpecialTokens?: boolean } = {}) {
    this.#tokenizer = tokenizer
    this.#skipSpecialTokens = skipSpecialTokens
  }

  get pendingBytes(): number {
    return this.#utf8.pendingBytes
  }

  push(id: number): string {
    return this.#utf8.push(this.#tokenizer.tokenBytes(id, { skipSpecialTokens: this.#skipSpecialTokens }))
  }

  flush(): string {
    return this.#utf8.flush()
  }
}
