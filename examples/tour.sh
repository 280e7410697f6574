#!/usr/bin/env bash
# A tour of the commands: ten agents on one small model, steered while they run, and what must hold
# is asserted. It uses a home of its own, the models of yours, and cleans up behind itself.
#
#     examples/tour.sh            AIOS=.venv/bin/aios examples/tour.sh
set -euo pipefail
cd "$(dirname "$0")/.."
AIOS=${AIOS:-aios}
command -v "$AIOS" >/dev/null || { echo "there is no command $AIOS; set AIOS to its path." >&2; exit 2; }

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
# get EXPRESSION: of the JSON on stdin, as d
get() { python3 -c "import json, sys; d = json.load(sys.stdin); print($1)"; }
tokens() { "$AIOS" inspect "$1" --json | get 'd["usage"]["prompt_tokens"] + d["usage"]["completion_tokens"]'; }
# made PID...: tokens that these made, all together
made() { "$AIOS" ps -a --json | get "sum(p['usage']['completion_tokens'] for p in d if p['aid'] in {$(IFS=,; echo "$*")})"; }

AIOS_MODELS=$("$AIOS" config show --json | get 'd["places"]["models"]')
AIOS_HOME=$(mktemp -d)
export AIOS_MODELS AIOS_HOME
trap '"$AIOS" down >/dev/null 2>&1 || true; rm -rf "$AIOS_HOME"' EXIT

say "a kernel with four slots and a short quantum, so that ten agents take turns"
export AIOS_CORE_SLOTS=4
"$AIOS" up --no-tcp
"$AIOS" sched set round_robin --quantum 8

say "ten agents: each is started, and stopped at once so that they begin together"
topics=(whales rain clocks bread maps snow trains owls islands islands)
seeds=(1 2 3 4 5 6 7 8 9 9) # the last two are twins: the same seed, the same story
pids=()
for n in {0..9}; do
    budget=()
    [ "$n" = 6 ] && budget=(--budget tokens=150) # too little for its story
    pid=$("$AIOS" run -d "${budget[@]}" examples/storyteller.py "${seeds[n]} ${topics[n]}")
    "$AIOS" suspend "$pid"
    pids+=("$pid")
done
"$AIOS" resume "${pids[@]}"
capped=${pids[6]} elder=${pids[8]} younger=${pids[9]}
others=("${pids[@]:1:8}") # all but the victim and the younger twin

say "suspend: the younger twin stops in the middle of its story"
until [ "$(made "$younger")" -gt 0 ]; do sleep 0.2; done
"$AIOS" suspend "$younger"
for _ in $(seq 300); do # the slice that it held ends first; from then on its call is blocked
    "$AIOS" inspect "$younger" --json | get '[c for c in d.get("open_calls", []) if c.endswith("generate blocked")]' | grep blocked >/dev/null && break
    sleep 0.1
done
before=$(tokens "$younger") progress=$(made "${others[@]}")

say "nice and kill: the first in line is gone from ps, its slot used again within one slice"
"$AIOS" sched set priority
victim=${pids[0]}
"$AIOS" nice -20 "$victim" # so that it holds a slot
until [ "$(made "$victim")" -gt 0 ]; do sleep 0.2; done
"$AIOS" ps
"$AIOS" kill "$victim"
"$AIOS" ps --json | get "[p['aid'] for p in d]" | grep -w "$victim" && fail "$victim is still in ps"
"$AIOS" trace --json | python3 examples/slot_reused.py "$victim" || fail "the slot stayed empty"
"$AIOS" sched set round_robin

say "nice and fork, on the elder twin"
"$AIOS" nice 5 "$elder"
[ "$("$AIOS" inspect "$elder" --json | get 'd["priority"]')" = 5 ] || fail "nice did not hold"
forked=$("$AIOS" fork "$elder")
[ "$("$AIOS" inspect "$forked" --json | get 'd["program"]')" = storyteller ] || fail "the fork is another program"
"$AIOS" kill "$forked"

say "the suspended one stood still while the others went on"
for _ in $(seq 300); do
    [ "$(made "${others[@]}")" -ge $((progress + 40)) ] && break
    sleep 0.2
done
[ "$(made "${others[@]}")" -ge $((progress + 40)) ] || fail "the others did not go on"
[ "$(tokens "$younger")" = "$before" ] || fail "the suspended process made tokens"
"$AIOS" resume "$younger"

say "budget: the capped one waits, and goes on when it gets more"
for _ in $(seq 300); do
    "$AIOS" inspect "$capped" --json | get '"budget" in d.get("reasons", [])' | grep True >/dev/null && break
    sleep 0.2
done
"$AIOS" ps
"$AIOS" inspect "$capped" --json | get '"budget" in d.get("reasons", [])' | grep True >/dev/null || fail "$capped did not stop at its cap"
"$AIOS" budget set "$capped" tokens=5000
"$AIOS" budget show "$capped"

say "all who live come to a good end"
for pid in "${others[@]}" "$younger"; do
    "$AIOS" wait --keep "$pid" >"$AIOS_HOME/story.$pid" || fail "process $pid ended with $?"
done

say "logs, trace, transcript of the elder twin"
"$AIOS" logs "$elder"
"$AIOS" trace "$elder" | tail -n 5
"$AIOS" trace "$elder" | grep process_ended >/dev/null || fail "no end in the trace"
"$AIOS" transcript "$elder" | grep 'Tell a story about islands' >/dev/null || fail "no question in the transcript"

say "the story of the twin that was suspended is the story of the one that was not"
story() { "$AIOS" inspect "$1" --json | get 'd["result"]'; }
[ -n "$(story "$elder")" ] || fail "the elder twin told nothing"
[ "$(story "$elder")" = "$(story "$younger")" ] || fail "the twins tell different stories"

say "nothing is left over"
"$AIOS" doctor
"$AIOS" down
"$AIOS" doctor
echo "the tour is over: everything held"
