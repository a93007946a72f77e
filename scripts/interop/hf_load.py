"""Loads what export.ts wrote with Hugging Face transformers and compares logits: python3 hf_load.py <folder>

The dense directories are computed in fp32 from the exact values of the NVFP4 weights, so only the order of sums differs.
compressed-tensors is loaded the same way where its package is installed; ModelOpt's and its files are also decoded here
by their definitions, without our library, and compared with the dense ones value by value.
"""

import importlib.util
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def logits_of(path, ids):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(ids).logits[0].float().cpu()


def compare(name, logits, reference, tolerance):
    error = (logits - reference).abs().max().item()
    scale = reference.square().mean().sqrt().item()
    same = (logits.argmax(-1) == reference.argmax(-1)).float().mean().item()
    good = error <= tolerance * scale
    print(f"{name:24s} max |error| {error:.3e} of rms {scale:.3f}  argmax equal {100 * same:.1f} %  {'ok' if good else 'BAD'}")
    return good


def decode(packed, scales):
    """Low nibble first, one scale for 16 columns."""
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1).long()
    return E2M1[codes] * scales.float().repeat_interleave(16, 1)


def weights_of(folder, way):
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith(".weight_scale")]:
        module = key[: -len(".weight_scale")]
        scales = tensors.pop(key)
        if way == "modelopt":
            weight = decode(tensors[module + ".weight"], scales) * tensors.pop(module + ".weight_scale_2")
        else:
            weight = decode(tensors.pop(module + ".weight_packed"), scales) / tensors.pop(module + ".weight_global_scale")
        tensors[module + ".weight"] = weight
    return {key: value.float() for key, value in tensors.items()}


def main(folder):
    ids = torch.tensor([json.loads((folder / "ids.json").read_text())])
    reference = torch.frombuffer(bytearray((folder / "logits.bin").read_bytes()), dtype=torch.float32)
    reference = reference.view(ids.shape[1], -1)
    good = True
    for way in ["hf-fp32", "hf-bf16"]:
        good &= compare(way, logits_of(folder / way, ids), reference, 1e-3)
    if importlib.util.find_spec("compressed_tensors"):
        # Its dequantised weights are bf16, which holds them exactly.
        good &= compare("compressed-tensors", logits_of(folder / "compressed-tensors", ids), reference, 1e-2)
    else:
        print("skipped: compressed-tensors in transformers (no package compressed_tensors)")
    dense = load_file(folder / "hf-fp32" / "model.safetensors")
    for way in ["modelopt", "compressed-tensors"]:
        weights = weights_of(folder / way, way)
        differing = [key for key in dense if not torch.equal(weights[key], dense[key].float())]
        good &= not differing and weights.keys() == dense.keys()
        print(f"{way:24s} {len(weights)} weights by an independent decoder, {len(differing)} differ {differing[:3]}")
    sys.exit(0 if good else 1)


main(pathlib.Path(sys.argv[1]))
