"""One run in PyTorch: `python3 peer.py FOLDER DEVICE RUN`, RUN the JSON of runs.ts. Prints the lines that ours.ts prints.

transformers' Qwen3 in fp32, computed under bf16 autocast, with
  state fp32    torch.optim.AdamW
  state prior   the recipe of the prior system: weights, norms included, and both moments packed after every step to NVFP4 with
                one level of scales, everything to nearest, no master weights
"""
import json
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM

REPORT, HELD_OUT_BATCHES, HELD_OUT_BATCH = 100, 8, 32


def window_starts(seed, count, room):
    """mulberry32, as windowStarts in batches.ts."""
    mask = np.uint64(0xFFFFFFFF)
    state = (np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x6D2B79F5)) & mask
    t = ((state ^ (state >> np.uint64(15))) * (state | np.uint64(1))) & mask
    t ^= (t + (((t ^ (t >> np.uint64(7))) * (t | np.uint64(61))) & mask)) & mask
    return np.floor((t ^ (t >> np.uint64(14))).astype(np.float64) / 2**32 * room).astype(np.int64)


class Batches:
    def __init__(self, path, starts, size, tokens, device):
        self.text = np.fromfile(path, dtype=np.uint8)
        self.starts = starts(len(self.text) - tokens)
        self.size, self.span, self.device = size, np.arange(tokens + 1), device

    def __len__(self):
        return len(self.starts) // self.size

    def __getitem__(self, index):
        starts = self.starts[index * self.size:(index + 1) * self.size]
        window = torch.from_numpy(self.text[starts[:, None] + self.span]).to(self.device).long()
        return window[:, :-1], window[:, 1:]


def rate(run, step):
    """Linear warm-up, then a cosine to a tenth."""
    return run["lr"] * min(1, (step + 1) / run["warmup"]) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / run["steps"])))


def to_e2m1(x):
    """Magnitudes to the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6; ties to even codes."""
    x = x.clamp(max=6)
    return torch.where(x < 2, torch.round(2 * x) / 2, torch.where(x < 4, torch.round(x), 2 * torch.round(x / 2)))


def prior_nvfp4(x):
    """bf16, then blocks of 16 with one E4M3 scale, amax / 6: below 2^-10 it is 0, and so is the block."""
    blocks = x.bfloat16().float().reshape(-1, 16)
    scale = (blocks.abs().amax(1, keepdim=True) / 6).clamp(2**-16, 448).to(torch.float8_e4m3fn).float()
    codes = to_e2m1(torch.where(scale > 0, blocks.abs() / scale, 0.0))
    return (blocks.sign() * codes * scale).reshape(x.shape)


class PriorAdamW:
    """Every parameter is a view of one buffer: blocks of 16 do not know whose they are."""

    def __init__(self, parameters, betas, weight_decay):
        self.betas, self.weight_decay, self.t = betas, weight_decay, 0
        with torch.no_grad():
            self.p = prior_nvfp4(torch.cat([p.flatten() for p in parameters]))
            self.g, self.m, self.v = (torch.zeros_like(self.p) for _ in range(3))
            begin = 0
            for p in parameters:
                end = begin + p.numel()
                p.data, p.grad = self.p[begin:end].view(p.shape), self.g[begin:end].view(p.shape)
                begin = end

    @torch.no_grad()
    def step(self, lr):
        self.t += 1
        b1, b2 = self.betas
        self.m.lerp_(self.g, 1 - b1)
        self.v.lerp_(self.g.square(), 1 - b2)
        u = (self.m / (1 - b1**self.t)) / ((self.v / (1 - b2**self.t)).sqrt() + 1e-8)
        self.p.copy_(prior_nvfp4(self.p * (1 - lr * self.weight_decay) - lr * u))
        self.m.copy_(prior_nvfp4(self.m))
        self.v.copy_(prior_nvfp4(self.v))
        self.g.zero_()
        return u.square().mean().sqrt()


class PlainAdamW:
    def __init__(self, parameters, betas, weight_decay, device):
        self.optimizer = torch.optim.AdamW(parameters, lr=0, betas=tuple(betas), weight_decay=weight_decay,
                                           fused=device.startswith("cuda"))

    def step(self, lr):
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def loss_of(model, batch, device):
    ids, labels = batch
    with torch.autocast(device.split(":")[0], torch.bfloat16):
        logits = model(ids, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


@torch.no_grad()
def held_out_loss(model, batches, device):
    return sum(loss_of(model, batches[i], device).item() for i in range(len(batches))) / len(batches)


def main(folder, device, run):
    def out(**values):
        print(json.dumps({k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in values.items()}),
              flush=True)

    def text(end, starts, size):
        return Batches(os.path.join(folder, f"{run['text']}{end}.bin"), starts, size, run["tokens"], device)

    model = Qwen3ForCausalLM.from_pretrained(os.path.join(folder, run["from"]), dtype=torch.float32,
                                             attn_implementation="sdpa").to(device).train()
    parameters = list(model.parameters())
    if run["state"] == "prior":
        optimizer = PriorAdamW(parameters, run["betas"], run["weightDecay"])
    else:
        optimizer = PlainAdamW(parameters, run["betas"], run["weightDecay"], device)
    count = HELD_OUT_BATCHES * HELD_OUT_BATCH
    batches = text("", lambda room: window_starts(run["seed"], run["steps"] * run["batch"], room), run["batch"])
    held_out = text("-held-out", lambda room: np.arange(count) * room // count, HELD_OUT_BATCH)
    before = held_out_loss(model, held_out, device)
    losses, seconds, start = [], 0, time.perf_counter()
    for step in range(run["steps"]):
        loss = loss_of(model, batches[step], device)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1)
        update_rms = optimizer.step(rate(run, step))
        losses.append(loss.detach())
        last = step + 1 == run["steps"]
        if (step + 1) % REPORT and not last:
            continue
        mean = torch.stack(losses[-REPORT:]).mean().item()
        seconds += time.perf_counter() - start
        final = {"final": True, "first": losses[0].item(), "before": before} if last else {}
        out(step=step + 1, loss=mean, gradNorm=norm.item(), msPerStep=1000 * seconds / (step + 1),
            heldOut=held_out_loss(model, held_out, device), **final,
            **({} if update_rms is None else {"updateRms": update_rms.item()}))
        if not math.isfinite(mean):
            return out(error=f"the loss is {mean}")
        start = time.perf_counter()
    if "save" in run:
        model.save_pretrained(os.path.join(folder, run["save"]))


main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
