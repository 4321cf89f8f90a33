"""How a worker's threads share cores and interpreter: who computes gives way to who answers.

A worker has one thread that runs the model and one that reads and writes messages. The second has
little to do, but others wait for it: a verdict that is read a millisecond later is a guess that
comes too late.
"""

import gc
import os
import sys
import threading

NICENESS = 5  # above the process's own: with all cores busy a woken reader is run first
SWITCH_INTERVAL_S = 0.0005  # Python's own 5 ms are two rounds of a small model


def give_way() -> None:
    """Lower the calling thread's priority below the other threads of this process.

    Linux alone has priorities of threads; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, own + NICENESS)


def collect_little() -> None:
    """Keep what is there now, which is never garbage, out of all later collections of garbage.

    One of them holds up every thread while it looks at all objects: 0.15 s with torch and a model
    loaded (docs/decisions.md). To be called once, before the first request.
    """
    gc.collect()
    gc.freeze()


def switch_often() -> None:
    """Let no thread of this process keep the interpreter from another for long."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
