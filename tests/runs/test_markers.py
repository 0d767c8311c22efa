"""fedmask.runs.markers: a generated part is replaced, and nothing around it."""

from pathlib import Path

import pytest

from fedmask.errors import FedmaskError
from fedmask.runs.markers import replaced_between


def test_only_what_stands_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter <!-- b -->\n")
    assert replaced_between(page, "<!-- a -->", "<!-- /a -->", "new") == (
        "before\n<!-- a -->\nnew\n<!-- /a -->\nafter <!-- b -->\n"
    )
    assert "old" in page.read_text()


@pytest.mark.parametrize("text", ["", "<!-- a -->", "<!-- /a -->", "<!-- /a --> <!-- a -->"])
def test_a_page_without_the_place_is_refused(text: str, tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text(text)
    with pytest.raises(FedmaskError, match=r"^PAGE\.md: has no lines <!-- a --> and <!-- /a -->"):
        replaced_between(page, "<!-- a -->", "<!-- /a -->", "new")
