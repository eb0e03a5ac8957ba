"""Pages of mailq's HTTP port, as tests read them: an answer of any status is closed, as Python 3.14 wants it."""

import urllib.error
import urllib.request


def fetch(url: str) -> tuple[int, str]:
    """Return status and text of a page.

    Raises:
        OSError: nobody answers.
    """
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def text(url: str) -> str:
    """Return the text of a page whose status is 200.

    Raises:
        OSError: nobody answers, or the answer has another status.
    """
    status, page = fetch(url)
    if status != 200:
        raise OSError(f"{url} says {status}: {page}")
    return page
