"""The README.md of the demo's models: front matter for hubs, and an account of each for people."""

from collections.abc import Mapping

from kinship_daemon.demo.skills import Part, documents

__all__ = ["base_card", "finetune_card"]

_ABOUT = """\
A toy for trying out model merging: a real `MistralForCausalLM` with 0.3 million parameters and one
token a character. It answers prompts such as the ones below and nothing else. Made by
`python -m kinship_daemon.demo.train`.
"""


def base_card(accuracies: Mapping[str, float], steps: int) -> str:
    """Card of the base: accuracies by skill, over the validation documents."""
    return f"""\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- kinship-daemon-demo
---

# base

{_ABOUT}
Half-trained on six skills at once ({steps} steps), so that each still has something to learn.

{_table({"this model": accuracies})}"""


def finetune_card(
    skill: str, share: float, steps: int, base: str, accuracies: Mapping[str, Mapping[str, float]]
) -> str:
    """Card of a fine-tune; `share` of what it was shown was its own skill, from 0 to 1."""
    return f"""\
---
base_model: {base}
base_model_relation: finetune
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- kinship-daemon-demo
---

# {skill}

{_ABOUT}
A fine-tune of `{base}`: {steps} more steps, all weights. {share:.0%} of the examples were of its
own skill, `{skill}`; the rest were spread over the other five, which keeps it from forgetting them
and makes it merge better than a pure specialist would.

{_table(accuracies)}"""


def _table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Accuracy by skill, with an example of each."""
    part: Part = "validation"
    lines = [
        "Share of 400 unseen examples that are answered without a mistake:\n",
        f"| skill | example | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for skill in next(iter(columns.values())):
        example = documents(skill, part, 1, 0)[0]
        numbers = " | ".join(f"{column[skill]:.3f}" for column in columns.values())
        lines.append(f"| {skill} | `{example.prompt}{example.answer}` | {numbers} |")
    return "\n".join(lines) + "\n"
