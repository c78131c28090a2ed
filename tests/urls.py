"""Addresses of the test suite: the package's own, under a prefix as in a project."""

from django.urls import include, path

urlpatterns = [path("localsync/", include("django_localsync.urls"))]
