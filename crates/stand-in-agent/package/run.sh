#!/bin/bash
# Runs the agent. Once more after an update of one that runs one job, as the real one does.
set -uo pipefail

folder=$(dirname "${BASH_SOURCE[0]}")
"$folder"/bin/Agent.Listener run "$@"
code=$?
[ "$code" -eq 4 ] || exit "$code"
sleep 5
"$folder"/bin/Agent.Listener run "$@"
