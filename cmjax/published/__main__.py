"""Write the table into the guide again: `python -m cmjax.published notebooks/few_step_models.md`."""

import sys
from pathlib import Path

from cmjax.published.table import markdown

if __name__ == "__main__":
    page, table = Path(sys.argv[1]), markdown()
    text = page.read_text("utf-8")
    page.write_text(text[: text.index(table.splitlines()[0])] + table, "utf-8")
