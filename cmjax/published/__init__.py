"""Published few-step models and LoRAs, and the settings that go with each: one table, with its sources.

    row = cmjax.published.find("stabilityai/sdxl-turbo")
    state = row.state(pipe.config)

The commands take these settings by themselves, where a model or LoRA has a name of the table; `cmjax inspect
--recommended NAME` shows them. None of the weights was downloaded for it: settings are those of papers, pages and
scheduler files, as each row's `source` says.
"""

from cmjax.published.lookup import PUBLISHED, find, matching, nearest
from cmjax.published.row import BASES, LEVELS, Published
from cmjax.published.table import markdown
from cmjax.published.usage import command, program

__all__ = ["BASES", "LEVELS", "PUBLISHED", "Published", "command", "find", "markdown", "matching", "nearest", "program"]
