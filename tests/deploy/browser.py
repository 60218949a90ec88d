"""Marks of tests that open a page in a real browser."""

from __future__ import annotations

import shutil

import pytest

from lbitcls.deploy.runtime.page import npm

IN_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser: install Debian's chromium and chromium-driver",
    ),
    pytest.mark.skipif(not npm.archive().is_file(), reason=f"no runtime for pages; run: {npm.install_command()}"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's, of a browser that ends
]
