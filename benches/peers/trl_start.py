"""TRL's side of "process start to recipe checked": the imports that a script with the quickstart recipe's two stages needs, and its settings checked."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: F401

common = dict(output_dir="unused", use_cpu=True, bf16=False, report_to="none", lr_scheduler_type="linear", save_steps=50, seed=1)
SFTConfig(**common, max_steps=100, per_device_train_batch_size=64, max_length=128, learning_rate=5e-4, warmup_steps=10)
GRPOConfig(**common, max_steps=160, per_device_train_batch_size=128, num_generations=8, max_completion_length=64, temperature=1.0, learning_rate=1e-4, warmup_steps=5)
