"""The suite's ASGI application, as a project has one."""

from django.core.asgi import get_asgi_application

from django_localsync.routing import localsync_application

application = localsync_application(get_asgi_application(), prefix="localsync/")
