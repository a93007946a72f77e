/** A byte-level tokenizer without merges: ids 0 to 255 are the bytes, then three special tokens; ChatML turns. */

/** GPT-2's byte alphabet, written out here so that the tests do not lean on the code they test. */
function byteAlphabet(): string[] {
  const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173)
  const others = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !printable(byte))
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(printable(byte) ? byte : 256 + others.indexOf(byte)),
  )
}

export function tinyTokenizerJson(): Record<string, unknown> {
  const special = (content: string, id: number) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  })
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: ['<|endoftext|>', '<|im_start|>', '<|im_end|>'].map((content, i) => special(content, 256 + i)),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: byteLevel,
    decoder: byteLevel,
    model: { type: 'BPE', vocab: Object.fromEntries(byteAlphabet().map((char, byte) => [char, byte])), merges: [] },
  }
}

export function tinyTokenizerConfig(): Record<string, unknown> {
  return {
    bos_token: null,
    eos_token: '<|im_end|>',
    pad_token: { content: '<|endoftext|>' },
    chat_template:
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
  }
}
