"""
The peer of `kinship-daemon kinship`: three models loaded whole, their deltas correlated by torch.

Everything stays in the models' bf16, as in ModelKinship: lighter and faster than fp32, and off in
the second digit.
"""

import sys

import torch
from transformers import AutoModelForCausalLM

models = [
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    for folder in sys.argv[1:]
]
base, first, second = models
deltas = [
    torch.cat([(model[name] - base[name]).reshape(-1) for name in base])
    for model in (first, second)
]
print(torch.corrcoef(torch.stack(deltas))[0, 1].item())
