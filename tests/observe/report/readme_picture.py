"""Makes the pictures that open the README: the page of the digits example, light and dark.

    python -m tests.observe.report.readme_picture

Needs Chromium.
"""

import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from tests.observe.report.browser import Browser

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1280, 1290  # the top of the page, in CSS pixels
SCALE = 1.25


def main():
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, closing(Browser()) as browser:
        output = Path(folder, "runs", "digits")
        example = ROOT / "examples" / "digits.py"
        subprocess.run([sys.executable, example, "--cpu", "--output", output], check=True)
        page = output / "report.html"
        page.write_text(page.read_text().replace(folder, "/home/ada"))
        for is_dark, name in ((False, "report.png"), (True, "report_dark.png")):
            browser.open(page, width=WIDTH, height=HEIGHT, is_dark=is_dark)
            browser.screenshot(PICTURES / name, height=HEIGHT, scale=SCALE)


if __name__ == "__main__":
    main()
