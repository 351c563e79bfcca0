from common import *
import re
p = parser(); p.set_defaults(steps=3, warmup=1); p.add_argument("--prompts", type=int, default=8); p.add_argument("--gens", type=int, default=8)
p.add_argument("--max_new", type=int, default=64); p.add_argument("--beta", type=float, default=0.0); p.add_argument("--micro", type=int, default=0)
p.add_argument("--forced", action="store_true", help="every completion has max_new tokens")
p.add_argument("--loss_type", default="dapo"); p.add_argument("--cb", action="store_true", help="transformers continuous batching")
a = p.parse_args()
from datasets import load_dataset
from trl import GRPOTrainer, GRPOConfig
t_imp = time.perf_counter() - T0
from transformers import AutoTokenizer
tok = AutoTokenizer.from_pretrained(MODEL); tok.pad_token = "<|endoftext|>"
ds = load_dataset("json", data_files=f"{DATA}/grpo_prompts.jsonl", split="train")
m = load_model(a)
n = a.prompts * a.gens; micro = a.micro or n; a.batch = micro
ca = common_args(a); ca["gradient_accumulation_steps"] = n // micro
extra = dict(use_transformers_continuous_batching=True) if a.cb else {}
if a.forced: extra["generation_kwargs"] = dict(min_new_tokens=a.max_new)
cfg = GRPOConfig(**ca, num_generations=a.gens, max_completion_length=a.max_new, temperature=1.0, beta=a.beta, loss_type=a.loss_type, **extra)
def reward_exact(completions, answer, **kw):
    out = []
    for c, g in zip(completions, answer):
        nums = re.findall(r"-?\d+(?:\.\d+)?", c[0]["content"] if isinstance(c, list) else c)
        out.append(1.0 if nums and nums[-1] == g else (0.1 if nums else 0.0))
    return out
tr = GRPOTrainer(model=m, reward_funcs=reward_exact, args=cfg, train_dataset=ds, processing_class=tok, peft_config=lora_cfg() if a.lora else None)
t_ready = time.perf_counter() - T0
ph = {}
def wrap(obj, name, key):
    f = getattr(obj, name)
    def g(*r, **k):
        t = time.perf_counter(); o = f(*r, **k); ph.setdefault(key, []).append(time.perf_counter() - t); return o
    setattr(obj, name, g)
gen_tokens = []
orig_gst = tr._generate_single_turn
def gst(*r, **k):
    t = time.perf_counter(); o = orig_gst(*r, **k); ph.setdefault("generate", []).append(time.perf_counter() - t)
    try: gen_tokens.append(sum(len(x) for x in o[0]))
    except Exception as e: gen_tokens.append(0)
    return o
tr._generate_single_turn = gst
wrap(tr, "_calculate_rewards", "reward"); wrap(tr, "_generate_and_score_completions", "rollout_total")
wrap(tr, "_get_per_token_logps_and_entropies", "logps_fwd"); wrap(tr, "compute_loss", "loss_fwd"); wrap(tr, "training_step", "training_step")
st = make_timer(tr, a.warmup); tr.train()
w = a.warmup; k = len(st["t"]) - w
avg = lambda key: round(sum(ph.get(key, [0])[-max(1, len(ph.get(key, [0])) * k // (k + w)):]) / k, 3)
mg = [round(float(l.get("completions/mean_length", -1)), 1) for l in tr.state.log_history if "completions/mean_length" in l]
rw = [round(float(l.get("reward", -1)), 3) for l in tr.state.log_history if "reward" in l]
gt = gen_tokens[w:]
step = sum(st["t"][w:]) / k
summarise(st, a, bench="grpo", prompts=a.prompts, gens=a.gens, micro=micro, max_new=a.max_new, beta=a.beta, import_s=round(t_imp, 2), ready_s=round(t_ready, 2),
          generate_s=avg("generate"), reward_s=avg("reward"), rollout_total_s=avg("rollout_total"), logps_fwd_s=avg("logps_fwd"), loss_fwd_s=avg("loss_fwd"),
          training_step_incl_rollout_s=avg("training_step"), gen_tokens=gt, gen_tok_s=round(sum(gt) / max(1e-9, sum(ph["generate"][w:])), 1), mean_completion=mg, reward=rw,
          completions_s=round(n / step, 3), phases={k_: [round(x, 3) for x in v] for k_, v in ph.items()})
