"""What an operator does in bull-board with the jobs of a Celery worker, done in a browser.

With `BULLMQ_KOMBU_PICTURES` set to a folder the pictures of the documentation are made anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from browser import EXAMPLE, PACKAGES, Board, Browser
from waiting import wait_until

STATES = {
    "active-one": ("reports", "active"),
    "completed-one": ("reports", "completed"),
    "failed-one": ("reports", "failed"),
    "delayed-one": ("reports", "delayed"),
    "parent-one": ("reports", "waiting-children"),
    "waiting-one": ("thumbnails", "waiting"),
    "prioritized-one": ("thumbnails", "prioritized"),
}


def open_job(board: Board, browser: Browser, job_id: str) -> None:
    queue, state = STATES[job_id]
    browser.do("open", url=f"{board.url}/queue/{queue}/{job_id}?status={state}")
    browser.reads(job_id)


def tab(browser: Browser, name: str) -> None:
    browser.do("click", selector=f'main [role=tab]:text-is("{name}")')


def picture(browser: Browser, name: str) -> None:
    folder = os.environ.get("BULLMQ_KOMBU_PICTURES")
    if folder:
        browser.do("picture", path=str(Path(folder) / f"bull-board-{name}.png"))


@pytest.mark.parametrize("job_id", STATES)
def test_a_job_of_every_state_is_listed_and_opens(job_id: str, board: Board, browser: Browser) -> None:
    queue, state = STATES[job_id]
    browser.do("open", url=f"{board.url}/queue/{queue}?status={state}")
    browser.reads(job_id)
    if state == "failed":
        picture(browser, "failed")
    browser.do("click", selector=f'main a:has-text("{job_id}")')
    wait_until(lambda: browser.do("texts", selector=f'main a[href="/queue/{queue}?status={state}"]'), 15, "the page of the job alone")
    browser.reads(job_id)


def test_payload_and_result(board: Board, browser: Browser) -> None:
    open_job(board, browser, "completed-one")
    browser.reads("report.build")
    tab(browser, "Data")
    browser.reads("customer")
    page = "".join(browser.text().split())
    assert 'customer:"ada"' in page
    assert "/reports/ada.pdf" in page, "the result"
    picture(browser, "completed")


def test_error_and_stack_trace(board: Board, browser: Browser) -> None:
    open_job(board, browser, "failed-one")
    tab(browser, "Error")
    browser.reads("ConnectionError: the post office does not answer for bob@example.org")
    assert "Traceback (most recent call last)" in browser.text()
    assert "tasks.py" in browser.text()
    assert "attempt #2" in browser.text()


def test_progress_and_logs_of_a_running_task(board: Board, browser: Browser) -> None:
    open_job(board, browser, "active-one")
    tab(browser, "Progress")
    browser.reads("300")
    tab(browser, "Logs")
    browser.reads("page 1 of 300")
    assert "will fail" not in browser.text(), "it is acknowledged late"
    picture(browser, "active")


def confirm_first_action(browser: Browser, question: str) -> None:
    """The first button of a job's card is what is mostly wanted of its state; it asks before it acts."""
    browser.do("click", selector="main [class^=headerActions] button")
    wait_until(lambda: question in "".join(browser.do("texts", selector="[role=dialog],[role=alertdialog]")), 15, question)
    browser.do("click", selector='button:text-is("Confirm")')


def test_retry_from_the_page_runs_the_task_again(board: Board, browser: Browser) -> None:
    open_job(board, browser, "failed-one")
    before = board.redis.hget("bull:reports:failed-one", "atm")
    confirm_first_action(browser, "retry this job")
    wait_until(lambda: board.redis.hget("bull:reports:failed-one", "atm") not in (before, None), 20, "another attempt")
    wait_until(lambda: board.redis.zscore("bull:reports:failed", "failed-one"), 20, "its failure")


def test_promote_from_the_page_runs_the_task_now(board: Board, browser: Browser) -> None:
    open_job(board, browser, "delayed-one")
    confirm_first_action(browser, "promote this job")
    wait_until(lambda: board.redis.zscore("bull:reports:completed", "delayed-one"), 20, "the task, an hour before its time")
    assert json.loads(board.redis.hget("bull:reports:delayed-one", "returnvalue") or "")["path"] == "/reports/eve.pdf"


def test_the_example_asks_for_what_it_is_tested_with() -> None:
    wished = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    tested = json.loads((PACKAGES / "package.json").read_text())["dependencies"]
    assert wished == {name: f"^{version}" for name, version in tested.items() if name != "playwright-core"}
