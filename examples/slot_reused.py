"""Was a killed process's slot used again within one slice? slot_reused.py PID <trace.jsonl

It was if as many slots are held again as others could use, before any of these others has ended
more than one slice. Exit status 0: yes; 1: no, or it held no slot when it was killed.
"""

import json
import sys
from collections import Counter

victim = int(sys.argv[1])
events = [json.loads(line) for line in sys.stdin]


def freed() -> int:
    """Where in the trace the victim's slot came free: its last slice ended after it was killed."""
    ended = next(
        n for n, e in enumerate(events) if e["event"] == "process_ended" and e["pid"] == victim
    )
    for number, event in enumerate(events[ended:], ended):
        if event["event"] == "slice_ended" and event["pid"] == victim:
            return number
    sys.exit(f"process {victim} held no slot when it was killed")


held: set[str] = set()  # calls with a slice
waiting: dict[str, int] = {}  # open generations -> their process
suspended: set[int] = set()
most = 0  # slots ever held at once: as many as there are
free = freed()
wanted = 0
slices: Counter[str] = Counter()  # ended since the slot came free
for number, event in enumerate(events):
    match event["event"]:
        case "ticket_queued":
            waiting[event["call"]] = event["pid"]
        case "call_completed" | "call_failed" | "call_cancelled":
            waiting.pop(event["call"], None)
        case "process_suspended":
            suspended.add(event["pid"])
        case "process_resumed":
            suspended.discard(event["pid"])
        case "slice_granted":
            held.add(event["call"])
            most = max(most, len(held))
        case "slice_ended":
            held.discard(event["call"])
            slices[event["call"]] += number > free
    if number == free:
        others = sum(pid != victim and pid not in suspended for pid in waiting.values())
        wanted = min(most, others)
    if number > free and len(held) >= wanted:
        after = event["at"] - events[free]["at"]
        print(f"{len(held)} of {most} slots were in use {after:.3f} s later, {others} wanted one")
        sys.exit(0)
    if max(slices.values(), default=0) > 1:
        break
sys.exit(f"the slot of process {victim} was not used again within one slice")
