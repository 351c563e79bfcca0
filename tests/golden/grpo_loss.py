"""Golden numbers for temper-algo: GRPO losses and their gradients, from TRL's own code.

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/golden/grpo_loss.py            # writes tests/golden/algo/*.json; never run in CI

What is TRL's own code here: `GRPOTrainer._compute_loss` (called unbound on a stand-in that hands it given log-probs in place
of a model's) with autograd for d(loss)/d(logp), and `nanstd`. What is a transcription, because TRL keeps it inside a
600-line method: the two lines `advantages = rewards - group mean; advantages / (std + 1e-4)`. Learning-rate schedules are
transformers' own. All in f64.
"""
import json
import math
import pathlib
import types
from collections import defaultdict

import torch
import transformers
import trl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

torch.set_default_dtype(torch.float64)  # nanstd divides integers, which gives the default type

HERE = pathlib.Path(__file__).parent / "algo"
GROUPS, SIZE, LENGTH = 3, 4, 7


class Accelerator:
    num_processes = 1

    def reduce(self, x, reduction="sum"):
        return x

    def gather(self, x):
        return x

    gather_for_metrics = gather


def stand_in(loss_type, level, low, high, beta, logp, entropies):
    me = types.SimpleNamespace(
        loss_type=loss_type, importance_sampling_level=level, epsilon_low=low, epsilon_high=high, beta=beta,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, vllm_importance_sampling_correction=False,
        aux_loss_enabled=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        max_completion_length=LENGTH, accelerator=Accelerator(), model=types.SimpleNamespace(training=True),
        args=types.SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _metrics={"train": defaultdict(list)},
    )
    me._get_per_token_logps_and_entropies = lambda *a, **k: (logp, entropies, None)
    return me


def inputs(seed, spread):
    """Ragged completions (one empty, one with holes in its mask), rewards with one all-equal group."""
    g = torch.Generator().manual_seed(seed)
    uniform = lambda low, high: low + (high - low) * torch.rand(GROUPS * SIZE, LENGTH, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, LENGTH + 1, (GROUPS * SIZE,), generator=g)
    lengths[5] = 0
    mask = (torch.arange(LENGTH)[None, :] < lengths[:, None]).double()
    mask[2, :3] = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    logp = uniform(-5.0, -0.01)
    logp[0, 0] = -40.0  # an extreme log-prob, on purpose
    old, ref = logp + spread * uniform(-1.0, 1.0), logp + spread * uniform(-1.0, 1.0)
    rewards = torch.randint(0, 3, (GROUPS, SIZE), generator=g).double() / 2
    rewards[1] = 0.3
    rewards[2, 0], rewards[2, 1] = 1.0, 0.0
    return mask, logp, old, ref, rewards


def advantages(rewards, scale):
    adv = rewards - rewards.mean(dim=1, keepdim=True)
    if scale:
        std = torch.stack([nanstd(group, dim=0) for group in rewards])[:, None]
        adv = adv / (std + 1e-4)
    return adv


def case(seed, loss_type, level, low, high, beta, scale, spread):
    mask, logp, old, ref, rewards = inputs(seed, spread)
    logp = logp.clone().requires_grad_(True)
    adv = advantages(rewards, scale)
    me = stand_in(loss_type, level, low, high, beta, logp, torch.zeros_like(logp))
    ids = torch.zeros_like(mask, dtype=torch.long)
    batch = dict(
        prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] + 1, completion_ids=ids, completion_mask=mask,
        advantages=adv.flatten(), old_per_token_logps=old, ref_per_token_logps=ref, num_items_in_batch=mask.sum(),
    )
    loss = GRPOTrainer._compute_loss(me, None, batch)
    (grad,) = torch.autograd.grad(loss, logp)
    metrics = {k: v[0] for k, v in me._metrics["train"].items() if k in WANTED and math.isfinite(v[0])}
    return dict(
        loss_type=loss_type, level=level, clip_low=low, clip_high=high, beta=beta, scale_rewards=scale, max_tokens=LENGTH,
        rewards=rewards.tolist(), adv=adv.tolist(), mask=mask.tolist(), logp=logp.tolist(), logp_old=old.tolist(),
        logp_ref=ref.tolist(), loss=loss.item(), d_logp=grad.tolist(), metrics=metrics,
    )


WANTED = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def grpo():
    cases = []
    for i, loss_type in enumerate(["grpo", "bnpo", "dapo", "dr_grpo"]):
        cases.append(case(10 + i, loss_type, "token", 0.2, 0.2, 0.0, True, 0.8))
        cases.append(case(20 + i, loss_type, "token", 0.2, 0.28, 0.04, loss_type != "dr_grpo", 0.8))
    cases.append(case(30, "grpo", "sequence", 0.2, 0.28, 0.0, True, 1.5))
    cases.append(case(31, "grpo", "sequence", 3e-4, 4e-4, 0.1, True, 0.1))
    cases.append(case(32, "dapo", "token", 0.2, 0.2, 0.1, True, 0.0))
    return cases


def schedules():
    def lr(make, steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule, values = make(optimizer), []
        for _ in range(steps):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return values

    t = transformers.optimization
    return [
        dict(kind="constant", warmup_steps=3, total=12, values=lr(lambda o: t.get_constant_schedule_with_warmup(o, 3), 12)),
        dict(kind="linear", warmup_steps=4, total=17, values=lr(lambda o: t.get_linear_schedule_with_warmup(o, 4, 17), 17)),
        dict(kind="cosine", warmup_steps=5, total=23, values=lr(lambda o: t.get_cosine_schedule_with_warmup(o, 5, 23), 23)),
        dict(kind="cosine", warmup_steps=2, total=11, min_ratio=0.1, values=lr(
            lambda o: t.get_cosine_with_min_lr_schedule_with_warmup(o, 2, 11, min_lr_rate=0.1), 11)),
    ]


def main():
    versions = dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__)
    HERE.mkdir(exist_ok=True)
    for name, cases in [("grpo_loss", grpo()), ("schedule", schedules())]:
        text = json.dumps(dict(versions=versions, cases=cases), separators=(",", ":"))
        (HERE / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
