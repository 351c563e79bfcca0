"""Golden numbers for temper-data: renderings, token ids and assistant masks as Hugging Face transformers makes them.

Run by hand, never in CI:  python tests/golden/chat.py
Made with: transformers 5.23, tokenizers 0.22, jinja2 3.1 (the versions used are written into cases.json).

Reads tests/golden/chat/templates/*.jinja (written for this project in the style of well-known models) and writes
tests/golden/chat/cases.json, tests/golden/chat/bytes/ (a byte-level BPE tokenizer) and tests/golden/chat/pieces/
(a SentencePiece-like one: prefix space, byte fallback).
"""

import datetime
import json
import pathlib

import jinja2
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent / "chat"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIALS += ["<|user|>", "<|assistant|>", "<|system|>", "<|start|>", "<|end|>"]
TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "user assistant system You are a small helpful model. What is 12 + 30? The answer is 42. Hello world, hello there!",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # prints 3\n",
    "Äpfel und Öl kosten 3,50 €. Größe: 12 m². naïve café — “quotes” … 日本語のテキスト 中文 한국어 🙂👍🏽",
    "tool_call tool_response name arguments parameters function <think>\n\n</think>\n\n [INST] [/INST] Today Knowledge",
]


class FixedDate(datetime.datetime):
    """strftime_now reads the clock; the goldens need one day."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def piece_level():
    """The layout of Llama-2-like tokenizers: a prefix space, spaces as U+2581, bytes for what is missing."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False, limit_alphabet=70)
    texts = [text.replace("\n", " ") for text in TEXTS[:2] + TEXTS[4:]]
    tokenizer.train_from_iterator(texts * 3, trainer)
    # the byte tokens are part of the vocabulary, not marks to be looked for in the text
    layout = json.loads(tokenizer.to_str())
    layout["added_tokens"] = layout["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def message(role, content, **extra):
    return {"role": role, "content": content, **extra}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town, in °C",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}, "days": {"default": 1.0}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Zürich", "days": 2}}}
PLAIN = [message("user", "What is 12 + 30?"), message("assistant", "The answer is 42.")]
TURNS = [
    message("system", "Be brief."),
    message("user", "Hello world  "),
    message("assistant", "Hello there! 🙂"),
    message("user", "日本語 and Größe: 3,50 €?\n\n- one\n- two"),
    message("assistant", "naïve café\n\n```\nx = 1\n```"),
]
THOUGHT = [
    message("user", "2 + 2?"),
    message("assistant", "<think>\nTwo and two.\n</think>\n\nFour."),
    message("user", "And 3 + 3?"),
    message("assistant", "Six.", reasoning_content="Three and three."),
]
TOOLED = [
    message("user", "Weather in Zürich?"),
    message("assistant", "", tool_calls=[CALL]),
    message("tool", '{"celsius": 21.5}'),
    message("assistant", "It is 21.5 °C."),
]
NAMED = [message("system", "skipped"), message("user", "Hello world", name="Ada"), message("assistant", "Oh  no, o world")]
CASES = [
    ("chatml", PLAIN, None, {}),
    ("chatml", TURNS, None, {}),
    ("chatml", PLAIN[:1], None, {"add_generation_prompt": True}),
    ("generation", PLAIN, None, {}),
    ("generation", TURNS, None, {}),
    ("llama3", PLAIN, None, {}),
    ("llama3", TURNS, None, {"add_generation_prompt": True}),
    ("llama3", TOOLED, TOOLS, {}),
    ("llama3", PLAIN, None, {"date_string": "1 Jan 2030"}),
    ("mistral", PLAIN, None, {}),
    ("mistral", TURNS, None, {}),
    ("mistral", PLAIN[1:], None, {}),
    ("mistral", [message("user", "a"), message("critic", "b")], None, {}),
    ("qwen3", PLAIN, None, {}),
    ("qwen3", TURNS, None, {}),
    ("qwen3", THOUGHT, None, {}),
    ("qwen3", TOOLED, TOOLS, {"add_generation_prompt": True}),
    ("qwen3", THOUGHT[:1], None, {"add_generation_prompt": True, "enable_thinking": False}),
    ("zephyr", PLAIN, None, {}),
    ("zephyr", TURNS, None, {}),
    ("zephyr", PLAIN[:1], None, {"add_generation_prompt": True}),
    ("phi3", TURNS, None, {}),
    ("gemma", PLAIN, None, {}),
    ("gemma", TURNS, None, {"add_generation_prompt": True}),
    ("gemma", [message("user", "a"), message("user", "b")], None, {}),
    ("python", NAMED, None, {}),
    ("python", TURNS, None, {}),
]


def render(tokenizer, template, messages, tools, options):
    tokenizer.chat_template = template
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)


def case(tokenizers_by_name, name, messages, tools, options):
    template = (HERE / "templates" / f"{name}.jinja").read_text()
    row = {"template": name, "messages": messages, "tools": tools, "options": options}
    for kind, tokenizer in tokenizers_by_name.items():
        try:
            text = render(tokenizer, template, messages, tools, options)
        except jinja2.exceptions.TemplateError:
            row["error"] = True
            continue
        row[kind] = {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
        if "generation" in template and name == "generation":
            encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
            row[kind]["mask"] = encoded["assistant_masks"]
    return row


def main():
    chat_template_utils.datetime = FixedDate
    both = {"bytes": byte_level(), "pieces": piece_level()}
    for name, tokenizer in both.items():
        tokenizer.chat_template = None
        tokenizer.save_pretrained(HERE / name)
    rows = [case(both, *row) for row in CASES]
    made_with = {module.__name__: module.__version__ for module in (transformers, tokenizers, jinja2)}
    text = json.dumps({"made_with": made_with, "cases": rows}, ensure_ascii=False, indent=1)
    (HERE / "cases.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
