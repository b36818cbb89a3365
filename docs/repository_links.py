"""A hook of mkdocs: files of the repository that pages link to become part of the site, under `repository/`."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")
FOLDER = "repository"


def target(page: str, link: str) -> str | None:
    """Where a link of a page in `docs/` leads, relative to the repository; None for one that stays in `docs/`."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def on_files(files, config):
    linked = {
        path
        for page in files.documentation_pages()
        for _, link in LINK.findall(page.content_string)
        if (path := target(page.src_uri, link))
    }
    for path in sorted(linked):
        files.append(File.generated(config, f"{FOLDER}/{site_name(path)}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, **_):
    up = "../" * page.file.src_uri.count("/")

    def moved(match: re.Match) -> str:
        path = target(page.file.src_uri, match[2])
        return match[0] if path is None else f"{match[1]}{up}{FOLDER}/{site_name(path)}"

    return LINK.sub(moved, markdown)


def site_name(path: str) -> str:
    """Markdown outside of `docs/` is shown as plain text: its own links lead to where the site has nothing."""
    return f"{path}.txt" if path.endswith(".md") else path
