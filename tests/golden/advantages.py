"""Golden numbers for temper-algo: advantages, from TRL's own lines.

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/golden/advantages.py           # writes tests/golden/algo/advantages.json; never run in CI

TRL computes advantages in the middle of 600-line methods. The lines between two anchors are cut out of the installed source and
executed as they are, on a stand-in trainer, in f64: `scale_rewards` group, batch and none, `normalize_then_sum` (GDPO), and
RLOO with and without `normalize_advantages`. Rewards are random on a grid of halves, with one all-equal group.
"""
import inspect
import json
import pathlib
import textwrap
import types

import torch
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.utils import nanstd

torch.set_default_dtype(torch.float64)  # nanstd divides integers, which gives the default type

HERE = pathlib.Path(__file__).parent / "algo"
GROUPS, SIZE = 4, 5
WEIGHTS = [1.0, 0.5, -0.25]


def cut(module, first, last):
    """The lines of a module from the one that begins with `first` to the one that begins with `last`, dedented."""
    lines = inspect.getsource(module).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i in range(begin, len(lines)) if lines[i].strip().startswith(last))
    return textwrap.dedent("\n".join(lines[begin : end + 1]))


GRPO = cut(grpo_trainer, 'if self.multi_objective_aggregation == "sum_then_normalize"', "advantages = torch.nan_to_num(")
RLOO = cut(rloo_trainer, "grouped_rewards = rewards.view(", "advantages = torch.nan_to_num(")


def run(code, parts, **settings):
    weights = torch.tensor(WEIGHTS)
    names = dict(
        torch=torch, nanstd=nanstd, num_generations=SIZE, rewards_per_func=parts, device="cpu",
        unscorable_mask=torch.zeros(len(parts), dtype=torch.bool), rewards=(parts * weights).nansum(dim=1),
        self=types.SimpleNamespace(reward_weights=weights, reward_funcs=WEIGHTS, **settings),
    )
    exec(code, names)
    return names["advantages"].view(GROUPS, SIZE).tolist()


def case(seed):
    g = torch.Generator().manual_seed(seed)
    parts = torch.randint(0, 3, (GROUPS, SIZE, len(WEIGHTS)), generator=g).double() / 2
    parts[1] = parts[1, :1]
    flat = parts.view(GROUPS * SIZE, -1)
    grpo = lambda scale: run(GRPO, flat, multi_objective_aggregation="sum_then_normalize", scale_rewards=scale)
    return dict(
        part_weights=WEIGHTS,
        parts=parts.tolist(),
        rewards=(parts * torch.tensor(WEIGHTS)).sum(-1).tolist(),
        group=grpo("group"),
        batch=grpo("batch"),
        none=grpo("none"),
        gdpo=run(GRPO, flat, multi_objective_aggregation="normalize_then_sum", scale_rewards="group"),
        rloo=run(RLOO, flat, normalize_advantages=False),
        rloo_normalized=run(RLOO, flat, normalize_advantages=True),
    )


if __name__ == "__main__":
    (HERE / "advantages.json").write_text(json.dumps(dict(cases=[case(seed) for seed in range(6)])) + "\n")
