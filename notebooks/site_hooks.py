"""What `mkdocs build` does beyond the guides: pages from elsewhere in the repository, API pages, and links.

Guides link to files as they lie in the repository, so that links work on a code host too. On the site, a link to a file
that has a page becomes a link to that page, and a link to another file of the repository becomes plain text. A link to
nothing stays as it is, and `--strict` fails.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # path in the repository -> page
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    **{
        f"cmjax/pretrained/{name}/README.md": f"cards/{name}.md"
        for name in ("fashion-mnist-cm", "fashion-mnist-tcd", "emoji", "emoji-ink", "fashion-mnist-classifier")
    },
}
SAMPLERS = ("cm", "tcd", "lcm", "flow", "scm", "ddim", "euler", "euler_ancestral", "dpmpp", "heun")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


class Examples(griffe.Extension):
    """Read `Example:` as griffe reads `Examples:`, and other titled sections as admonitions, as they are."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rename the section in one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)


def public_names() -> list[str]:
    """What `cmjax.__all__` names, read without importing the package."""
    tree = ast.parse((ROOT / "cmjax/__init__.py").read_text("utf-8"))
    (names,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
    return ast.literal_eval(names)


def public_modules() -> list[str]:
    """The modules that have a page: `cmjax` with its own functions, the samplers, then all others in their order."""
    found = [name for name in public_names() if _is_module(name)]
    return ["cmjax", *(f"cmjax.samplers.{name}" for name in SAMPLERS), *(f"cmjax.{name}" for name in found)]


def own_functions() -> list[str]:
    """The names of `cmjax` that are not modules."""
    return [name for name in public_names() if name not in (*SAMPLERS, "__version__") and not _is_module(name)]


def _is_module(name: str) -> bool:
    return (ROOT / f"cmjax/{name}.py").is_file() or (ROOT / f"cmjax/{name}/__init__.py").is_file()


def on_config(config):
    """Put the API pages into the navigation."""
    section = next(entry for entry in config.nav if "API reference" in entry)
    section["API reference"] = [{module: f"api/{module}.md"} for module in public_modules()]
    return config


def on_files(files, config):
    """Add the pages that lie elsewhere, and the API pages."""
    for path, page in PAGES.items():
        text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / path).read_text("utf-8"), flags=re.DOTALL)  # a card's header
        files.append(File.generated(config, page, content=text))
    for module in public_modules():
        options = f"    options:\n      members: {own_functions()}\n" if module == "cmjax" else ""
        files.append(File.generated(config, f"api/{module}.md", content=f"# {module}\n\n::: {module}\n{options}"))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links to files of the repository into links to pages."""
    if page.file.src_uri.startswith("api/") or page.file.src_uri.endswith(".ipynb"):
        return markdown
    fences = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(_relinked(page), part) for part in fences)


def on_page_content(html, page, config, files):
    """Turn links in notebooks into links to pages; they are HTML by now."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'href="([\w./-]+)\.(ipynb|md)"', r'href="\1.html"', html).replace("README.html", "index.html")


def _relinked(page):
    origin = next((path for path, name in PAGES.items() if name == page.file.src_uri), f"notebooks/{page.file.src_uri}")

    def relink(match: re.Match) -> str:
        image, text, target, anchor = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if path in PAGES:
            to = PAGES[path]
        elif path.startswith("notebooks/") and (ROOT / path).is_file():
            to = path.removeprefix("notebooks/")
        else:
            return text if (ROOT / path).exists() else match[0]
        to = posixpath.relpath(to, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({to}{anchor or ''})"

    return relink
