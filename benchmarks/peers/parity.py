"""Writes a small Qwen3 checkpoint and what Hugging Face transformers computes from it, for test/gpu/transformers.test.ts.

    python3 benchmarks/peers/parity.py FOLDER [--config middle|small] [--device cuda]

FOLDER gets a checkpoint in bf16 (save_pretrained) and reference.safetensors:
  input_ids, labels i32[1, T]      logits f32[1, T, V] and loss of the bf16 weights computed in fp32
  logits_bf16 f32[1, T, V]         the same computed in bf16
  grad.<name> f32                  of every parameter, computed in fp32
One line of JSON says how far transformers' own bf16 is from its fp32: what another program can be asked for.

A model with random weights has no clear next token: the two likeliest are closer than bf16 can tell. So it first learns its
input by heart, in fp32; the gradients are those of other labels, whose loss is large.
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

SHAPES = {
    "middle": dict(num_hidden_layers=8, hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                   intermediate_size=3072, vocab_size=8192),
    "small": dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                  intermediate_size=96, vocab_size=256),
}
TOKENS = {"middle": 256, "small": 64}
STEPS = 60


def learn(model, ids):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(STEPS):
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def reference(folder, dtype, ids, labels):
    """Logits, loss and gradients that the checkpoint gives when it is loaded as `dtype`, in fp32 on the CPU.

    Loaded anew, because a model that was cast has its rotary frequencies rounded too.
    """
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(ids.device).train()
    result = model(ids, labels=labels)
    result.loss.backward()
    gradients = {name: p.grad.float().cpu().contiguous() for name, p in model.named_parameters()}
    return result.logits.detach().float().cpu(), result.loss.detach().float().cpu(), gradients


def cosine(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--config", choices=SHAPES, default="middle")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = Qwen3Config(rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True, attn_implementation="eager",
                         **SHAPES[args.config])
    shape = (1, TOKENS[args.config])
    ids = torch.randint(0, config.vocab_size, shape).to(args.device)
    labels = torch.randint(0, config.vocab_size, shape).to(args.device)
    labels[0, ::7] = -100

    with torch.device(args.device):
        model = Qwen3ForCausalLM(config).float().train()
    learned = learn(model, ids)
    model.to(torch.bfloat16).save_pretrained(args.folder)

    del model
    in_bf16 = reference(args.folder, torch.bfloat16, ids, labels)
    logits, loss, gradients = reference(args.folder, torch.float32, ids, labels)
    tensors = {
        "input_ids": ids.int().cpu(),
        "labels": labels.int().cpu(),
        "logits": logits,
        "logits_bf16": in_bf16[0],
        "loss": loss.reshape(1),
        **{f"grad.{name}": gradient for name, gradient in gradients.items()},
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              os.path.join(args.folder, "reference.safetensors"))

    cosines = {name: cosine(in_bf16[2][name], gradient) for name, gradient in gradients.items()}
    worst = min(cosines, key=cosines.get)
    print(json.dumps({
        "learned": round(learned, 4),
        "loss": float(loss),
        "bf16_logits_error": float((in_bf16[0] - logits).double().norm() / logits.double().norm()),
        "bf16_same_top": float((in_bf16[0].argmax(-1) == logits.argmax(-1)).double().mean()),
        "bf16_worst_cosine": cosines[worst],
        "bf16_worst_gradient": worst,
    }), flush=True)


if __name__ == "__main__":
    main()
