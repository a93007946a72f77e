/** Most characters that are tokenised without a look at the event loop: 2 to 5 ms of a core. */
const pieceChars = 1500

const notSpace = /\S/
const highSurrogate = /[\uD800-\uDBFF]/
/** A letter, behind which a sign that is no part of a special token leads on to another letter. */
const wordEnd = /\p{L}(?=[ \t,.;:!?，。、；：？！「」『』（）]\p{L})/gu

/** The last place in a longer text's first `pieceChars` to cut it at so that its tokens stay what they are, if any. */
function firstCut(text: string): number {
  for (let at = text.lastIndexOf('\n', pieceChars - 1); at > 0; at = text.lastIndexOf('\n', at - 1)) {
    if (notSpace.test(text[at + 1]!)) return at + 1
  }
  let cut = 0
  for (const { index, 0: letter } of text.slice(0, pieceChars).matchAll(wordEnd)) cut = index + letter.length
  if (cut > 0) return cut
  // Letters without an end are cut anywhere, as merging them takes a time that grows faster than they do.
  return highSurrogate.test(text[pieceChars - 1]!) ? pieceChars - 1 : pieceChars
}

/** How much of a text to tokenise at once: all of it, or up to a cut that leaves the tokens of the whole as they are. */
export const pieceLength = (text: string): number => (text.length > pieceChars ? firstCut(text) : text.length)

/**
 * Cuts a text into short pieces whose tokens are together those of the whole: behind line breaks before anything that
 * is not white space, or between words. No pre-tokenizer that splits as Qwen's does joins what is on both sides of these.
 */
export function* textPieces(text: string): Generator<string, void, undefined> {
  for (let rest = text; rest !== '';) {
    const length = pieceLength(rest)
    yield rest.slice(0, length)
    rest = rest.slice(length)
  }
}
