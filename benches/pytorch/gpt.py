"""GPT-2 in plain PyTorch, as a good practitioner writes it: the other side of our comparisons.

The model of nanoGPT's shape: pre-norm blocks, one matrix for q, k and v, the library's fused attention, tanh-GELU,
output projection tied to the token embedding. Eager mode, f32. Everything the library offers that costs nothing is used:
`scaled_dot_product_attention`, fused AdamW, gradients set to None.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels, heads, layers):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.ffn_norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)
        for linear in (self.qkv, self.projection, self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        for last in (self.projection, self.down):  # GPT-2: the residual stream starts with the same spread at any depth
            nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary, block, layers, heads, channels):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, channels)
        self.position_embedding = nn.Embedding(block, channels)
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(channels, heads, layers) for _ in range(layers))
        self.final_norm = nn.LayerNorm(channels)
        self.register_buffer("positions", torch.arange(block), persistent=False)

    def forward(self, inputs, targets):
        x = self.token_embedding(inputs) + self.position_embedding(self.positions[: inputs.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.token_embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def adamw(model, learning_rate, betas, weight_decay):
    """Decay on matrices and tables only; fused where this build has it for the CPU."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    try:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, foreach=True)


def train_step(model, optimizer, inputs, targets):
    """Forward, backward, clip, AdamW; returns the loss."""
    loss = model(inputs, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
