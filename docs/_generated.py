"""Puts into the pages what the code says: the tables of options. A page asks for one by a comment, `<!-- options -->`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from bullmq_kombu import job_options, options


def _transport_options() -> str:
    usual = {"remove_on_complete": options.REMOVE_ON_COMPLETE, "remove_on_fail": options.REMOVE_ON_FAIL}
    rows = ["| option | default | unit | meaning |", "| --- | --- | --- | --- |"]
    for one in fields(options.Options):
        default = usual.get(one.name, one.default)
        shown = "" if default is None else f"`{dict(default) if isinstance(default, dict) else default!r}`"
        rows.append(f"| `{one.name}` | {shown} | {one.metadata['unit']} | {one.metadata['meaning']} |")
    return "\n".join(rows)


def _job_options() -> str:
    return ", ".join(f"`{name}`" for name in sorted(job_options.KNOWN))


def _without_meaning() -> str:
    return ", ".join(f"`{name}`" for name in sorted(options.WITHOUT_MEANING))


_PARTS = {
    "<!-- transport options -->": _transport_options,
    "<!-- job options -->": _job_options,
    "<!-- options without meaning -->": _without_meaning,
}


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """MkDocs' hook: each page on its way to HTML."""
    for mark, make in _PARTS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown
