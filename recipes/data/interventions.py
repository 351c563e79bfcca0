"""Logs of a two-lever bandit for recipes/delusions-in-sequence-models.toml: random pulls, and what an expert who knows the winner would have pulled.

    python recipes/data/interventions.py
"""
import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent
TURNS = 4


def log(rng):
    winner = rng.choice(["red", "blue"])
    messages = [{"role": "user", "content": "Pull red or blue."}]
    for _ in range(TURNS):
        pull = rng.choice(["red", "blue"])
        messages.append({"role": "assistant", "content": pull, "expert": winner})
        messages.append({"role": "user", "content": "won" if pull == winner else "lost"})
    return messages


def held_out(messages, rng):
    """One turn of a log with the expert's word as its only target."""
    turn = 1 + 2 * rng.randrange(TURNS)
    before = [dict(m, weight=0) if m["role"] == "assistant" else m for m in messages[:turn]]
    for message in before:
        message.pop("expert", None)
    return before + [{"role": "assistant", "content": messages[turn]["expert"]}]


def main():
    rng = random.Random(1)
    write = lambda name, rows: (HERE / name).write_text("".join(json.dumps({"messages": m}) + "\n" for m in rows))
    write("interventions.jsonl", [log(rng)[:-1] for _ in range(160)])
    write("interventions_test.jsonl", [held_out(log(rng), rng) for _ in range(60)])


if __name__ == "__main__":
    main()
