"""The example project, which Prometheus may scrape."""

from example_project.settings import *  # noqa: F403
from example_project.settings import LOCALSYNC

LOCALSYNC = {**LOCALSYNC, "METRICS_TOKEN": "of the scraper"}
