"""Golden numbers for temper-algo: supervised losses and their gradients, from TRL's and PyTorch's own code.

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/golden/sft_loss.py             # writes tests/golden/algo/sft_loss.json; never run in CI

What is theirs: TRL's `SFTTrainer.compute_loss` for `nll` and `dft` (called unbound on a stand-in whose model hands it the log-probs of given logits), and
PyTorch's `cross_entropy` with `label_smoothing`. `anchored` is TRL's dft plus a k3 penalty written out here; `asft` is TRL's dft plus PyTorch's `kl_div`
over the vocabulary, as ASFT's released code calls it. Logits of a small vocabulary are random,
masks ragged (one row without any trained token, one with holes); autograd gives the gradient with respect to the logits, which the test compares with
the chain rule through logp and the mean log-prob. All in f64.
"""
import json
import pathlib
import types
from collections import defaultdict

import torch
import trl
from torch.nn import functional as F
from trl.trainer.sft_trainer import SFTTrainer

HERE = pathlib.Path(__file__).parent / "algo"
ROWS, LENGTH, VOCAB = 5, 8, 7


def inputs(seed, scale):
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(ROWS, LENGTH, VOCAB, generator=g, dtype=torch.float64)
    logits[0, 0, 0] = 60.0  # an almost certain token, on purpose
    reference = logits + 0.5 * torch.randn(ROWS, LENGTH, VOCAB, generator=g, dtype=torch.float64)
    labels = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=g)
    lengths = torch.randint(3, LENGTH + 1, (ROWS,), generator=g)
    trained = torch.arange(LENGTH)[None, :] < lengths[:, None]
    trained[1] = False
    trained[2, :4] = torch.tensor([False, True, False, True])
    trained[:, 0] = False  # nothing predicts the first token
    return logits, reference, labels, trained


def shifted(labels, trained):
    target = torch.where(trained, labels, -100)
    return F.pad(target, (0, 1), value=-100)[:, 1:]


class Accelerator:
    num_processes = 1
    parallelism_config = None

    def gather_for_metrics(self, x):
        return x


def trl_loss(loss_type, logits, target, count):
    """`SFTTrainer.compute_loss` on given logits; the fused head's outputs are 0 where nothing is trained, as TRL's own are."""
    mask = target != -100
    logp = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0] * mask
    zeros = torch.zeros_like(logp)
    outputs = types.SimpleNamespace(log_probs=logp, label_mask=mask, entropy=zeros, is_top1=zeros)
    me = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True), aux_loss_enabled=False, accelerator=Accelerator(), compute_loss_func=None,
        label_smoother=None, _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        args=types.SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False),
    )
    batch = dict(attention_mask=torch.ones_like(target), labels=target)
    return SFTTrainer.compute_loss(me, lambda **_: outputs, batch, num_items_in_batch=count)


def case(seed, scale, kind, **options):
    logits, reference, labels, trained = inputs(seed, scale)
    logits = logits.requires_grad_(True)
    target, count = shifted(labels, trained), trained.sum()
    if kind in ("nll", "dft"):
        loss = trl_loss(kind, logits, target, count)
    elif kind == "label_smoothing":
        loss = F.cross_entropy(
            logits.reshape(-1, VOCAB), target.reshape(-1), ignore_index=-100, label_smoothing=options["eps"]
        )
    elif kind == "anchored":
        safe = target.clamp(min=0)[..., None]
        u = (logits.log_softmax(-1) - reference.log_softmax(-1)).gather(-1, safe)[..., 0]
        penalty = ((torch.exp(-u) - 1 + u) * (target != -100)).sum() / count
        loss = trl_loss("dft", logits, target, count) + options["weight"] * penalty
    elif kind == "asft":
        kl = F.kl_div(logits.log_softmax(-1), reference.softmax(-1), reduction="none").sum(-1)
        loss = trl_loss("dft", logits, target, count) + options["weight"] * (kl * (target != -100)).sum() / count
    (grad,) = torch.autograd.grad(loss, logits)
    flat = lambda x: x.detach().reshape(-1, VOCAB).tolist()
    return dict(
        kind=kind, **options, target=target.reshape(-1).tolist(), logits=flat(logits), logits_ref=flat(reference),
        loss=loss.item(), d_logits=flat(grad),
    )


def main():
    cases = []
    for i, scale in enumerate([1.0, 4.0]):
        cases.append(case(10 + i, scale, "nll"))
        cases.append(case(20 + i, scale, "dft"))
        cases.append(case(30 + i, scale, "label_smoothing", eps=[0.1, 0.6][i]))
        cases.append(case(40 + i, scale, "anchored", weight=0.1))
        cases.append(case(50 + i, scale, "asft", weight=0.1))
    versions = dict(trl=trl.__version__, torch=torch.__version__)
    text = json.dumps(dict(versions=versions, cases=cases), separators=(",", ":"))
    (HERE / "sft_loss.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
