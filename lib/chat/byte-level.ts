/**
 * The byte-level alphabet of GPT-2, in which byte-level BPE vocabularies are written: every byte is one printable
 * character. The 188 printable Latin-1 bytes stand for themselves, the other 68 follow from U+0100 in order.
 */
const byteToChar: readonly string[] = (() => {
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
    return String.fromCharCode(printable ? byte : next++)
  })
})()

const charToByte = new Map(byteToChar.map((char, byte) => [char, byte]))

/** The bytes that a token of the byte-level alphabet stands for, or undefined when it has another character. */
export function byteLevelToBytes(token: string): Uint8Array | undefined {
  const bytes = new Uint8Array(token.length)
  for (let i = 0; i < token.length; i++) {
    const byte = charToByte.get(token[i]!)
    if (byte === undefined) return undefined
    bytes[i] = byte
  }
  return bytes
}
