"""Orders a report and asks until it is there."""

from __future__ import annotations

import json
import os
import time
from urllib.request import Request, urlopen

BASE = f"http://127.0.0.1:{os.environ.get('UVICORN_PORT', '8000')}"

if __name__ == "__main__":
    with urlopen(Request(f"{BASE}/reports?rows=3", method="POST")) as answer:
        print("accepted:", answer.status)
        task_id = json.load(answer)["id"]
    give_up = time.monotonic() + 30
    while True:
        with urlopen(f"{BASE}/reports/{task_id}") as answer:
            report = json.load(answer)
        if report["state"] == "SUCCESS" or time.monotonic() > give_up:
            break
        time.sleep(0.1)
    print(report)
