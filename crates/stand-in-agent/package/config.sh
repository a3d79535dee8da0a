#!/bin/bash
# Configures the agent, or removes it. Takes the arguments of the real one.
set -euo pipefail

if [ "$(id -u)" -eq 0 ] && [ -z "${AGENT_ALLOW_RUNASROOT:-}" ]; then
  echo "Must not run with sudo"
  exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ "${1:-}" = remove ]; then
  exec ./bin/Agent.Listener "$@"
fi
exec ./bin/Agent.Listener configure "$@"
