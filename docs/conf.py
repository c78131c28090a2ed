"""How Sphinx builds these pages: `make docs`."""

project = "django_localsync"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
suppress_warnings = ["misc.highlighting_failure"]  # examples leave things out, with …
