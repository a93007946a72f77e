/** A tokenizer of Qwen3's kind without merges: ids 0 to 255 are the bytes, then three special tokens. */
export function byteTokenizer(): { tokenizer: object; config: object } {
  const isPrintable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173)
  let next = 256
  const alphabet = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++))
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }
  const pattern = {
    Regex:
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  }
  const split = { type: 'Split', pattern, behavior: 'Isolated', invert: false }
  return {
    tokenizer: {
      version: '1.0',
      added_tokens: ['<|endoftext|>', '<|im_start|>', '<|im_end|>'].map((content, i) => ({
        id: 256 + i,
        content,
        ...flags,
      })),
      normalizer: { type: 'NFC' },
      pre_tokenizer: { type: 'Sequence', pretokenizers: [split, byteLevel] },
      post_processor: byteLevel,
      decoder: byteLevel,
      model: { type: 'BPE', vocab: Object.fromEntries(alphabet.map((char, byte) => [char, byte])), merges: [] },
    },
    config: { eos_token: '<|im_end|>', pad_token: '<|endoftext|>' },
  }
}
