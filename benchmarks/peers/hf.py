"""What a user would run instead on one GPU: Hugging Face transformers' Qwen3 with random bf16 weights.

    python3 benchmarks/peers/hf.py [--quick] [--only machine,prefill,decode,compiled,train] [--config 4b|small] [--device cuda]

Prints one JSON object a line: {"id": "prefill 512", "value": 19000.0, "unit": "tok/s", ...}, or {"id", "error"} where a part failed.
Everything takes about four minutes, of which compiling takes half; --quick leaves compiling out and repeats less, under 100 s.
"""
import argparse
import gc
import json
import os
import statistics
import time

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import DynamicCache, StaticCache

SECTIONS = ["machine", "prefill", "decode", "compiled", "train"]
GIB = 2**30

# The workloads of benchmarks/gpu/workloads.ts.
CONFIGS = {
    "4b": dict(
        shape=dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
                   num_key_value_heads=8, head_dim=128, vocab_size=151936, rope_theta=5e6),
        prefill=[512, 2048, 8192],
        decode=[(32, 480), (2048, 256)],
        train=[(1, 8), (1, 2048), (4, 2048)],
    ),
    "small": dict(
        shape=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=16, vocab_size=512, rope_theta=1e4),
        prefill=[16, 32],
        decode=[(8, 16), (32, 8)],
        train=[(1, 8), (2, 32)],
    ),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats; nothing compiled unless asked for")
    parser.add_argument("--only", help="sections, separated by commas; all without it")
    parser.add_argument("--config", choices=CONFIGS, default="4b")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


args = arguments()
wanted = args.only.split(",") if args.only else [name for name in SECTIONS if not (args.quick and name == "compiled")]
if unknown := set(wanted) - set(SECTIONS):
    raise SystemExit(f"Expected sections of {', '.join(SECTIONS)} but received {', '.join(unknown)}")
workload = CONFIGS[args.config]
config = Qwen3Config(rms_norm_eps=1e-6, tie_word_embeddings=True, max_position_embeddings=262144, **workload["shape"])
on_gpu = args.device != "cpu"
repeats = 3 if args.quick else 7


def out(id, **values):
    print(json.dumps({"id": id, **values}), flush=True)


def sync():
    if on_gpu:
        torch.cuda.synchronize()


def seconds(work):
    sync()
    start = time.perf_counter()
    work()
    sync()
    return time.perf_counter() - start


def median_seconds(work, count=repeats, warm=2):
    for _ in range(warm):
        work()
    return statistics.median(seconds(work) for _ in range(count))


def gpu_bytes():
    """The allocator's peak, and what the whole GPU has in use."""
    if not on_gpu:
        return {}
    free, total = torch.cuda.mem_get_info()
    return dict(peak_GiB=torch.cuda.max_memory_allocated() / GIB, gpu_GiB=(total - free) / GIB)


def release():
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def part(id, work):
    """One measurement; a failure is reported and the next one goes on."""
    try:
        work()
    except Exception as error:
        out(id, error=f"{type(error).__name__}: {error}"[:300])


def token_ids(batch, tokens):
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(0, config.vocab_size, (batch, tokens), generator=generator).to(args.device)


def build():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(args.device):
            return Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def measure_machine():
    count, n = (2**30, 8192) if on_gpu else (2**22, 256)
    x = torch.empty(count, dtype=torch.float32, device=args.device)
    y = torch.empty_like(x)
    out("copy", value=8 * count / median_seconds(lambda: y.copy_(x)) / 1e12, unit="TB/s")
    del x, y
    a = torch.randn(n, n, device=args.device, dtype=torch.bfloat16)
    b = torch.randn_like(a)
    out("gemm bf16", value=2 * n**3 / median_seconds(lambda: a @ b) / 1e12, unit="TFLOP/s", size=n)


def measure_prefill(model):
    for T in workload["prefill"]:
        ids = token_ids(1, T)

        def run():
            t = median_seconds(lambda: model(ids, logits_to_keep=1, use_cache=False))
            out(f"prefill {T}", value=T / t, unit="tok/s", seconds=t)

        part(f"prefill {T}", run)


def greedy(step, cache, ids, count):
    """Seconds a token of `count` greedy tokens behind `ids`, after four that warm up."""
    start = ids.shape[1]
    token = step(ids, torch.arange(start, device=args.device), cache).clone()
    position = torch.tensor([start], device=args.device)

    def decode(tokens):
        nonlocal token, position
        for _ in range(tokens):
            token = step(token, position, cache).clone()
            position = position + 1

    decode(4)
    return seconds(lambda: decode(count)) / count


def next_token(model):
    def step(ids, position, cache):
        result = model(ids, past_key_values=cache, cache_position=position, position_ids=position[None], use_cache=True,
                       logits_to_keep=1)
        return result.logits.argmax(-1)

    return step


def measure_decode(model):
    for prompt, tokens in workload["decode"]:

        def run():
            count = min(tokens, 32 if args.quick else 128)
            t = greedy(next_token(model), DynamicCache(config=config), token_ids(1, prompt), count)
            out(f"decode eager {prompt}", value=1 / t, unit="tok/s", tokens=count)

        part(f"decode eager {prompt}", run)


def measure_compiled(model):
    """A static cache, and the step of one token as a CUDA graph by torch.compile."""
    longest = max(prompt + tokens for prompt, tokens in workload["decode"])
    eager = next_token(model)
    compiled = torch.compile(eager, mode="reduce-overhead", fullgraph=False)
    cache = StaticCache(config=config, max_cache_len=longest + 8)

    def step(ids, position, cache):
        return (compiled if ids.shape[1] == 1 else eager)(ids, position, cache)

    for prompt, tokens in workload["decode"]:

        def run():
            cache.reset()
            greedy(step, cache, token_ids(1, prompt), 4)  # compiles
            cache.reset()
            t = greedy(step, cache, token_ids(1, prompt), tokens - 4)
            out(f"decode compiled {prompt}", value=1 / t, unit="tok/s", tokens=tokens - 4)

        part(f"decode compiled {prompt}", run)


def measure_train():
    """Every parameter in bf16 with bf16 AdamW states, layers checkpointed."""
    model = build().train()
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for batch, tokens in workload["train"]:
        ids = token_ids(batch, tokens)
        losses = []

        def step():
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())

        def run():
            release()
            t = median_seconds(step, count=2 if args.quick else 5)
            out(f"train {batch}x{tokens}", value=batch * tokens / t, unit="tok/s", seconds=t,
                losses=[round(float(loss), 3) for loss in losses], **gpu_bytes())

        part(f"train {batch}x{tokens}", run)


def main():
    name = torch.cuda.get_device_name(0) if on_gpu else "cpu"
    out("peer", name=f"transformers {transformers.__version__}, torch {torch.__version__}", gpu=name)
    if "machine" in wanted:
        part("machine", measure_machine)
        release()
    if {"prefill", "decode", "compiled"} & set(wanted):
        with torch.inference_mode():
            model = build().eval()
            for section, measure in (("prefill", measure_prefill), ("decode", measure_decode), ("compiled", measure_compiled)):
                if section in wanted:
                    part(section, lambda: measure(model))
            out("inference memory", **gpu_bytes())
            del model
        release()
    if "train" in wanted:
        part("train", measure_train)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
