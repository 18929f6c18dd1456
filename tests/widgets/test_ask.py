"""The panel without a browser: buttons are clicked in Python, work runs on its own thread."""

from __future__ import annotations

import threading

import pytest

import workbench as wb
from workbench.jobs import Job


@pytest.fixture
def view(small_retriever, tiny_moe):
    view = wb.AskView(small_retriever, tiny_moe, k=3)
    yield view
    view.close()


def test_a_click_answers_and_shows_it(view):
    view.question.value = "Which valve failed first?"
    view.button.click()
    answer = view.wait(60)
    assert view.answer is answer
    assert answer.question == "Which valve failed first?"
    assert view.output.value == answer._repr_html_()
    assert view.button.description == "Ask"
    assert "done" in view.status.value


def test_an_error_is_shown_and_the_panel_goes_on(view):
    view.question.value = "   "
    view.button.click()
    with pytest.raises(ValueError, match="empty"):
        view.wait(60)
    assert "empty" in view.status.value
    view.question.value = "Which steel?"
    view.button.click()
    assert view.wait(60).question == "Which steel?"


def test_the_callback_returns_before_the_work_is_done(view, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow_ask(question, *, cancel, **_):
        started.set()
        assert go_on.wait(30)
        cancel.raise_if_cancelled("asking")

    monkeypatch.setattr("workbench.widgets.ask.ask", slow_ask)
    view.question.value = "slow?"
    view.button.click()
    assert started.wait(30)
    assert view.button.description == "Stop"
    view.button.click()  # the second click stops
    assert view.status.value.startswith("stopping")
    go_on.set()
    with pytest.raises(Exception, match="cancelled"):
        view.wait(30)
    assert view.button.description == "Ask"


def test_snapshot_is_static(view):
    assert "nothing was asked" in view.snapshot()


def test_jobs_run_one_at_a_time():
    running, most, lock = 0, 0, threading.Lock()

    def work(_cancel):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1
        return "done"

    jobs = [Job(work) for _ in range(5)]
    assert [job.result(30) for job in jobs] == ["done"] * 5
    assert most == 1


def test_a_failed_job_raises_for_whoever_waits():
    def fail(_cancel):
        raise ZeroDivisionError("nothing to divide")

    job = Job(fail)
    with pytest.raises(ZeroDivisionError, match="nothing to divide"):
        job.result(30)
    assert job.state == "failed"
