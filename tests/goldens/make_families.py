"""Makes the goldens of BERT's classes and of Llama: what `transformers` computes, for our tests to compare with.

    python tests/goldens/make_families.py

Made with torch 2.15.0, transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6 on x86-64 (AVX-512); the versions are also
in the metadata of each golden. Seeds are fixed; other versions or machines change the f32 figures in the last digits.

Four models, each a folder written by `save_pretrained` plus `golden.safetensors`:

    bert_mlm    BertForMaskedLM                  2 layers, 3 heads of size 4, FFN of 22, 37 tokens, block 20
    bert_cls    BertForSequenceClassification    1 layer, 2 heads of size 5, 3 named classes
    bert_qa     BertForQuestionAnswering         1 layer, 2 heads of size 5, activation ReLU
    llama       LlamaForCausalLM                 2 layers, 4 heads of size 4 on 2 key/value heads, head of its own

Weights are random and large: every bias counts, attention is far from uniform, losses are far from ln(V).

A golden of a BERT holds, for B = 3 texts of 11, 7 and 2 tokens in rows of T = 11:

    inputs, types (B, T) i64, lengths (B) i64     0 where there is no token
    targets i64                                   mlm: (B, T), -100 where nothing is predicted; cls: (B) classes;
                                                  qa: (B, 2), first and last token of the answer
    {f32,f64}.logits                              mlm: (B, T, V), cls: (B, classes), qa: (B, T, 2); 0 without a token
    {f32,f64}.loss ()                             mean over targets; of qa over starts and ends, among the row's tokens
    f64.grad.NAME                                 gradient of each parameter, by its name in model.safetensors
    f32.errors (parameters) f64                   |f32 - f64| of PyTorch's own gradients, in the order of their names

and that of the Llama the same for B = 2, T = 13, without types and lengths, with the next tokens as targets (B, T).
"""

import copy
import os

import numpy
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

LENGTHS = [11, 7, 2]


def randomize(model, seed):
    """Every parameter from one seeded stream; spread so that each branch of the model adds about as much as the next."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "LayerNorm" in name or "norm" in name:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.25 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.25 * noise)
            elif "embed" in name:
                parameter.copy_(0.4 * noise)
            else:  # Linear: (out, in)
                parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)


def run(model, kind, golden):
    """Logits in the golden's layout, and the loss."""
    if kind == "llama":
        logits = model(golden["inputs"]).logits
        return logits, cross_entropy(logits.flatten(0, 1), golden["targets"].flatten())
    time = golden["inputs"].shape[1]
    is_token = torch.arange(time) < golden["lengths"][:, None]
    outputs = model(golden["inputs"], attention_mask=is_token.long(), token_type_ids=golden["types"])
    targets = golden["targets"]
    if kind == "bert_mlm":
        logits = outputs.logits * is_token[..., None]
        return logits, cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    if kind == "bert_cls":
        return outputs.logits, cross_entropy(outputs.logits, targets)
    logits = torch.stack([outputs.start_logits, outputs.end_logits], -1)
    inside = logits.masked_fill(~is_token[..., None], -torch.inf)
    loss = (cross_entropy(inside[..., 0], targets[:, 0]) + cross_entropy(inside[..., 1], targets[:, 1])) / 2
    return logits * is_token[..., None], loss


def make(kind, seed, model, golden):
    here = os.path.dirname(os.path.abspath(__file__))
    folder = os.path.join(here, kind)
    model.config._attn_implementation = "eager"
    model.eval()
    randomize(model, seed)
    model.save_pretrained(folder)
    extra = os.path.join(folder, "generation_config.json")
    if os.path.exists(extra):
        os.remove(extra)
    gradients = {}
    for precision, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        typed = copy.deepcopy(model).to(dtype)
        logits, loss = run(typed, kind, golden)
        loss.backward()
        golden[f"{precision}.logits"], golden[f"{precision}.loss"] = logits.detach(), loss.detach()
        gradients[precision] = {name: p.grad.double() for name, p in sorted(typed.named_parameters())}
    names = sorted(gradients["f64"])
    golden["f32.errors"] = torch.stack([(gradients["f32"][name] - gradients["f64"][name]).norm() for name in names])
    golden |= {f"f64.grad.{name}": gradients["f64"][name] for name in names}
    print(f"{kind}: loss {golden['f64.loss']:.9f}, worst error of an f32 gradient {golden['f32.errors'].max():.2e}")
    # One entry, because several come in random order, and the same values should be the same bytes.
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, safetensors, numpy))
    path = os.path.join(folder, "golden.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in golden.items()}, path, metadata={"made_with": versions})
    os.chmod(path, 0o644)
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)


def texts(vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS)
    is_token = torch.arange(max(LENGTHS)) < lengths[:, None]
    inputs = torch.randint(1, vocabulary, is_token.shape, generator=generator) * is_token
    types = (torch.arange(max(LENGTHS)) >= lengths[:, None] // 2).long() * is_token
    return {"inputs": inputs, "types": types, "lengths": lengths}, is_token, generator


def bert(vocabulary, heads, head_size, layers, **more):
    return BertConfig(
        vocab_size=vocabulary, hidden_size=heads * head_size, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **more,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    golden, is_token, generator = texts(37, 1)
    predicted = is_token & (torch.rand(is_token.shape, generator=generator) < 0.4)
    golden["targets"] = torch.where(predicted, torch.randint(37, is_token.shape, generator=generator), -100)
    make("bert_mlm", 11, BertForMaskedLM(bert(37, 3, 4, 2, intermediate_size=22)), golden)

    golden, _, _ = texts(23, 2)
    golden["targets"] = torch.tensor([2, 0, 1])
    names = {0: "bad", 1: "fair", 2: "good"}
    config = bert(23, 2, 5, 1, intermediate_size=14, id2label=names, label2id={name: id for id, name in names.items()})
    make("bert_cls", 12, BertForSequenceClassification(config), golden)

    golden, _, _ = texts(23, 3)
    golden["targets"] = torch.tensor([[6, 9], [3, 3], [0, 0]])
    config = bert(23, 2, 5, 1, intermediate_size=14, hidden_act="relu")
    make("bert_qa", 13, BertForQuestionAnswering(config), golden)

    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=18, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=24, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    text = torch.randint(31, (2, 14), generator=torch.Generator().manual_seed(4))
    golden = {"inputs": text[:, :-1].contiguous(), "targets": text[:, 1:].contiguous()}
    make("llama", 14, LlamaForCausalLM(config), golden)
