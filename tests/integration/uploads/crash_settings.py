"""The test suite's settings for a server of its own: LOCALSYNC_TEST_DATABASE_URL is the very database to use."""

from tests.settings import *  # noqa: F403

ROOT_URLCONF = "tests.urls"
LOCALSYNC = {"UPLOAD_HANDLER": "tests.integration.uploads.crash_handler.Handler"}
