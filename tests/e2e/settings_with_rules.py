"""The example project with the sync rules of the file that RULES names."""

import os

from example_project.settings import *  # noqa: F403
from example_project.settings import LOCALSYNC

LOCALSYNC = {**LOCALSYNC, "RULES": os.environ["RULES"]}
