"""Golden numbers for temper-algo: RLOO as TRL has it, with the KL in the reward.

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/golden/rloo.py                 # writes tests/golden/algo/rloo.json; never run in CI

TRL's own code throughout: the lines of `RLOOTrainer` from the KL penalty to the advantages, cut out of the installed source and
executed as they are, and `RLOOTrainer._compute_loss`, called unbound on a stand-in that hands it given log-probs in place of a
model's, with autograd for d(loss)/d(logp). All in f64. Log-probs before the update differ from those now, so that some sequences are
clipped; completions are ragged.
"""
import inspect
import json
import pathlib
import textwrap
import types
from collections import defaultdict

import torch
from trl.trainer import rloo_trainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

torch.set_default_dtype(torch.float64)  # nanstd divides integers, which gives the default type

HERE = pathlib.Path(__file__).parent / "algo"
GROUPS, SIZE, LENGTH = 3, 4, 6


class Accelerator:
    def reduce(self, x, reduction="sum"):
        return x

    def gather(self, x):
        return x

    gather_for_metrics = gather


def cut(first, last):
    """The trainer's lines from the one that begins with `first` to the one that begins with `last`, dedented."""
    lines = inspect.getsource(rloo_trainer).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i in range(begin, len(lines)) if lines[i].strip().startswith(last))
    return textwrap.dedent("\n".join(lines[begin : end + 1]))


ADVANTAGES = cut("# Include the KL penalty in the reward", "advantages = torch.nan_to_num(")


def case(seed, beta, normalize):
    g = torch.Generator().manual_seed(seed)
    n = GROUPS * SIZE
    random = lambda scale: -scale * torch.rand(n, LENGTH, generator=g)
    old = random(3.0)
    reference = old + 0.5 * torch.randn(n, LENGTH, generator=g)
    logp = (old + 0.15 * torch.randn(n, LENGTH, generator=g)).requires_grad_()
    lengths = torch.randint(1, LENGTH + 1, (n,), generator=g)
    mask = (torch.arange(LENGTH) < lengths[:, None]).double()
    rewards = torch.randint(0, 3, (n,), generator=g).double() / 2
    names = dict(
        torch=torch, nanstd=nanstd, num_generations=SIZE, rewards=rewards.clone(), gather=lambda x: x,
        old_per_token_logps=old, ref_per_token_logps=reference, completion_mask=mask,
        self=types.SimpleNamespace(beta=beta, normalize_advantages=normalize),
    )
    exec(ADVANTAGES, names)
    me = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros(n, LENGTH), None),
        aux_loss_enabled=False, epsilon_low=0.2, epsilon_high=0.2, accelerator=Accelerator(),
        model=types.SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros(n, LENGTH, dtype=torch.long)
    inputs = dict(
        prompt_ids=ids, prompt_mask=ids, completion_ids=ids, completion_mask=mask,
        old_logps=(old * mask).sum(1), advantages=names["advantages"],
    )
    loss = RLOOTrainer._compute_loss(me, None, inputs)
    loss.backward()
    ragged = lambda x: [row[:k].tolist() for row, k in zip(x.detach(), lengths)]
    return dict(
        beta=beta, normalize=normalize, size=SIZE, rewards=rewards.tolist(), logp=ragged(logp), logp_old=ragged(old),
        logp_ref=ragged(reference), adv=names["advantages"].tolist(), loss=loss.item(), d_logp=ragged(logp.grad),
        clipped=me._metrics["train"]["clip_ratio/region_mean"][0],
    )


if __name__ == "__main__":
    cases = [case(seed, beta, seed % 2 == 1) for seed, beta in enumerate([0.05, 0.05, 0.3, 0.3, 0.0, 1.0])]
    (HERE / "rloo.json").write_text(json.dumps(dict(cases=cases)) + "\n")
