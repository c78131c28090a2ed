"""The ASGI application: streams go to django_localsync's consumer, everything else to Django."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")
django_application = get_asgi_application()  # before the next import: it makes Django's apps ready

from django_localsync.routing import localsync_application  # noqa: E402

application = localsync_application(django_application, prefix="localsync/")
