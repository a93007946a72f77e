"""Makes what every run of benchmarks/convergence starts from: text, order of the batches and initial weights.

    python3 benchmarks/convergence/prepare.py FOLDER [--size 25m|tiny] [--seeds 1,2,3]

FOLDER gets
  python.bin, python-held-out.bin    Python sources of this installation, one byte a token
  headers.bin, headers-held-out.bin  C and C++ headers of its packages (Python sources of the library where there are none)
  init-SEED/                         a Qwen3 checkpoint in fp32 (config.json, model.safetensors) as transformers initialises it
Held-out text is of other files; files of equal content count once. Windows are drawn from the seed by both programs alike
(see window_starts in peer.py and windowStarts in batches.ts), so the order of batches needs no file.
"""
import argparse
import glob
import hashlib
import json
import os
import random
import sysconfig
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "25m": dict(shape=dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
                           intermediate_size=1536), limit=48_000_000),
    "tiny": dict(shape=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                            intermediate_size=128), limit=1_000_000),
}
HELD_OUT = 0.03


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read(400_000)  # generated tables are not to outweigh the rest
    except OSError:
        return b""


def text_of(patterns, limit):
    """Files in a random order, without repeats, cut at `limit` bytes: the first are trained on, the last are held out."""
    paths = sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)})
    random.Random(0).shuffle(paths)
    seen, files, size = set(), [], 0
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(paths), 256):
            for data in pool.map(read, paths[start:start + 256]):
                key = hashlib.sha1(data).digest()
                if len(data) < 200 or key in seen:
                    continue
                seen.add(key)
                files.append(data)
                size += len(data)
            if size > limit:
                break
    held_out = next(i for i in range(len(files)) if sum(map(len, files[i + 1:])) < HELD_OUT * size)
    return b"\n".join(files[:held_out]), b"\n".join(files[held_out:])


def write_text(folder, name, patterns, limit):
    train, held_out = text_of(patterns, limit)
    for end, data in (("", train), ("-held-out", held_out)):
        with open(os.path.join(folder, f"{name}{end}.bin"), "wb") as file:
            file.write(data)
    print(json.dumps({"text": name, "bytes": len(train), "held_out": len(held_out)}), flush=True)


def write_weights(folder, seed, shape):
    torch.manual_seed(seed)
    config = Qwen3Config(vocab_size=256, rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=True,
                         max_position_embeddings=4096, **shape)
    model = Qwen3ForCausalLM(config).float()
    model.save_pretrained(os.path.join(folder, f"init-{seed}"))
    return model.num_parameters()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", choices=SIZES, default="25m")
    parser.add_argument("--seeds", default="1")
    args = parser.parse_args()
    size = SIZES[args.size]
    os.makedirs(args.folder, exist_ok=True)
    paths = sysconfig.get_paths()
    library, packages = paths["stdlib"], paths["purelib"]
    write_text(args.folder, "python", [f"{library}/**/*.py", f"{packages}/**/*.py"], size["limit"])
    headers = [f"{packages}/**/*{end}" for end in (".h", ".hpp", ".cuh")]
    found = any(glob.iglob(headers[0], recursive=True))
    write_text(args.folder, "headers", headers if found else [f"{library}/*.py"], size["limit"] // 2)
    for seed in args.seeds.split(","):
        print(json.dumps({"seed": int(seed), "parameters": write_weights(args.folder, int(seed), size["shape"])}), flush=True)


main()
