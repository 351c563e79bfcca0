"""Writes a Llama-type model with random bf16 weights and a byte-level BPE tokenizer of its vocabulary.

    random_models.py NAME DIR       NAME is tiny, 135m, 360m or 1b, or one of these with a vocabulary, as in 135m-v1024"""
import json, os, random, shutil, sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = dict(  # width, layers, heads, key/value heads, feed-forward
    tiny=(128, 4, 4, 2, 384),
    **{"135m": (576, 30, 9, 3, 1536), "360m": (960, 32, 15, 5, 2560), "1b": (2048, 16, 32, 8, 8192)},
)


def tokenizer(vocabulary):
    """Trained on words of random letters, of which there are enough for any vocabulary here."""
    random.seed(vocabulary)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(200_000)]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False)
    made.train_from_iterator((" ".join(words[i:i + 1000]) for i in range(0, len(words), 1000)), trainer)
    assert made.get_vocab_size() == vocabulary, made.get_vocab_size()
    return made


def write(name, out):
    shape, _, vocabulary = name.partition("-v")
    width, layers, heads, kv_heads, feed_forward = SHAPES[shape]
    vocabulary = int(vocabulary or 49152)
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                         intermediate_size=feed_forward, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         rope_parameters=dict(rope_type="default", rope_theta=100_000.0), bos_token_id=0, eos_token_id=0, dtype="bfloat16")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer(vocabulary).save(str(out / "tokenizer.json"))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<|end|>", model_max_length=8192)
    (out / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    made = Path(sys.argv[2] + ".part")  # a directory of the right name is complete
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    write(sys.argv[1], made)
    made.rename(sys.argv[2])
