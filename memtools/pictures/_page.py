"""A page around a picture or a table: one file, no script, nothing from the network, in the reader's colours."""

from memtools.pictures._words import escaped


def html_page(title: str, body: str) -> str:
    """Return `body`, which is HTML already, as a page of its own; `title` is text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark"><meta name="viewport" content="width=device-width">'
        f'<title>{escaped(title)}</title></head><body style="margin:2em">{body}</body></html>\n'
    )
