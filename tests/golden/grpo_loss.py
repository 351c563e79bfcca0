"""Golden numbers for temper-algo: GRPO losses and their gradients, from TRL's own code.

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/golden/grpo_loss.py            # writes tests/golden/algo/*.json; never run in CI

What is TRL's own code here: `GRPOTrainer._compute_loss` (called unbound on a stand-in that hands it given log-probs in place
of a model's) with autograd for d(loss)/d(logp), and `nanstd`. What is a transcription, because TRL keeps it inside a
600-line method: the two lines `advantages = rewards - group mean; advantages / (std + 1e-4)`, and the bounded ratio of `old` to
`sampling` log-probs (four modes). GMPO is TRL's experimental trainer's `_compute_loss`. Learning-rate schedules are
transformers' own. All in f64 (entropies are drawn in f32, as TRL takes their quantile in f32).
"""
import json
import math
import pathlib
import types
from collections import defaultdict

import torch
import transformers
import trl
from trl.experimental.gmpo import GMPOTrainer
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

    def pad_across_processes(self, x, dim=0, pad_index=0):
        return x


def stand_in(loss_type, level, low, high, beta, logp, entropies, o):
    me = types.SimpleNamespace(
        loss_type=loss_type, importance_sampling_level=level, epsilon_low=low, epsilon_high=high, beta=beta,
        top_entropy_quantile=o.get("top_entropy", 1.0), off_policy_mask_threshold=o.get("off_policy_mask"),
        use_vllm="mode" in o, vllm_importance_sampling_correction="mode" in o, aux_loss_enabled=False,
        _entropy_bonus_enabled="entropy_coef" in o, use_adaptive_entropy=False, entropy_coef=o.get("entropy_coef", 0.0),
        current_gradient_accumulation_steps=1,
        max_completion_length=LENGTH, accelerator=Accelerator(), model=types.SimpleNamespace(training=True),
        args=types.SimpleNamespace(
            delta=o.get("delta"), use_bias_correction_kl=o.get("importance_kl", False), steps_per_generation=1,
            sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
        ),
        _metrics={"train": defaultdict(list)},
    )
    me.accelerator.sync_gradients = True
    me._get_per_token_logps_and_entropies = lambda *a, **k: (logp, entropies, None)
    me.get_high_entropy_mask = lambda *a: GRPOTrainer.get_high_entropy_mask(me, *a)
    me.get_off_policy_mask, me.get_gamma_weights = GRPOTrainer.get_off_policy_mask, GRPOTrainer.get_gamma_weights
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


def more_inputs(seed, logp, spread):
    """Entropies and log-probs as sampled, from a stream of their own."""
    g = torch.Generator().manual_seed(1000 + seed)
    uniform = lambda low, high: low + (high - low) * torch.rand(logp.shape, generator=g, dtype=torch.float64)
    return uniform(0.0, 2.5).float().double(), logp + spread * uniform(-1.0, 1.0)


def correction(old, gen, mask, o):
    """TRL's `importance_sampling_ratio`; "sequence_*" modes give one number a sequence."""
    difference = (old - gen) * mask
    if o["mode"].startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    low, high = o.get("mode_low", 0.0), o["mode_high"]
    if o["mode"].endswith("truncate"):
        return ratio.clamp(low, high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def case(seed, loss_type, level, low, high, beta, scale, spread, **o):
    mask, logp, old, ref, rewards = inputs(seed, spread)
    entropies, gen = more_inputs(seed, logp, spread)
    logp, entropies = logp.clone().requires_grad_(True), entropies.requires_grad_(True)
    adv = advantages(rewards, scale)
    me = stand_in(loss_type, level, low, high, beta, logp, entropies, o)
    ids = torch.zeros_like(mask, dtype=torch.long)
    batch = dict(
        prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] + 1, completion_ids=ids, completion_mask=mask,
        advantages=adv.flatten(), old_per_token_logps=old, ref_per_token_logps=ref, num_items_in_batch=mask.sum(),
    )
    if "mode" in o:
        batch.update(importance_sampling_ratio=correction(old, gen, mask, o), sampling_per_token_logps=gen)
    trainer = GMPOTrainer if loss_type == "gmpo" else GRPOTrainer
    loss = trainer._compute_loss(me, None, batch)
    (grad, d_entropy) = torch.autograd.grad(loss, (logp, entropies), allow_unused=True)
    metrics = {k: v[0] for k, v in me._metrics["train"].items() if k in WANTED and math.isfinite(v[0])}
    if not o:
        metrics.pop("entropy")  # recorded only with entropies
    return dict(
        loss_type=loss_type, level=level, clip_low=low, clip_high=high, beta=beta, scale_rewards=scale, max_tokens=LENGTH,
        rewards=rewards.tolist(), adv=adv.tolist(), mask=mask.tolist(), logp=logp.tolist(), logp_old=old.tolist(),
        logp_ref=ref.tolist(), loss=loss.item(), d_logp=grad.tolist(), metrics=metrics, **o,
        **({} if not o else dict(entropy=entropies.tolist(), logp_gen=gen.tolist())),
        **({} if d_entropy is None else dict(d_entropy=d_entropy.tolist())),
    )


