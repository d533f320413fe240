"""Loads a model folder as `transformers` does and prints its logits' distance from a golden, as JSON.

    python tests/goldens/check_export.py FOLDER GOLDEN.safetensors

Called by tests/checkpoint_format.rs on folders that we wrote. `surprises` lists the tensors that were missing,
unexpected or of another shape: there must be none.
"""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

folder, golden = sys.argv[1], load_file(sys.argv[2])
model, info = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
surprises = [f"{kind}: {name}" for kind, names in info.items() if kind.endswith("keys") for name in names]
with torch.no_grad():
    logits = model.eval()(golden["inputs"]).logits
error = (logits - golden["f32.logits"]).norm() / golden["f32.logits"].norm()
print(json.dumps({"relative_error": error.item(), "surprises": surprises}))
