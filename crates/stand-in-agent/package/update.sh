#!/bin/bash
# Swaps the programs when the agent has ended, as the real agent's update does: it leaves links to folders that carry the
# version, and tells by the name of its log how it went. Arguments: process of the agent, its folder, version, outcome.
agent=$1 folder=$2 version=$3 outcome=$4
log=$folder/_diag/SelfUpdate-$(date +%Y%m%d-%H%M%S).log

mkdir -p "$folder/_diag"
echo "waiting for process $agent" >"$log"
while [ -e "/proc/$agent" ]; do sleep 0.1; done
if [ "$outcome" = failed ]; then
  echo "told to fail" >>"$log"
else
  for part in bin externals; do
    if [ -L "$folder/$part" ]; then rm "$folder/$part"; else mv "$folder/$part" "$folder/$part.former"; fi
    # Long enough that whoever does not wait for the end meets a gap.
    sleep 0.5
    ln -s "$folder/$part.$version" "$folder/$part"
  done
fi
mv "$log" "$log.$outcome"
