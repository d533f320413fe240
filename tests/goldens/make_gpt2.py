"""Makes the goldens of GPT-2: what `transformers` computes, for our tests to compare with.

    python tests/goldens/make_gpt2.py

Made with torch 2.15.0, transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6 on x86-64 (AVX-512); the versions are also
in the metadata of each golden. Seeds are fixed; other versions or machines change the f32 figures in the last digits.

Two models, each a folder written by `GPT2LMHeadModel.save_pretrained` plus `golden.safetensors`:

    gpt2_odd      2 layers, 4 heads of size 7, 28 channels, 67 tokens, block 24
    gpt2_head64   1 layer, 2 heads of size 64 (GPT-2's own), FFN of 32 (not 4C), 19 tokens, block 20

Weights are random and large: every bias counts, attention is far from uniform, losses are far from ln(V).

A golden holds, for B = 3 and T = 17:

    inputs, targets (B, T) i64       targets are the next tokens: position t of the logits belongs to targets[t]
    targets_ignored (B, T) i64       gpt2_odd only: the same with -100 at a third of the positions and one whole row
    {f32,f64}.logits (B, T, V)
    {f32,f64}.loss ()                mean over the targets that are not -100
    {f32,f64}.grad.NAME              gradient of each parameter, by its name and shape in model.safetensors
    {f32,f64}.ignored.loss, {f32,f64}.ignored.grad.NAME      the same for targets_ignored
    {f32,f64}.training.losses (10)   before each of ten steps of AdamW on (inputs, targets)
    {f32,f64}.training.grad_norms (10)   before clipping

AdamW: learning rate 1e-3, betas 0.9 and 0.95, epsilon 1e-8, weight decay 0.1 on parameters of two dimensions (the
embeddings are among them), gradients clipped to norm 1. f64 starts from the same f32 weights.
"""

import copy
import os
import sys

import numpy
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

BATCH, TIME = 3, 17
STEPS = 10


def randomize(model, seed):
    """Every parameter from one seeded stream; spread so that each branch of the model adds about as much as the next."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "ln_" in name:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.25 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.25 * noise)
            elif "wte" in name or "wpe" in name:
                parameter.copy_(0.4 * noise)
            else:  # Conv1D: (in, out)
                parameter.copy_(1.2 * noise / parameter.shape[0] ** 0.5)


def loss_of(model, inputs, targets):
    # Not through `labels=`: that computes the loss in f32 whatever the model's type, and shifts the targets.
    logits = model(inputs).logits
    return logits, cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def gradients(model, inputs, targets):
    model.zero_grad(set_to_none=True)
    logits, loss = loss_of(model, inputs, targets)
    loss.backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return logits.detach(), loss.detach(), grads


def check_by_finite_differences(model, inputs, targets, grads):
    """Shows that the f64 run is f64 all the way: a hidden f32 step would miss by 1e-3 here."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        around = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                parameter += sign * 1e-5 * direction
                around.append(loss_of(model, inputs, targets)[1].item())
        slope, expected = (around[0] - around[1]) / 2e-5, (grads[name] * direction).sum().item()
        if abs(slope - expected) > 1e-6 * max(1.0, abs(expected)):
            sys.exit(f"{name}: slope {slope}, gradient {expected}")


def train(model, inputs, targets):
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    losses, norms = [], []
    for _ in range(STEPS):
        loss = loss_of(model, inputs, targets)[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses), torch.stack(norms)


def make(folder, seed, with_ignored, **sizes):
    config = GPT2Config(
        **sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0
    )
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config).eval()
    randomize(model, seed)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "generation_config.json"))

    generator = torch.Generator().manual_seed(seed + 1)
    text = torch.randint(sizes["vocab_size"], (BATCH, TIME + 1), generator=generator)
    inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    golden = {"inputs": inputs, "targets": targets}
    if with_ignored:
        ignored = targets.clone()
        ignored[torch.rand(ignored.shape, generator=generator) < 1 / 3] = -100
        ignored[1] = -100
        golden["targets_ignored"] = ignored

    for precision, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        typed = copy.deepcopy(model).to(dtype)
        logits, loss, grads = gradients(typed, inputs, targets)
        golden[f"{precision}.logits"], golden[f"{precision}.loss"] = logits, loss
        golden |= {f"{precision}.grad.{name}": grad for name, grad in grads.items()}
        if with_ignored:
            _, loss, ignored_grads = gradients(typed, inputs, ignored)
            golden[f"{precision}.ignored.loss"] = loss
            golden |= {f"{precision}.ignored.grad.{name}": grad for name, grad in ignored_grads.items()}
        if precision == "f64":
            check_by_finite_differences(copy.deepcopy(typed), inputs, targets, grads)
        losses, norms = train(typed, inputs, targets)
        golden[f"{precision}.training.losses"], golden[f"{precision}.training.grad_norms"] = losses, norms
        print(f"{os.path.basename(folder)} {precision}: losses {losses[0]:.9f} ... {losses[-1]:.9f}, first norm {norms[0]:.6f}")

    worst = max(
        ((golden[f"f32.grad.{name}"] - grad).norm() / grad.norm()).item() for name, grad in grads.items()
    )
    print(f"{os.path.basename(folder)}: worst relative error of an f32 gradient {worst:.2e}")
    # One entry, because several come in random order, and the same values should be the same bytes.
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, safetensors, numpy))
    path = os.path.join(folder, "golden.safetensors")
    save_file(golden, path, metadata={"made_with": versions})
    os.chmod(path, 0o644)
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = os.path.dirname(os.path.abspath(__file__))
    make(
        os.path.join(here, "gpt2_odd"), seed=3, with_ignored=True,
        vocab_size=67, n_positions=24, n_embd=28, n_layer=2, n_head=4,
    )  # fmt: skip
    make(
        os.path.join(here, "gpt2_head64"), seed=5, with_ignored=False,
        vocab_size=19, n_positions=20, n_embd=128, n_layer=1, n_head=2, n_inner=32,
    )  # fmt: skip
