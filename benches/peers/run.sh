#!/usr/bin/env bash
# Measures Temper and its peers on the same work, in turn, on this machine, and writes docs/BENCHMARKS.md.
#
#   benches/peers/run.sh            everything (about an hour; leave the machine alone meanwhile)
#   benches/peers/run.sh sft_f32 decode_1_f32      only these rows
#
# Needs python3 with venv, network access to the Python package index on the first call (5.4 GB under PEER_HOME, default
# ~/.cache/temper-peers), and a cargo that can build Temper. Nothing is written outside PEER_HOME and docs/BENCHMARKS.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PEER_HOME=${PEER_HOME:-$HOME/.cache/temper-peers}
"$here/setup.sh"
cargo build --release --locked --manifest-path "$here/../../Cargo.toml" -p temper
exec "$PEER_HOME/venv/bin/python" "$here/run.py" "$@"
