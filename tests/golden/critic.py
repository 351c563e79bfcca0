"""Values, PPO's value loss and its gradients through a value head and the body of a model, in f64, for crates/temper-train/src/critic.rs.

Run by hand with torch 2.13.0 and transformers 5.23.0:  python tests/golden/critic.py
Writes tests/golden/critic.safetensors. The body is tests/golden/model/short (model.py); the loss is the one of PPO's released code and of
verl's `compute_value_loss` (`max` of free and clipped squared error, halved, a mean over tokens), written out here. Each completion is a
sequence of its own: nothing is shared.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel

HERE = Path(__file__).parent
CLIP = 0.2


def main():
    torch.manual_seed(41)
    model = AutoModel.from_pretrained(HERE / "model" / "short", dtype=torch.float64, attn_implementation="eager")
    head = (0.3 * torch.randn(1, model.config.hidden_size)).float().double().requires_grad_(True)
    draw = lambda n: torch.randint(0, model.config.vocab_size, (n,))
    prompts, groups = [draw(7), draw(3)], [[draw(5), draw(2)], [draw(9)]]
    values = []
    for prompt, completions in zip(prompts, groups):
        for completion in completions:
            hidden = model(torch.cat([prompt, completion])[None]).last_hidden_state[0]
            # The state before token t is the hidden row that predicts it.
            values.append((hidden @ head[0])[len(prompt) - 1 : -1])
    values = torch.cat(values)
    old = (values.detach() + 0.4 * torch.randn(len(values))).float().double()
    ret = (values.detach() + torch.randn(len(values))).float().double()
    bounded = torch.clamp(values, old - CLIP, old + CLIP)
    loss = 0.5 * torch.maximum((values - ret) ** 2, (bounded - ret) ** 2).mean()
    loss.backward()
    arrays = dict(values=values, old=old, ret=ret, loss=loss.reshape(1)) | {"score.weight": head, "grad.score.weight": head.grad}
    arrays |= {f"grad.model.{name}": p.grad for name, p in model.named_parameters()}
    arrays |= {f"prompt.{i}": p for i, p in enumerate(prompts)}
    arrays |= {f"{'ab'[j]}.{i}": c for i, group in enumerate(groups) for j, c in enumerate(group)}
    save_file({name: x.detach().float().contiguous() for name, x in arrays.items()}, HERE / "critic.safetensors")


if __name__ == "__main__":
    main()
