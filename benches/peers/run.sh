#!/usr/bin/env bash
# Measures Temper and its peers on the same work, in turn, on this machine, and writes docs/BENCHMARKS.md or a document of this machine; README.md says more.
#
#   benches/peers/run.sh                           everything that is not yet measured at this commit (an hour and a half; leave the machine alone meanwhile)
#   benches/peers/run.sh sft_f32 decode_1_f32      only these rows (--help lists them)
#   benches/peers/run.sh --again                   anew
#   benches/peers/run.sh --machine NAME            into docs/benchmarks/NAME.md, where this is not the machine of docs/BENCHMARKS.md
#
# Needs python3 with venv, a C++ compiler, network access to the Python package index on the first call (5.4 GB under PEER_HOME, default
# ~/.cache/temper-peers), and a cargo that can build Temper; or TEMPER, the path of a binary of this commit.
# Nothing is written outside PEER_HOME, docs/BENCHMARKS.md and docs/benchmarks.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PEER_HOME=${PEER_HOME:-$HOME/.cache/temper-peers}
"$here/setup.sh"
[ -n "${TEMPER:-}" ] || cargo build --release --locked --manifest-path "$here/../../Cargo.toml" -p temper
exec "$PEER_HOME/venv/bin/python" "$here/run.py" "$@"
