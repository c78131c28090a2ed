"""Addresses of the plain HTTP endpoints, to be included under a prefix; streams are in routing.py."""

from django.urls import path, re_path

from . import views

app_name = "localsync"

urlpatterns = [
    path("upload", views.UploadView.as_view(), name="upload"),
    path("write-checkpoint2.json", views.WriteCheckpointView.as_view(), name="write-checkpoint"),
    path("sync/checkpoint-request", views.CheckpointRequestView.as_view(), name="checkpoint-request"),
    path("token", views.TokenView.as_view(), name="token"),
    path("metrics", views.metrics, name="metrics"),
    # Served by routing.py, unless the server speaks WSGI or the streams were not routed.
    re_path(r"^(?:sync/stream|write-checkpoint\.json|probes/\w+)$", views.NeedsAsgiView.as_view()),
    re_path("", views.no_such_path),
]
