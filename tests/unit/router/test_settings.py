"""What the router refuses to be told."""

import pytest

from router.settings import RouterSettings


@pytest.mark.parametrize(
    "origins", ["", "*", "https://a.example", "http://localhost:3000, https://b.example", "null"]
)
def test_origins_of_pages_are_taken_as_browsers_say_them(origins: str) -> None:
    assert RouterSettings(cors_origins=origins).cors_origins == origins


@pytest.mark.parametrize(
    "origins", ["a.example", "https://a.example/", "https://A.example", "https://*.b", "https://"]
)
def test_what_no_browser_says_is_refused(origins: str) -> None:
    with pytest.raises(ValueError, match="each is"):
        RouterSettings(cors_origins=origins)
