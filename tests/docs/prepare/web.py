"""A page in the browser."""

from __future__ import annotations

from blocks import Page

EXPORT = (
    "lbitcls export configs/quickstart/digits_lsq_4w4f.py work_dirs/digits_lsq_4w4f/best_top-1.pth --target web "
    "--out page"
)
PAGES = {"docs/engines_web.md": Page(not_run={EXPORT: "server"})}
