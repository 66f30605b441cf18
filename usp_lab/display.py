"""What the person at the keyboard sees while notebooks run: one line each."""

import json
import sys
import time
from pathlib import Path
from shutil import get_terminal_size


class Display:
    """One line a notebook: on a terminal refreshed in place, else when it begins and ends."""

    def __init__(self, events: Path):
        self.events = open(events, encoding="utf-8")  # noqa: SIM115, read on until we end
        self.active: dict[str, dict] = {}
        self.done: set[str] = set()
        self.failures: dict[str, dict] = {}
        self.partial = ""
        self.shown = ""
        self.live = sys.stdout.isatty()

    def update(self) -> None:
        """Read what the notebooks have said since, and show it."""
        *lines, self.partial = (self.partial + self.events.read()).split("\n")
        for line in lines:
            self._take(json.loads(line))
        if self.live and self.active:
            now, width = time.monotonic(), get_terminal_size().columns - 1
            shown = [
                f"{name}  cell {a['cell']}/{a['cells']}  {clock(now - a['since'])}"
                for name, a in self.active.items()
            ]
            line = " | ".join(shown)[:width]
            if line != self.shown:
                print(f"\r\x1b[K{line}", end="", flush=True)
            self.shown = line

    def _take(self, event: dict) -> None:
        name, what = event["notebook"], event["event"]
        if what == "start":
            self.active[name] = {"cell": 0, "cells": event["cells"], "since": time.monotonic()}
            if not self.live:
                print(f"{name}  started", flush=True)
        elif what == "cell":
            self.active[name] |= {"cell": event["cell"], "cells": event["cells"]}
        else:
            self.active.pop(name, None)
            if what == "failed":
                self.failures[name] = event
                return
            self.done.add(name)
            if what == "done":
                self.clear()
                print(f"{name}  done in {event['seconds']:.0f} s", flush=True)

    def clear(self) -> None:
        """Remove the line that is refreshed."""
        if self.live:
            print("\r\x1b[K", end="", flush=True)


def clock(seconds: float) -> str:
    """`1:23`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