WANTED = ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def grpo():
    cases = []
    for i, loss_type in enumerate(["grpo", "bnpo", "dapo", "dr_grpo"]):
        cases.append(case(10 + i, loss_type, "token", 0.2, 0.2, 0.0, True, 0.8))
        cases.append(case(20 + i, loss_type, "token", 0.2, 0.28, 0.04, loss_type != "dr_grpo", 0.8))
    cases.append(case(30, "grpo", "sequence", 0.2, 0.28, 0.0, True, 1.5))
    cases.append(case(31, "grpo", "sequence", 3e-4, 4e-4, 0.1, True, 0.1))
    cases.append(case(32, "dapo", "token", 0.2, 0.2, 0.1, True, 0.0))
    # The other loss types; cispo's upper bound is absolute.
    cases.append(case(40, "cispo", "token", 0.2, 1.5, 0.04, True, 0.8))
    cases.append(case(41, "cispo", "token", 0.2, 5.0, 0.0, True, 1.5))
    cases.append(case(42, "sapo", "token", 0.2, 0.2, 0.0, True, 0.8))
    cases.append(case(43, "sapo", "sequence", 0.2, 0.2, 0.04, True, 1.5))
    cases.append(case(44, "vespo", "token", 0.2, 0.2, 0.0, True, 0.4))
    cases.append(case(45, "vespo", "token", 0.2, 0.2, 0.04, False, 1.5))
    cases.append(case(46, "luspo", "sequence", 0.2, 0.28, 0.0, True, 1.5))
    cases.append(case(47, "luspo", "sequence", 2e-3, 2.5e-3, 0.04, True, 0.1))
    cases.append(case(48, "gmpo", "token", 0.4, 0.4, 0.0, True, 1.2))
    cases.append(case(49, "gmpo", "token", 0.3, 0.5, 0.04, False, 1.2))
    # Options.
    for i, loss_type in enumerate(["grpo", "bnpo", "dapo", "dr_grpo"]):
        cases.append(case(50 + i, loss_type, "token", 0.2, 0.28, 0.0, True, 1.5, delta=1.6))
        cases.append(case(60 + i, loss_type, "token", 0.2, 0.28, 0.04, True, 0.8, importance_kl=True))
    cases.append(case(64, "grpo", "sequence", 0.2, 0.28, 0.04, True, 0.8, importance_kl=True))
    cases.append(case(70, "dapo", "token", 0.2, 0.28, 0.04, True, 0.8, top_entropy=0.2))
    cases.append(case(71, "grpo", "token", 0.2, 0.28, 0.0, True, 0.8, top_entropy=0.55))
    cases.append(case(72, "dapo", "token", 0.2, 0.28, 0.04, True, 0.8, off_policy_mask=0.05))
    cases.append(case(73, "grpo", "sequence", 0.2, 0.28, 0.0, True, 0.8, off_policy_mask=0.01))
    cases.append(case(74, "dapo", "token", 0.2, 0.28, 0.04, True, 0.8, entropy_coef=0.05))
    for i, mode in enumerate(["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]):
        cases.append(case(80 + i, "dapo", "token", 0.2, 0.28, 0.04, True, 0.8, mode=mode, mode_high=1.4))
        cases.append(case(90 + i, "grpo", "token", 0.2, 0.28, 0.0, True, 0.8, mode=mode, mode_low=0.7, mode_high=1.3))
    cases.append(case(84, "grpo", "sequence", 0.2, 0.28, 0.0, True, 0.8, mode="sequence_mask", mode_high=3.0))
    cases.append(case(85, "cispo", "token", 0.2, 1.5, 0.0, True, 0.8, mode="token_truncate", mode_high=1.4))
    cases.append(case(86, "vespo", "token", 0.2, 0.2, 0.0, True, 0.4, mode="token_truncate", mode_high=1.4))
    cases.append(case(87, "vespo", "token", 0.2, 0.2, 0.0, True, 0.1, mode="token_mask", mode_low=0.95, mode_high=1.08))
    cases.append(case(88, "dapo", "token", 0.2, 0.28, 0.0, True, 0.8, mode="token_mask", mode_high=1.4, off_policy_mask=0.02))
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
