"""The ASGI application: streams go to django_localsync's consumer, everything else to Django."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from django_localsync.routing import localsync_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")
# The admin's styles come along, under any ASGI server.
application = localsync_application(ASGIStaticFilesHandler(get_asgi_application()), prefix="localsync/")
