"""The sync endpoints at the root."""

from django.urls import include, path

urlpatterns = [path("", include("django_localsync.urls"))]
